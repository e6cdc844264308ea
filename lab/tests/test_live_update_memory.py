# SPDX-License-Identifier: GPL-2.0-or-later
"""
Guest memory of all kinds, and processes that a new QEMU cannot be like

Guest memory is as it was after an update, or the update is refused.
"""
import os
from pathlib import Path
from typing import Tuple

from lab.machines.backend import make_disk
from lab.machines.chain import COPY, IGNORE_SHARED
from lab.machines.updated_vm import UpdatedVM

from .live_update_case import NOBODY, RAM, LiveUpdateTest
from .testcase import main

FOLDER = '/dev/shm'
PATTERN = 'PATTERN'
PLACE = 160 << 20       # in guest memory, where firmware has nothing


class MemoryTest(LiveUpdateTest):
    """A VM without a guest, whose memory has a pattern"""

    def vm(self, *args: str, ram: str = RAM) -> UpdatedVM:
        """A VM with room for DIMMs; it is not started yet."""
        vm = self.bare(*args, ram=ram)
        at = vm.qemu.command.index('-m')
        vm.qemu.command[at + 1] += ',slots=2,maxmem=1G'
        return vm

    def in_folder(self, vm: UpdatedVM) -> None:
        """Give a VM memory in a file without a name."""
        at = vm.qemu.command.index(f'{RAM},id=ram,size=256M')
        vm.qemu.command[at] = (f'memory-backend-file,share=on,mem-path='
                               f'{FOLDER},id=ram,size=256M')

    @staticmethod
    def write(vm: UpdatedVM, name: str, place: int) -> None:
        """Write the pattern to the file of a memory backend."""
        for entry in Path(f'/proc/{vm.qemu.pid}/fd').iterdir():
            if f'qemu_back_mem.{name}.' in os.readlink(entry):
                with open(entry, 'r+b', buffering=0) as memory:
                    memory.seek(place)
                    memory.write(PATTERN.encode('ascii'))
                return
        raise AssertionError(f'there is no file of {name}')

    @staticmethod
    def read(vm: UpdatedVM, address: int) -> str:
        """Read guest memory."""
        dump = vm.folder / 'dump'
        with vm.qemu.monitor() as monitor:
            monitor.cmd('pmemsave', val=address, size=len(PATTERN),
                        filename=str(dump))
        return dump.read_bytes().decode('ascii')

    def assert_refused(self, vm: UpdatedVM, *words: str) -> None:
        """The dry run and the update must give a reason."""
        vm.assert_refuses(*words)
        vm.assert_fails(1, *words)


class Kinds(MemoryTest):
    """Kinds of memory"""

    def test_folder(self) -> None:
        """Memory in a folder is copied, also with aux-ram-share=on."""
        for auxiliary in 'off', 'on':
            vm = self.vm('-machine', f'aux-ram-share={auxiliary}')
            self.in_folder(vm)
            self.start_paused(vm)
            self.write(vm, 'ram', PLACE)
            for _ in range(2):
                outcome = vm.assert_runs()
                self.assertEqual(outcome.result['mode'], COPY)
                self.assertIn(FOLDER, outcome.said('memory'))
                self.assertEqual(self.read(vm, PLACE), PATTERN)
            vm.close()

    def test_file_and_folder(self) -> None:
        """There is no way for a DIMM in a folder beside a named file."""
        vm = self.vm(ram=IGNORE_SHARED)
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('object-add', qom_type='memory-backend-file',
                        id='more', size=128 << 20, share=True,
                        mem_path=FOLDER)
            monitor.cmd('device_add', driver='pc-dimm', id='dimm',
                        memdev='more')
        self.assert_refused(vm, "'more'", "'ram'", IGNORE_SHARED)

    def test_file_and_memfd(self) -> None:
        """A DIMM that is a memfd is copied, beside a named file."""
        vm = self.vm(
            '-object', 'memory-backend-memfd,id=more,size=128M,share=on',
            '-device', 'pc-dimm,id=dimm,memdev=more', ram=IGNORE_SHARED)
        self.start_paused(vm)
        outcome = vm.assert_runs()
        self.assertEqual(outcome.result['mode'], IGNORE_SHARED)
        for words in f"'ram' stays in '{vm.memory}'", "'more' is copied":
            self.assertIn(words, outcome.said('memory'))

    def test_read_only(self) -> None:
        """A read-only NVDIMM: private memory cannot be received."""
        for share, is_possible in ('off', False), ('on', True):
            vm = self.vm(ram=IGNORE_SHARED)
            image = make_disk(str(vm.folder / 'image'), 128)
            Path(image).write_bytes(os.urandom(4096) + bytes((128 << 20)
                                                             - 4096))
            vm.qemu.command += [
                '-machine', 'nvdimm=on', '-object', 'memory-backend-file,'
                f'id=rom,mem-path={image},size=128M,readonly=on,share={share}',
                '-device', 'nvdimm,id=nv,memdev=rom,unarmed=on']
            self.start_paused(vm)
            if is_possible:
                self.assertEqual(vm.assert_runs().result['mode'],
                                 IGNORE_SHARED)
            else:
                self.assert_refused(vm, "'rom'", 'share=on')
            vm.close()

    def test_other_file(self) -> None:
        """The given command line has another file than the VM."""
        vm = self.vm(ram=IGNORE_SHARED)
        self.start_paused(vm)
        other = make_disk(f'{vm.memory}-other', 256)
        vm.assert_fails(1, str(vm.memory), other, command=[
            word.replace(str(vm.memory), other) for word in vm.qemu.command])

    def test_other_memory(self) -> None:
        """The given command line has memory of another kind."""
        vm = self.vm()
        self.start_paused(vm)
        vm.assert_fails(1, "'ram'", 'share=on', command=[
            word + ',share=on' if word.startswith(RAM) else word
            for word in vm.qemu.command])

    def test_lost(self) -> None:
        """If memory is lost, both QEMUs stay, and a person has to look."""
        vm = self.vm()
        self.start_paused(vm)
        old = vm.qemu.pid
        outcome = vm.tool(fault=(
            'verify', 'from qemu.live_update import update\n'
            'update.lost = lambda *_: "lacks the memory \'ram\'"')).end()
        self.assertEqual(outcome.status, 3, outcome)
        self.assertIn("'ram'", outcome.message)
        new, = vm.new_qemus()
        self.assertIn(str(new), outcome.message)
        self.assertEqual(vm.qemu.pid, old)
        # The user keeps the new QEMU.
        vm.assert_runs()
        self.assertEqual(vm.qemu.pid, new)


class Processes(MemoryTest):
    """What the new QEMU cannot have of the old one's process"""

    def test_parent(self) -> None:
        """A QEMU that ends with its parent would end with live-update."""
        vm = self.vm()
        vm.qemu.drop('-daemonize')
        command = list(vm.qemu.command)
        vm.qemu.command += ['-run-with', 'exit-with-parent=on']
        self.start_paused(vm)
        self.assert_refused(vm, 'exit-with-parent')
        vm.assert_runs(command=command)

    def test_recorded(self) -> None:
        """A recording would be begun anew."""
        vm = self.vm()
        record = vm.folder / 'record'
        vm.qemu.command += [
            '-icount', f'shift=7,rr=record,rrfile={record}']
        self.start_paused(vm)
        record.write_text('recorded', 'ascii')
        self.assert_refused(vm, 'record')
        self.assertEqual(record.read_text('ascii'), 'recorded')

    def test_changes_root(self) -> None:
        """A QEMU with another root folder cannot reach sockets."""
        if os.getuid() != 0:
            self.skipTest('only root can change the root folder')
        vm = self.vm()
        root = vm.folder / 'root'
        root.mkdir()
        vm.qemu.command += ['-run-with', f'chroot={root}']
        self.start_paused(vm)
        self.assert_refused(vm, 'chroot', str(root))

    def start_with_private_image(self, option: str, value: str
                                 ) -> Tuple[UpdatedVM, str]:
        """
        Start a VM whose user cannot enter the folder of its image.

        @param option: creates the disk
        @param value: of the option, without the path at its end
        """
        if os.getuid() != 0:
            self.skipTest('only root can change the user')
        vm = self.vm()
        vm.folder.chmod(0o711)
        vm.qemu.folder.chmod(0o711)
        private = vm.folder / 'private'
        private.mkdir(mode=0o700)
        image = make_disk(str(private / 'image'))
        vm.qemu.command += [
            '-run-with', f'user={NOBODY}:{NOBODY}', '-device',
            'virtio-blk-pci,drive=d', option, value + image]
        self.start_paused(vm)
        return vm, image

    def test_cannot_open(self) -> None:
        """The user of the VM cannot open the image again, or the folder."""
        vm, image = self.start_with_private_image(
            '-drive', 'if=none,id=d,format=raw,file=')
        self.assert_refused(vm, image, str(NOBODY))
        Path(image).parent.chmod(0o711)
        self.assert_refused(vm, image, str(NOBODY))
        os.chown(image, NOBODY, NOBODY)
        vm.qemu.folder.chmod(0o700)
        self.assert_refused(vm, f"cannot enter '{vm.qemu.folder}'")
        vm.qemu.folder.chmod(0o711)
        vm.assert_runs()

    def test_opened_once(self) -> None:
        """QEMU does not open a file of -blockdev again."""
        vm, _ = self.start_with_private_image(
            '-blockdev', 'driver=raw,node-name=d,file.driver=file,'
            'file.filename=')
        vm.assert_runs()


if __name__ == '__main__':
    main()
