# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of how live-update finds a way for guest memory, and checks the result

They are unit tests: no QEMU is needed.
"""
import asyncio
import itertools
import math
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List, Optional, cast

from qemu.live_update.error import Refused
from qemu.live_update.host.process import FileRange, Mapping, Process
from qemu.live_update.host.room import (check_huge_pages, check_room,
                                        free_memory, group_room)
from qemu.live_update.monitor import MonitorError
from qemu.live_update.vm.cmdline import CommandLine
from qemu.live_update.vm.memory import (COPY, CPR, IGNORE_SHARED, Mode,
                                        choose_mode, lost, skips_all_shared)
from qemu.live_update.vm.ram import RamBlock, ram_blocks

SIZE = 1 << 20
FILE, MEMFD, PLAIN = ('memory-backend-file', 'memory-backend-memfd',
                      'memory-backend-ram')


class FakeMonitor:
    """
    Answers as the monitor of a QEMU.

    objects: properties of the memory backends, with their type "kind"
    blocks: the answer of "info ramblock"
    in_use: the memory backends of memory devices
    """
    def __init__(self) -> None:
        self.objects: Dict[str, Dict[str, Any]] = {}
        self.blocks = 'Block Name  PSize  Offset  Used  Total  HVA  RO\n'
        self.in_use: List[str] = []
        self.aux_ram_share = False
        self.version = 10, 2

    async def children(self, _: str) -> Dict[str, str]:
        """The memory backends."""
        return {name: item['kind'] for name, item in self.objects.items()}

    async def get(self, path: str, name: str) -> Any:
        """A property."""
        if path == '/machine':
            return self.aux_ram_share
        return self.objects[path.rpartition('/')[2]].get(name)

    async def ask(self, command: str, **_: Any) -> Any:
        """A command."""
        if command == 'human-monitor-command':
            return self.blocks
        if command == 'query-memory-devices':
            return [{'data': {'memdev': f'/objects/{name}'}}
                    for name in self.in_use]
        if command == 'query-version':
            return {'qemu': dict(zip(('major', 'minor'), self.version))}
        raise MonitorError(command)


class FakeProcess:
    """A QEMU process, with these mappings"""
    folder = '/'
    memory = SIZE

    def __init__(self) -> None:
        self.mapped: List[Mapping] = []

    def mappings(self) -> List[Mapping]:
        """Its mappings."""
        return self.mapped

    @staticmethod
    def file_of(mapping: Mapping) -> Optional[FileRange]:
        """The file of a mapping."""
        return mapping.file

    @staticmethod
    def cgroup() -> None:
        """It has no control group."""


class FakeVM:
    """
    A VM whose memory backends are added one by one.

    options: of the new QEMU
    """
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.monitor = FakeMonitor()
        self.process = FakeProcess()
        self.options: List[str] = []
        self._numbers = itertools.count(1)

    def path(self, name: str) -> str:
        """The path of a file with this name."""
        return os.path.join(self.folder, name)

    def add(self, name: str, kind: str, path: str = '', share: bool = True,
            **more: Any) -> None:
        """
        Add a memory backend that is mapped as QEMU does it.

        @param path: of its file or folder
        """
        self.monitor.objects[name] = {'kind': kind, 'share': share,
                                      'mem-path': path, **more}
        self.options += ['-object', f'{kind},id={name},mem-path={path}']
        is_named = bool(path) and not Path(path).is_dir()
        file: Optional[FileRange] = None
        if is_named:
            Path(path).touch()
            status = os.stat(path)
            file = FileRange(status.st_dev, status.st_ino, 0)
        elif share:
            file = FileRange(1, next(self._numbers), 0)
        begin = next(self._numbers) * SIZE
        self.process.mapped.append(Mapping(
            begin, begin + SIZE, share, not more.get('readonly'), file,
            path, is_named))

    def add_block(self, name: str, is_told: bool = True) -> None:
        """
        Make a RAM block of the latest mapping.

        @param is_told: does QEMU tell its address?  Older ones do not.
        """
        place = f'{self.process.mapped[-1].begin:#018x}  rw' \
            if is_told else ''
        self.monitor.blocks += \
            f'{name:>24}    4 KiB  0x0 {SIZE:#x} {SIZE:#x} {place}\r\n'

    def choose(self, skips_all: bool = False) -> Mode:
        """The way that is chosen."""
        return asyncio.run(choose_mode(
            cast(Any, self.monitor), cast(Any, self.process),
            CommandLine.parse(self.options), skips_all))


class Ways(unittest.TestCase):
    """The way of memory follows from what each RAM block is"""

    def setUp(self) -> None:
        # pylint: disable-next=consider-using-with
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def vm(self, *backend: Any, is_told: bool = True, **more: Any) -> FakeVM:
        """A VM with one memory backend; a VM with none."""
        vm = FakeVM(self.folder)
        if backend:
            vm.add(*backend, **more)
            vm.add_block(backend[0], is_told)
        return vm

    def assert_refused(self, vm: FakeVM, *words: str, skips_all: bool = False
                       ) -> None:
        """There must be no way, for a reason with these words."""
        with self.assertRaises(Refused) as caught:
            vm.choose(skips_all)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_same_file(self) -> None:
        """A named file stays where it is."""
        for is_told in False, True:
            vm = self.vm('ram', FILE, self.folder + '/ram', is_told=is_told)
            self.assertEqual(vm.choose().name, IGNORE_SHARED)

    def test_folder(self) -> None:
        """A file without a name is copied, also with aux-ram-share=on."""
        for is_told in False, True:
            vm = self.vm('ram', FILE, self.folder, is_told=is_told)
            for vm.monitor.aux_ram_share in False, True:
                way = vm.choose()
                self.assertEqual(way.name, COPY)
                self.assertIn(self.folder, way.reason)

    def test_file_and_folder(self) -> None:
        """There is no way that is right for both."""
        vm = self.vm('ram', FILE, self.folder + '/ram')
        vm.add('more', FILE, self.folder)
        vm.add_block('more')
        self.assert_refused(vm, "'ram'", "'more'", IGNORE_SHARED)

    def test_file_and_others(self) -> None:
        """Memory beside a file is copied, and each backend is named."""
        vm = self.vm('ram', FILE, self.folder + '/ram')
        vm.add('private', PLAIN, share=False)
        vm.add_block('private')
        way = vm.choose(skips_all=True)
        self.assertEqual(way.name, IGNORE_SHARED)
        self.assertEqual([words.split()[:3] for words in way.blocks],
                         [["'ram'", 'stays', 'in'],
                          ["'private'", 'is', 'copied:']])
        vm.add('shared', MEMFD)
        vm.add_block('shared')
        self.assertEqual(vm.choose().name, IGNORE_SHARED)
        self.assert_refused(vm, "'shared'", skips_all=True)

    def test_handed_over(self) -> None:
        """All memory must be shared for its descriptors to be passed."""
        vm = self.vm('ram', MEMFD)
        self.assertEqual(vm.choose().name, COPY)
        vm.monitor.aux_ram_share = True
        self.assertEqual(vm.choose().name, CPR)
        vm.add('unused', PLAIN, share=False)
        vm.add_block('0000:00:01.0/vga.vram')
        self.assertIn('vga.vram', vm.choose().reason)

    def test_mapping_counts(self) -> None:
        """A block that is mapped as private is private."""
        vm = self.vm('ram', MEMFD, share=False)
        vm.monitor.aux_ram_share = vm.monitor.objects['ram']['share'] = True
        self.assertEqual(vm.choose().name, COPY)

    def test_names(self) -> None:
        """The block of a device's memory has the place of the device, too."""
        vm = self.vm()
        vm.add('shm', FILE, vm.path('shm'))
        vm.add_block('0000:00:02.0/shm')
        self.assertEqual(vm.choose().name, IGNORE_SHARED)

    def test_private_file(self) -> None:
        """A private file is copied, unless the new QEMU cannot write it."""
        path = self.folder + '/file'
        vm = self.vm('ram', FILE, path, share=False)
        self.assertEqual(vm.choose().name, COPY)
        for is_told in False, True:
            self.assert_refused(self.vm(
                'rom', FILE, path, share=False, readonly=True,
                is_told=is_told), "'rom'", 'readonly=on')
            self.assertEqual(self.vm(
                'rom', FILE, path, readonly=True, is_told=is_told
                ).choose().name, IGNORE_SHARED)

    def test_other_file(self) -> None:
        """The new QEMU would open another file than the VM has."""
        vm = self.vm('ram', FILE, self.folder + '/ram')
        Path(vm.path('other')).touch()
        for other in vm.path('other'), self.folder:
            vm.options = ['-object', f'{FILE},id=ram,mem-path={other}']
            self.assert_refused(vm, vm.path('ram'), f"'{other}'")

    def test_replaced_file(self) -> None:
        """The file has been removed, or replaced."""
        vm = self.vm('ram', FILE, self.folder + '/ram')
        path = Path(vm.path('ram'))
        path.rename(vm.path('moved'))
        self.assert_refused(vm, str(path), 'not there')
        path.touch()
        self.assert_refused(vm, str(path), 'replaced')

    def test_not_migrated(self) -> None:
        """QEMU does not migrate memory of virtio-pmem: it must be a file."""
        vm = self.vm('ram', PLAIN, share=False)
        vm.add('folder', FILE, self.folder)
        vm.add('private', FILE, vm.path('private'), share=False)
        vm.add('rom', FILE, vm.path('rom'), share=False, readonly=True)
        vm.add('file', FILE, vm.path('file'))
        self.assertEqual(vm.choose().name, COPY)        # no device has them
        for name in 'folder', 'private':
            vm.monitor.in_use = [name]
            self.assert_refused(vm, f"'{name}'", 'not migrate')
        vm.monitor.in_use = ['file', 'rom']
        self.assertEqual(vm.choose().name, COPY)

    def test_versions(self) -> None:
        """QEMU 8.1 and later skip only files with x-ignore-shared."""
        monitor = FakeMonitor()
        for monitor.version, expected in (
                ((7, 2), True), ((8, 0), True), ((8, 1), False),
                ((10, 0), False)):
            self.assertEqual(asyncio.run(skips_all_shared(
                cast(Any, monitor))), expected)


class Compared(unittest.TestCase):
    """The memory of the new QEMU is compared with that of the VM"""

    @staticmethod
    def block(name: str, inode: int, size: int = SIZE, page_size: int = 4096,
              is_shared: bool = True, is_named: bool = False) -> RamBlock:
        """A RAM block with a file."""
        file = FileRange(1, inode, 0)
        return RamBlock(name, size, page_size, Mapping(
            0, size, is_shared, True, file, f'/file{inode}', is_named), file)

    def test_names_and_sizes(self) -> None:
        """Each block is there, with its size and pages, and no other one."""
        old = [self.block('a', 1), self.block('b', 2)]
        new = [self.block('a', 3), self.block('b', 4)]
        self.assertIsNone(lost(COPY, old, new))
        for wrong in ([new[0]], [*new, self.block('c', 5)],
                      [new[0], self.block('b', 4, size=2 * SIZE)],
                      [new[0], self.block('b', 4, page_size=2 << 20)],
                      [new[0], self.block('b', 4, is_shared=False)]):
            self.assertRegex(str(lost(COPY, old, wrong)), "'[bc]'")

    def test_files(self) -> None:
        """The file is the same if, and only if, memory is not copied."""
        for mode, is_named, is_same in (
                (CPR, False, True), (IGNORE_SHARED, True, True),
                (IGNORE_SHARED, False, False), (COPY, False, False),
                (COPY, True, False)):
            old, same, other = (self.block('a', inode, is_named=is_named)
                                for inode in (1, 1, 2))
            right, wrong = (same, other) if is_same else (other, same)
            self.assertIsNone(lost(mode, [old], [right]))
            self.assertIn("'a'", str(lost(mode, [old], [wrong])))

    def test_unknown(self) -> None:
        """An older QEMU does not tell where a block is."""
        old = RamBlock('a', SIZE, 4096)
        self.assertIsNone(lost(COPY, [old], [self.block('a', 1)]))


class Mapped(unittest.TestCase):
    """What the kernel and QEMU tell of memory"""

    def test_lines(self) -> None:
        """Lines of /proc/PID/maps."""
        self.assertEqual(
            Mapping.parse('7f00-7f10 rw-s 00001000 00:1b 77 /a b (deleted)'),
            Mapping(0x7f00, 0x7f10, True, True,
                    FileRange(os.makedev(0, 0x1b), 77, 4096), '/a b', False))
        self.assertEqual(
            Mapping.parse('7f00-7f10 r--p 00000000 00:00 0 \n'),
            Mapping(0x7f00, 0x7f10, False, False, None, '', True))

    def test_blocks(self) -> None:
        """Blocks without a name are left out; pages have units."""
        monitor = FakeMonitor()
        monitor.blocks += (
            '  ram    2 MiB  0x0 0x400000 0x800000 0x00007f0000000000  rw\r\n'
            '         4 KiB  0x0 0x400000 0x400000 0x00007f1000000000  rw\r\n'
            '  a/b    1 GiB  0x0 0x400000 0x400000\r\n')
        self.assertEqual(
            asyncio.run(ram_blocks(cast(Any, monitor),
                                   cast(Any, FakeProcess()))),
            [RamBlock('ram', 0x800000, 2 << 20),
             RamBlock('a/b', 0x400000, 1 << 30)])

    def test_own_file(self) -> None:
        """The file of a mapping of this process."""
        process = Process(os.getpid())
        self.addCleanup(process.close)
        status = os.stat('/proc/self/exe')
        self.assertIn((status.st_dev, status.st_ino), {
            (file.device, file.inode)
            for file in map(process.file_of, process.mappings()) if file})


class Room(unittest.TestCase):
    """Memory that a second QEMU can get"""

    def test_host(self) -> None:
        """What can be swapped counts."""
        self.assertEqual(free_memory(
            'MemTotal: 9 kB\nMemAvailable:  2 kB\nSwapFree: 1 kB\n'), 3072)

    def test_none(self) -> None:
        """A copy of more than there is is refused."""
        process = FakeProcess()
        for process.memory, is_refused in (1, False), (1 << 60, True):
            if is_refused:
                with self.assertRaisesRegex(Refused, 'MiB'):
                    check_room(cast(Any, process), 1 << 60, 'why')
            else:
                self.assertIn('MiB', check_room(cast(Any, process), 1 << 60,
                                                'why'))

    def test_group(self) -> None:
        """All groups that a process is in have their limits."""
        with tempfile.TemporaryDirectory() as name:
            top = Path(name)
            inner = top / 'machine/vm'
            inner.mkdir(parents=True)
            self.assertEqual(group_room(inner, top), math.inf)
            for folder, limit in (inner, 'max'), (inner.parent, '5000'):
                (folder / 'memory.max').write_text(f'{limit}\n', 'ascii')
                (folder / 'memory.stat').write_text(
                    'anon 1000\nfile 700\nshmem 500\n', 'ascii')
            self.assertEqual(group_room(inner, top), 3500)
            (inner / 'memory.max').write_text('1600\n', 'ascii')
            self.assertEqual(group_room(inner, top), 100)

    def test_huge_pages(self) -> None:
        """A copy of huge pages takes huge pages."""
        with tempfile.TemporaryDirectory() as name:
            top = Path(name)
            check_huge_pages(4096, 1 << 60, 'ram', top)
            folder = top / 'hugepages-2048kB'
            folder.mkdir()
            for file, number in (('free_hugepages', 5), ('resv_hugepages', 2),
                                 ('nr_overcommit_hugepages', 1),
                                 ('surplus_hugepages', 0)):
                (folder / file).write_text(f'{number}\n', 'ascii')
            check_huge_pages(2 << 20, 8 << 20, 'ram', top)
            with self.assertRaisesRegex(Refused, "'ram'.* 5 huge pages"):
                check_huge_pages(2 << 20, 10 << 20, 'ram', top)


if __name__ == '__main__':
    unittest.main()
