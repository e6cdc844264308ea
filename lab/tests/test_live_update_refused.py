# SPDX-License-Identifier: GPL-2.0-or-later
"""
live-update refuses an update that cannot succeed

The VM is unchanged, the user is told what to do, and the next update succeeds.
"""
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict

from lab import STOCK_OBJ
from lab.machines.backend import make_disk
from lab.machines.chain import IGNORE_SHARED
from lab.machines.updated_vm import UpdatedVM
from lab.machines.watch import wait_for

from .live_update_case import NOBODY, RAM, LiveUpdateTest
from .testcase import main

# A program with a QMP monitor that answers each command with an empty list.
IMPOSTOR = '''#!/usr/bin/python3
import json, re, socket, sys
fd = re.search(r',fd=(\\d+)', ' '.join(sys.argv))
monitor = socket.socket(fileno=int(fd[1]))
monitor.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\\n')
while True:
    command = json.loads(monitor.recv(65536))
    answer = {'return': [], 'id': command.get('id')}
    monitor.sendall(json.dumps(answer).encode() + b'\\n')
'''


class Refused(LiveUpdateTest):
    """Updates that are refused before anything is changed"""

    def assert_bare_refused(self, vm: UpdatedVM, *words: str) -> None:
        """An update of a VM without a guest must be refused."""
        before = vm.state()
        for options in ('--dry-run',), ():
            outcome = vm.run(*options)
            self.assertEqual(outcome.status, 1, outcome)
            for word in words:
                self.assertIn(word, outcome.message)
            self.assertEqual(vm.state(), before)

    def assert_updates_bare(self, vm: UpdatedVM, **options: Any) -> None:
        """An update of a VM without a guest must succeed."""
        old = vm.qemu.pid
        outcome = vm.run(**options)
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['old-pid'], old)
        self.assertNotEqual(vm.qemu.pid, old)

    # The new QEMU

    def test_binary(self) -> None:
        """The given binary is not a QEMU, or cannot be used."""
        with self.shared() as vm:
            vm.assert_fails(1, 'no-such', binary=vm.folder /
                            'no-such')
            vm.assert_fails(1, 'is not a program', binary=__file__)
            vm.assert_fails(1, 'cannot run', binary=vm.folder)
            vm.assert_fails(1, 'does not answer as a QEMU',
                            binary='/bin/true')
            script = vm.wrap('')
            script.write_text('no program at all', 'ascii')
            vm.assert_fails(1, str(script), binary=script)
            script.write_text(IMPOSTOR, 'ascii')
            vm.assert_fails(1, 'does not know the machine',
                            binary=script)
            vm.assert_updates()

    def test_stock(self) -> None:
        """A QEMU without backend-transfer cannot take the disk over."""
        stock = STOCK_OBJ / 'qemu-system-x86_64'
        if not stock.exists():
            self.skipTest('stock QEMU is not built')
        with self.shared() as vm:
            vm.assert_fails(1, 'd0', 'backend-transfer',
                            binary=stock)
            vm.assert_updates()

    def test_stock_runs(self) -> None:
        """A QEMU without backend-transfer cannot hand the disk over."""
        stock = STOCK_OBJ / 'qemu-system-x86_64'
        if not stock.exists():
            self.skipTest('stock QEMU is not built')
        vm = self.updated_vm()
        vm.qemu.command[0] = str(stock)
        vm.boot()
        vm.assert_fails(1, 'd0', 'backend-transfer')
        vm.stop_load()

    def test_does_not_start(self) -> None:
        """The new QEMU ends before it waits for the VM."""
        with self.shared() as vm:
            options = ['--timeout', '20']
            vm.assert_fails(1, 'no-such-option', options=options,
                            command=[*vm.qemu.command, '-no-such-option'])
            vm.assert_fails(1, 'does not start', options=options,
                            command=[*vm.qemu.command, '-version'])
            for script in ('waits && { echo It is broken. >&2; exit 3; }',
                           'waits && exit 0', 'waits && kill -9 $$'):
                vm.assert_fails(1, 'does not start', options=options,
                                binary=vm.wrap(script + '\nexec $qemu "$@"'))
            vm.assert_updates()

    def test_hangs(self) -> None:
        """The new QEMU hangs in the probe, or when it should wait for a VM."""
        with self.shared() as vm:
            for script in ('exec sleep 1000', 'waits && exec sleep 1000',
                           'waits && exec sleep 1000 <&-; kill -STOP $$'):
                begin = time.monotonic()
                vm.assert_fails(1, options=['--timeout', '2'],
                                binary=vm.wrap(script + '\nexec $qemu "$@"'))
                self.assertLess(time.monotonic() - begin, 30)
            vm.assert_updates()

    # The command line

    def test_other_devices(self) -> None:
        """The command line after "--" has other devices."""
        with self.shared() as vm:
            line = vm.qemu.command
            at = line.index('vhost-user-blk-pci,id=d0,chardev=c-d0')
            vm.assert_fails(1, "'d0'",
                            command=line[:at - 1] + line[at + 1:])
            vm.assert_fails(1, 'virtio-rng', command=[*line, '-device',
                                                      'virtio-rng-pci'])
            vm.assert_fails(1, "'d0'", command=[
                    *line[:at], line[at] + ',addr=9', *line[at + 1:]])
            vm.assert_fails(1, 'monitor', command=[
                word.replace('qmp.sock', 'other.sock') for word in line])
            vm.assert_fails(1, 'monitor', command=['-S', 'a', 'word'])
            vm.assert_updates()

    def test_other_memory(self) -> None:
        """The command line after "--" has other memory, or disk options."""
        with self.shared() as vm:
            line = ' '.join(vm.qemu.command)
            disk = 'chardev=c-d0'
            for old, new in (('256M', '128M'),
                             (disk, f'{disk},num-queues=2'),
                             (disk, f'{disk},queue-size=64'),
                             (disk, f'{disk},config-wce=off'),
                             ('-m 256M', '-m 256M -smp 2')):
                before = vm.state()
                outcome = vm.run(command=[
                    word.replace('\0', ' ') for word in
                    self.joined(vm).replace(old, new).split(' ')])
                self.assertIn(old, line)
                self.assertIn(outcome.status, (1, 2))
                vm.assert_unchanged(before, outcome, outcome.status)
            vm.assert_updates()

    @staticmethod
    def joined(vm: UpdatedVM) -> str:
        """The VM's command line, in one string."""
        return ' '.join(word.replace(' ', '\0') for word in vm.qemu.command)

    def test_options(self) -> None:
        """Options that a second QEMU cannot have."""
        config = self.scope.folder / 'config'
        config.touch()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.scope.path('listener'))
            listener.listen()
            for args, word in (
                    (['-snapshot'], '-snapshot'),
                    (['-serial', 'stdio'], 'stdio'),
                    (['-chardev', 'stdio,id=s'], 'stdio'),
                    (['-add-fd', f'fd={listener.fileno()},set=1'], '-add-fd'),
                    (['-chardev', 'socket,id=s,server=on,'
                      f'fd={listener.fileno()}'],
                     'file descriptor'),
                    (['-readconfig', str(config)], '-readconfig'),
                    (['-netdev', 'stream,id=n,server=on,addr.type=unix,'
                      f'addr.path={self.scope.path("net")}'], 'listens')):
                vm = self.bare(*args)
                vm.qemu.drop('-daemonize')
                self.start_paused(vm, pass_fds=[listener.fileno()])
                self.assert_bare_refused(vm, word)
                vm.close()

    def test_terminal(self) -> None:
        """A VM that uses the terminal in which it was started."""
        vm = self.bare()
        for option in '-daemonize', '-nodefaults', '-serial':
            vm.qemu.drop(option)
        self.start_paused(vm, '-nographic')
        self.assert_bare_refused(vm, '-nographic')

    # The monitor

    def test_monitor(self) -> None:
        """The path is not a monitor, or the monitor has another client."""
        with self.shared() as vm:
            qmp = vm.qemu.qmp
            before = vm.state()
            other = vm.folder / 'other.sock'
            for path, word in ((str(vm.folder / 'no-such'), 'no-such'),
                               (str(vm.qemu.pid_file), 'vm.pid'),
                               (str(vm.folder), 'connect'),
                               ('x' * 200, 'x' * 200), ('', "''"),
                               (str(vm.disks[0].backend.path) + '.no',
                                'connect')):
                vm.qemu.qmp = path
                outcome = vm.run()
                vm.qemu.qmp = qmp
                vm.assert_unchanged(before, outcome, 1, word)
            # A server that does not answer, and a monitor that is busy.
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(other))
                listener.listen()
                before = vm.state()
                with vm.qemu.monitor():
                    busy = vm.tool()
                    vm.qemu.qmp = str(other)
                    silent = vm.tool()
                    vm.qemu.qmp = qmp
                    outcomes = busy.end(), silent.end()
            for outcome in outcomes:
                vm.assert_unchanged(before, outcome, 1,
                                    'one client at a time')
            vm.assert_updates()

    # The VM

    def test_states(self) -> None:
        """A VM that waits for a migration, has not run, or has migrated."""
        vm = self.bare()
        vm.qemu.start('-incoming', 'defer')
        self.assert_bare_refused(vm, 'inmigrate')
        vm.close()
        vm = self.bare()
        vm.qemu.start('-S')
        self.assert_bare_refused(vm, 'prelaunch')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('migrate', uri=f'file:{vm.folder}/state')
            wait_for('migration ends', lambda: monitor.cmd('query-status')[
                'status'] == 'postmigrate')
        self.assert_bare_refused(vm, 'postmigrate')

    def test_under_way(self) -> None:
        """A VM that is being migrated."""
        vm = self.bare()
        self.start_paused(vm)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(vm.folder / 'elsewhere'))
            listener.listen()
            with vm.qemu.monitor() as monitor:
                monitor.cmd('migrate', uri=f'unix:{vm.folder}/elsewhere')
            self.assert_bare_refused(vm, 'is being migrated')

    def test_blocked(self) -> None:
        """A VM with a device that cannot be migrated."""
        vm = self.bare('-device', 'amd-iommu')
        self.start_paused(vm)
        self.assert_bare_refused(vm, 'migrat')

    def test_other_vhost_user_device(self) -> None:
        """A vhost-user device without backend-transfer."""
        vm = self.updated_vm()
        daemon = vm.daemon('other')
        vm.qemu.command += [
            '-chardev', f'socket,id=other,path={daemon.path}', '-device',
            'vhost-user-test-device-pci,id=other,chardev=other,virtio-id=2,'
            'num_vqs=1,config_size=60']
        vm.boot()
        vm.assert_fails(1, "'other'", 'vhost-user-test-device')

    def test_backend_away(self) -> None:
        """A disk without a connection cannot be handed over."""
        vm = self.updated_vm(chardev=',reconnect-ms=100').boot()
        disk, = vm.disks
        vm.stop_load()
        disk.backend.kill()
        with vm.qemu.monitor() as monitor:
            disk.wait_connected(monitor, False)
        vm.assert_fails(1, "'d0'", 'start the back-end first')
        disk.backend.start()
        with vm.qemu.monitor() as monitor:
            disk.wait_connected(monitor)
        vm.start_load()
        vm.assert_updates()
        vm.stop_load()

    def test_opts_out(self) -> None:
        """A disk with backend-transfer=off needs a back-end of its own."""
        vm = self.updated_vm(options=',backend-transfer=off').boot()
        before = vm.state()
        outcome = vm.run()
        self.assertIn('backend-transfer=off', outcome.said('d0'))
        vm.assert_unchanged(before, outcome, outcome.status)
        self.assertIn(outcome.status, (1, 2))
        self.assertIn('c-d0', outcome.message)
        vm.stop_load()

    # Images and memory

    def test_other_image(self) -> None:
        """A drive has another image than on the command line."""
        images = [make_disk(self.scope.path(name)) for name in ('disk', 'cd')]
        vm = self.bare(
            '-drive', f'if=none,id=disk,format=raw,file={images[0]}',
            '-device', 'virtio-blk-pci,id=disk,drive=disk', '-drive',
            f'if=none,id=cd,media=cdrom,format=raw,file={images[1]}',
            '-device', 'ide-cd,id=cd,drive=cd')
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('eject', id='cd', force=True)
        before = vm.state()
        vm.assert_unchanged(before, vm.run(), 1, "'cd'", 'none',
                            images[1])
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-change-medium', id='cd', format='raw',
                        filename=images[1])
        self.assert_updates_bare(vm)
        overlay = self.scope.path('overlay')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-snapshot-sync', device='disk',
                        snapshot_file=overlay, format='qcow2')
        before = vm.state()
        vm.assert_unchanged(before, vm.run(), 1, overlay)
        self.assert_updates_bare(vm, command=[
            word.replace(f'format=raw,file={images[0]}', f'file={overlay}')
            for word in vm.qemu.command])

    def test_memory_file(self) -> None:
        """The file with memory was removed or replaced, or is discarded."""
        vm = self.bare(ram=IGNORE_SHARED)
        self.start_paused(vm)
        vm.memory.rename(f'{vm.memory}-moved')
        self.assert_bare_refused(vm, str(vm.memory), 'not there')
        make_disk(str(vm.memory), 256)
        self.assert_bare_refused(vm, str(vm.memory), 'replaced')
        Path(f'{vm.memory}-moved').rename(vm.memory)
        self.assert_updates_bare(vm)
        vm.close()

        vm = self.bare()
        backend = vm.qemu.command.index(f'{RAM},id=ram,size=256M')
        vm.qemu.command[backend] = (
            'memory-backend-file,share=on,discard-data=on,'
            f'mem-path={vm.memory},id=ram,size=256M')
        self.start_paused(vm)
        self.assert_bare_refused(vm, 'discard-data')

    # The file system

    def test_long_path(self) -> None:
        """A socket whose private path would be too long."""
        vm = self.bare()
        folder = vm.qemu.folder / ('x' * (95 - len(str(vm.qemu.folder))))
        folder.mkdir()
        self.start_paused(vm, '-monitor',
                          f'unix:{folder}/sock,server=on,wait=off')
        self.assert_bare_refused(vm, 'too long', str(folder))

    def test_permissions(self) -> None:
        """live-update runs as another user, or may not write the folder."""
        vm = self.updated_vm()
        user = os.getuid()
        as_user: Dict[str, Any] = {}
        if user == 0:
            user = NOBODY
            as_user = {'user': user, 'group': user, 'extra_groups': []}
        for file in [vm.folder, *vm.folder.rglob('*')]:
            os.chown(file, user, -1, follow_symlinks=False)
        vm.qemu.start(**as_user)
        vm.qemu.connect()
        vm.guest.wait_booted()
        vm.start_load()
        # Nobody may write to the folder.
        vm.qemu.folder.chmod(0o500)
        vm.assert_fails(1, str(vm.qemu.folder), **as_user)
        vm.qemu.folder.chmod(0o700)
        if as_user:
            # All users may use the socket, but not the VM's process.
            for path in vm.folder, vm.qemu.folder, Path(vm.qemu.qmp):
                path.chmod(0o777)
            vm.assert_fails(1, 'run this as', user=1234, group=1234,
                            extra_groups=[])
            Path(vm.qemu.qmp).chmod(0o700)
            vm.assert_fails(1, 'Permission denied', user=1234,
                            group=1234, extra_groups=[])
            # root starts the new QEMU as the VM's user.
            vm.assert_updates()
            status = os.stat(f'/proc/{vm.qemu.pid}')
            self.assertEqual(status.st_uid, user)
        vm.assert_updates(**as_user)
        vm.stop_load()


if __name__ == '__main__':
    main()
