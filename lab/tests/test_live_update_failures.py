# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/live-update fails without harm

Whatever goes wrong: the VM runs on, the user is told what to do, nothing is
left behind, and the next update succeeds.
"""
import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from qemu.live_update.monitor import ANSWER
from qemu.live_update.process import find

from lab import STOCK_OBJ
from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.monitor import Monitor
from lab.machines.tool import PREFIX, STOP, TOOL, Tool
from lab.machines.updated_vm import State, UpdatedVM
from lab.machines.vm import MEMFD
from lab.machines.watch import wait_for

from .live_update_case import NOBODY, RAM, LiveUpdateTest
from .testcase import main

# A program that answers as a QEMU would that knows of nothing.
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


class LiveUpdateRefused(LiveUpdateTest):
    """Updates that are refused before anything is changed"""

    @staticmethod
    def start_paused(vm: UpdatedVM, *args: str, **options: Any) -> None:
        """Start a VM without a guest, so that nothing changes in it."""
        vm.qemu.start(*args, **options)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('stop')

    def assert_bare_refused(self, vm: UpdatedVM, *words: str) -> None:
        """An update of a VM without a guest is refused."""
        before = vm.state()
        for options in ('--dry-run',), ():
            outcome = vm.run(*options)
            self.assertEqual(outcome.status, 1, outcome)
            for word in words:
                self.assertIn(word, outcome.message)
            self.assertEqual(vm.state(), before)

    # The new QEMU

    def test_binary(self) -> None:
        """What is given as the new QEMU is none, or one that will not do."""
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
        """Nor can a QEMU without it hand the disk over."""
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
        """The new QEMU does nothing, at first or in the end."""
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
        """What is given after "--" has other devices."""
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
            vm.assert_fails(1, 'word', command=['-S', 'a', 'word'])
            vm.assert_updates()

    def test_other_memory(self) -> None:
        """What is given after "--" has other memory, or disks."""
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
        """Options that a second QEMU cannot be given."""
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
        """A VM whose terminal is that of its user."""
        vm = self.bare()
        for option in '-daemonize', '-nodefaults', '-serial':
            vm.qemu.drop(option)
        self.start_paused(vm, '-nographic')
        self.assert_bare_refused(vm, '-nographic')

    # The monitor

    def test_monitor(self) -> None:
        """It is not there, is no monitor, or talks with somebody else."""
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
            # A socket where nobody speaks, and a monitor that is busy.
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
        """A VM that does not run, or not yet, or not here."""
        vm = self.bare()
        vm.qemu.start('-incoming', 'defer')
        self.assert_bare_refused(vm, 'inmigrate')
        vm.close()
        vm = self.bare()
        vm.qemu.start('-S')
        self.assert_bare_refused(vm, 'prelaunch')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('migrate', uri=f'file:{vm.folder}/state')
            wait_for('it is migrated', lambda: monitor.cmd('query-status')[
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
        """A vhost-user device that takes no part."""
        vm = self.updated_vm()
        daemon = vm.daemon('other')
        vm.qemu.command += [
            '-chardev', f'socket,id=other,path={daemon.path}', '-device',
            'vhost-user-test-device-pci,id=other,chardev=other,virtio-id=2,'
            'num_vqs=1,config_size=60']
        vm.boot()
        vm.assert_fails(1, "'other'", 'vhost-user-test-device')

    def test_backend_away(self) -> None:
        """A back-end that is not there cannot be handed over."""
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

    # Memory

    def test_other_image(self) -> None:
        """A drive whose image is not that of the command line any more."""
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
        """The file that is memory was removed, or replaced, or will be."""
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

    def assert_updates_bare(self, vm: UpdatedVM, **options: Any) -> None:
        """An update of a VM without a guest succeeds."""
        old = vm.qemu.pid
        outcome = vm.run(**options)
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['old-pid'], old)
        self.assertNotEqual(vm.qemu.pid, old)

    # The file system

    def test_long_path(self) -> None:
        """A socket whose path would become too long."""
        vm = self.bare()
        folder = vm.qemu.folder / ('x' * (95 - len(str(vm.qemu.folder))))
        folder.mkdir()
        self.start_paused(vm, '-monitor',
                          f'unix:{folder}/sock,server=on,wait=off')
        self.assert_bare_refused(vm, 'too long', str(folder))

    def test_permissions(self) -> None:
        """Somebody who may not, and somebody who may not write."""
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
        # The folder cannot be written to.
        vm.qemu.folder.chmod(0o500)
        vm.assert_fails(1, str(vm.qemu.folder), **as_user)
        vm.qemu.folder.chmod(0o700)
        if as_user:
            # Sockets and their folders may be used by all, the VM not.
            for path in vm.folder, vm.qemu.folder, Path(vm.qemu.qmp):
                path.chmod(0o777)
            vm.assert_fails(1, 'run this as', user=1234, group=1234,
                            extra_groups=[])
            Path(vm.qemu.qmp).chmod(0o700)
            vm.assert_fails(1, 'Permission denied', user=1234,
                            group=1234, extra_groups=[])
            # By root: for the VM's user.
            vm.assert_updates()
            status = os.stat(f'/proc/{vm.qemu.pid}')
            self.assertEqual(status.st_uid, user)
        vm.assert_updates(**as_user)
        vm.stop_load()


class LiveUpdateFailures(LiveUpdateTest):
    """Updates that come to a bad end in the middle"""

    def events(self, vm: UpdatedVM) -> List[str]:
        """Update once; what events are there, in order?"""
        return [event['name'] for event in vm.assert_updates().events
                if 'name' in event]

    def check_signals(self, vm: UpdatedVM) -> None:
        """SIGINT or SIGTERM at each event."""
        names = self.events(vm)
        for number, name in enumerate(names):
            with self.subTest(name):
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                self.assertTrue(tool.wait_for(name))
                tool.send((signal.SIGINT, signal.SIGTERM)[number % 2])
                outcome = tool.end()
                if name == 'VM':
                    self.assertIn('interrupted', outcome.message)
                vm.assert_survived(before, old, outcome)
        vm.assert_updates()

    def test_signals(self) -> None:
        """Ctrl-C at each step."""
        with self.shared() as vm:
            self.check_signals(vm)

    def test_signals_cpr(self) -> None:
        """The same where the new QEMU is given the memory."""
        vm = self.updated_vm(ram=CPR).boot()
        self.check_signals(vm)
        vm.stop_load()

    def test_random_signals(self) -> None:
        """Ctrl-C, twice, at random moments."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        with self.shared() as vm:
            begin = time.monotonic()
            vm.assert_updates()
            length = time.monotonic() - begin
            for _ in range(8):
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                assert tool.next()
                for _ in range(2):
                    time.sleep(moments.uniform(0, length / 2))
                    tool.send(signal.SIGINT)
                with self.subTest(f'seed {seed}'):
                    vm.assert_survived(before, old, tool.end())
            vm.assert_updates()

    def test_interrupted_early(self) -> None:
        """Ctrl-C before anything is said."""
        with self.shared() as vm:
            for pause in 0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3:
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                time.sleep(pause)
                tool.send(signal.SIGINT)
                outcome = tool.end_early()
                if outcome:
                    vm.assert_survived(before, old, outcome)
                self.assertTrue(outcome or vm.state() == before)
            vm.assert_updates()

    # The tool is killed

    def check_tool_killed(self, vm: UpdatedVM) -> None:
        """SIGKILL of the tool at each event: the next one completes it."""
        for name in self.events(vm):
            with self.subTest(name):
                before = vm.state()
                tool = vm.tool()
                self.assertTrue(tool.wait_for(name))
                tool.kill()
                vm.assert_completes(before)
        vm.assert_updates()

    def test_tool_killed(self) -> None:
        """SIGKILL of the tool at each step."""
        with self.shared() as vm:
            self.check_tool_killed(vm)

    def test_tool_killed_at_random(self) -> None:
        """SIGKILL of the tool at random moments, with copied memory."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        vm = self.updated_vm(ram=MEMFD).boot()
        begin = time.monotonic()
        vm.assert_updates()
        length = time.monotonic() - begin
        for _ in range(6):
            before = vm.state()
            tool = vm.tool()
            time.sleep(moments.uniform(0, length))
            tool.kill()
            with self.subTest(f'seed {seed}'):
                vm.assert_completes(before)
        with self.subTest(f'seed {seed}'):
            vm.stop_load()

    def test_tool_killed_in_stream(self) -> None:
        """SIGKILL of the tool when the VM is on its way."""
        vm = self.updated_vm(ram=MEMFD).boot()
        for _ in range(4):
            before = vm.state()
            with self.streaming(vm) as tool:
                tool.kill()
            vm.assert_completes(before)
        vm.stop_load()

    # The back-end dies

    def test_backend_dies(self) -> None:
        """Whichever QEMU has the VM then connects to the next back-end."""
        vm = self.updated_vm(chardev=',reconnect-ms=100').boot()
        vm.stop_load()
        backend = vm.disks[0].backend
        for moment in 'd0', 'start', 'migrate', 'names':
            with self.subTest(moment):
                old = vm.qemu.pid
                tool = vm.tool()
                self.assertTrue(tool.wait_for(moment))
                backend.kill()
                outcome = tool.end()
                self.assertIn(outcome.status, (0, 1, 2), outcome)
                backend.start()
                if vm.qemu.pid != old:
                    vm.qemu.connect()
                vm.start_load()
                vm.check_alive()
                vm.assert_updates()
                vm.stop_load()

    # The new QEMU is killed, or does not answer

    @contextlib.contextmanager
    def streaming(self, vm: UpdatedVM, *options: str) -> Iterator[Tool]:
        """An update whose old QEMU has connected to the new one."""
        tool = vm.tool(*options)
        try:
            connected = '03'

            def is_connected() -> bool:
                with open('/proc/net/unix', encoding='utf-8') as sockets:
                    return any(
                        words[5] == connected and len(words) > 7 and
                        words[7].endswith('/migration') and
                        words[7].startswith(str(vm.qemu.folder))
                        for words in map(str.split, sockets))

            self.assertTrue(tool.wait_for('start'))
            while not is_connected():
                pass
            yield tool
        finally:
            tool.close()

    def test_killed_at_start(self) -> None:
        """The new QEMU is killed when it waits for the VM."""
        with self.shared() as vm:
            before = vm.state()
            tool = vm.tool()
            self.assertTrue(tool.wait_for('start'))
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            vm.assert_unchanged(before, outcome, outcome.status,
                                'the new QEMU')
            vm.assert_updates()

    def assert_private(self, vm: UpdatedVM) -> None:
        """Others cannot get at the sockets that the new QEMU has made."""
        sockets = {}
        for folder in vm.qemu.folder.glob(f'{PREFIX}*'):
            self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
            for file in filter(Path.is_socket, folder.iterdir()):
                sockets[file.name] = file.stat().st_mode & 0o777
        self.assertIn('migration', sockets)
        self.assertIn(Path(vm.qemu.qmp).name, sockets)
        self.assertEqual(set(sockets.values()), {0o600}, sockets)

    def test_killed_in_stream(self) -> None:
        """The new QEMU is killed when it has got a part of the VM."""
        vm = self.updated_vm(ram=MEMFD).boot()
        before = vm.state()
        with self.streaming(vm) as tool:
            self.assert_private(vm)
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
        vm.assert_unchanged(before, outcome, 2,
                            'the VM runs on in the old QEMU')

        # It does not read: the clock ends that, or Ctrl-C.
        for options, number in (('--timeout', '6'), 0), ((), signal.SIGINT):
            before = vm.state()
            with self.streaming(vm, *options) as tool:
                for pid in vm.new_qemus():
                    os.kill(pid, signal.SIGSTOP)
                if number:
                    tool.send(number)
                outcome = tool.end()
            vm.assert_unchanged(before, outcome, 2,
                                'the VM runs on in the old QEMU')
        vm.assert_updates()
        vm.stop_load()

    def test_stopped_at_start(self) -> None:
        """The new QEMU stops to answer when it waits for the VM."""
        for mode in IGNORE_SHARED, CPR:
            vm = self.updated_vm(ram=mode).boot()
            before = vm.state()
            tool = vm.tool('--timeout', '5')
            self.assertTrue(tool.wait_for('start'))
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGSTOP)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            vm.assert_unchanged(before, outcome, outcome.status)
            vm.assert_updates()
            vm.stop_load()
            vm.close()

    def test_two_at_a_time(self) -> None:
        """Two updates of a VM at a time: one is refused, or comes later."""
        with self.shared() as vm:
            before = vm.state()
            tools = [vm.tool() for _ in range(3)]
            outcomes = [tool.end() for tool in tools]
            self.assertIn(0, [outcome.status for outcome in outcomes])
            for outcome in outcomes:
                self.assertIn(outcome.status, (0, 1), outcome)
            vm.assert_completes(before)


class LiveUpdateAccidents(LiveUpdateTest):
    """What other programs and people do meanwhile, to VMs without a guest"""

    def started(self, *args: str, paused: bool = False, **options: Any
                ) -> UpdatedVM:
        """A VM with a second monitor."""
        vm = self.bare(*args, **options)
        vm.qemu.command += [
            '-qmp', f'unix:{vm.qemu.folder}/second.sock,server=on,wait=off']
        vm.qemu.start()
        if paused:
            self.second(vm, 'stop')
        return vm

    @staticmethod
    def second(vm: UpdatedVM, command: str, folder: str = '.') -> Any:
        """Have the second monitor of the old or new QEMU do something."""
        path, = vm.qemu.folder.glob(f'{folder}/second.sock')
        with Monitor(str(path)) as monitor:
            return monitor.cmd(command)

    @contextlib.contextmanager
    def cut(self, vm: UpdatedVM, name: str, *ends: str) -> Iterator[Tool]:
        """An update that waits after an event; then a QEMU or it may end."""
        old = vm.qemu.pid
        tool = vm.tool(fault=(name, STOP))
        with tool.stopped(name):
            if 'new' in ends:
                for pid in find(str(vm.folder)):
                    if pid not in (old, tool.pid):
                        os.kill(pid, signal.SIGKILL)
                wait_for('it ends', lambda: set(find(str(vm.folder))) <=
                         {old, tool.pid})
            if 'tool' in ends:
                tool.kill()
            yield tool

    def assert_updates_bare(self, vm: UpdatedVM, before: Optional[State] = None
                            ) -> None:
        """An update succeeds, and changes nothing."""
        before = before or vm.state()
        outcome = vm.run()
        self.assertEqual(outcome.status, 0, outcome)
        after = vm.state()
        self.assertEqual(after.status, before.status)
        self.assertEqual(set(after.pids), {vm.qemu.pid})
        self.assertEqual(outcome.result['pid'], vm.qemu.pid)
        after.assert_same(before)

    # Two VMs

    def test_neighbour(self) -> None:
        """What an update of one VM has left is nothing to another VM."""
        vm = self.started()
        other = str(vm.qemu.folder / 'other.sock')
        subprocess.run([re.sub(r'(agent|records|second)\.sock', r'other-\1',
                               re.sub(r'(qmp|vm)\.(sock|pid)', r'other.\2',
                                      word))
                        for word in vm.qemu.command], check=True)
        pid_file = vm.qemu.folder / 'other.pid'

        def tool(*fault: str) -> Tool:
            qmp, vm.qemu.qmp = vm.qemu.qmp, other
            try:
                return vm.tool(fault=fault)
            finally:
                vm.qemu.qmp = qmp

        # One is under way.
        slow = tool('start', STOP)
        with slow.stopped('start'):
            self.assertEqual(vm.run().status, 0)
        self.assertEqual(slow.end().status, 0)
        # One was cut off.
        cut = tool('verify', STOP)
        with cut.stopped('verify'):
            cut.kill()
        before = vm.processes()
        first = vm.qemu.pid
        self.assertEqual(vm.run().status, 0)
        self.assertEqual(set(before) - set(vm.processes()), {first})
        self.assertIn('earlier', [event.get('name')
                                  for event in tool().end().events])
        self.assertEqual(set(vm.processes()), {
            vm.qemu.pid, int(pid_file.read_text('ascii'))})
        self.assertEqual(list(vm.qemu.folder.glob(f'{PREFIX}*')), [])

    # The tool

    def test_settings(self) -> None:
        """What the update has set is not left to the new QEMU."""
        vm = self.started(ram=IGNORE_SHARED)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('migrate-set-parameters', max_bandwidth=1 << 20)
            monitor.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'events', 'state': True}])
        self.assert_updates_bare(vm)
        # Nor if the tool was killed, wherever the VM is then.
        for name in 'start', 'verify':
            before = vm.state()
            with self.cut(vm, name, 'tool'):
                pass
            self.assert_updates_bare(vm, before)

    def test_nobody_listens(self) -> None:
        """Its output cannot be written."""
        vm = self.started()
        command = [TOOL, '--qmp', vm.qemu.qmp, '--binary', str(vm.binary)]
        for options in (), ('--json',):
            for output in 'closed', '/dev/full':
                old = vm.qemu.pid
                with contextlib.ExitStack() as stack:
                    out: Any = subprocess.PIPE
                    if output != 'closed':
                        out = stack.enter_context(open(output, 'wb'))
                    process = stack.enter_context(subprocess.Popen(
                        [*command, *options], stdout=out,
                        stderr=subprocess.PIPE))
                    if process.stdout:
                        process.stdout.close()
                    assert process.stderr
                    self.assertEqual(process.stderr.read(), b'')
                self.assertEqual(process.returncode, 0)
                self.assertEqual(set(vm.processes()), {vm.qemu.pid})
                self.assertNotEqual(vm.qemu.pid, old)

    def test_faults(self) -> None:
        """It is broken."""
        vm = self.started(paused=True)
        fault = 'raise ValueError("broken")'
        for name, status in ('start', 1), ('names', 3), ('end', 3):
            with self.subTest(name):
                before = vm.state()
                outcome = vm.tool(fault=(name, fault)).end('ValueError')
                self.assertEqual(outcome.status, status, outcome)
                self.assertIn('broken', outcome.message)
                if status == 1:
                    self.assertEqual(vm.state(), before)
                else:
                    self.assertIn('same command again', outcome.message)
                self.assert_updates_bare(vm, before)

    def test_killed_with_child(self) -> None:
        """It is killed when it has a child that becomes the new QEMU."""
        vm = self.started()
        before = vm.state()
        tool = vm.tool(fault=(
            'binary', 'resource.setrlimit = lambda *_: time.sleep(0.05)'))
        self.assertTrue(tool.wait_for('binary'))
        wait_for('it is there', lambda: list(
            vm.qemu.folder.glob(f'{PREFIX}*/old')) and
            Path(f'/proc/{tool.pid}/task/{tool.pid}/children').read_text(
                'ascii'))
        tool.kill()
        self.assert_updates_bare(vm, before)

    # The new QEMU

    def test_new_ends(self) -> None:
        """It ends when it has got the VM, which was paused."""
        vm = self.started(paused=True)
        for name in 'verify', 'names':
            before = vm.state()
            with self.cut(vm, name, 'new') as tool:
                pass
            outcome = tool.end()
            self.assertEqual(outcome.status, 2, outcome)
            self.assertIn('paused, as before, in the old', outcome.message)
            after = vm.state()
            self.assertEqual((after.status, after.pids),
                             (before.status, before.pids))
            after.assert_same(before)
            with self.cut(vm, name, 'new', 'tool'):
                pass
            self.assert_updates_bare(vm, before)

    def test_new_ends_running(self) -> None:
        """It ends when it has run the VM: nothing can bring it back."""
        for name in 'verify', 'names', 'end':
            vm = self.started()
            with self.cut(vm, name, 'new') as tool:
                pass
            self.assertEqual(tool.end().status, 3)
            vm.close()

    def test_new_cannot_start(self) -> None:
        """It gets the VM, but not the images."""
        image = make_disk(self.scope.path('disk'))
        write = 201                     # QEMU's lock: nobody else may write
        vm = self.started('-drive', f'if=virtio,format=raw,file={image}')
        for ends in (), ('tool',):
            before = vm.state()
            with open(image, 'rb') as file:
                fcntl.lockf(file, fcntl.LOCK_SH, 1, write)
                with self.cut(vm, 'migrate', *ends) as tool:
                    wait_for('it is over', lambda: self.second(
                        vm, 'query-migrate', f'{PREFIX}*').get('status')
                        == 'completed')
            begin = time.monotonic()
            outcome = vm.run() if ends else tool.end()
            self.assertLess(time.monotonic() - begin, 30)
            if not ends:
                self.assertIn('cannot start it', outcome.message)
            self.assertEqual(outcome.status, 0 if ends else 2, outcome)
            self.assert_updates_bare(vm, before)

    # People

    def test_stopped_meanwhile(self) -> None:
        """The VM is stopped through another monitor."""
        vm = self.started()
        with self.cut(vm, 'start') as tool:
            self.second(vm, 'stop')
        self.assertEqual(tool.end().status, 0)
        self.assertEqual(vm.status(), 'paused')

    def test_stopped_in_stream(self) -> None:
        """The same, and then the update fails: it stays stopped."""
        vm = self.started()
        tool = vm.tool(fault=('start', 'from qemu.live_update import update'
                              '; update.SENDER["max-bandwidth"] = 4096'))
        self.assertTrue(tool.wait_for('start'))
        wait_for('it is on its way', lambda: self.second(
            vm, 'query-migrate').get('status') == 'active')
        self.second(vm, 'stop')
        for pid in vm.new_qemus():
            os.kill(pid, signal.SIGKILL)
        outcome = tool.end()
        self.assertEqual(outcome.status, 2, outcome)
        self.assertEqual(vm.status(), 'paused')
        self.assert_updates_bare(vm)

    def test_busy_monitor(self) -> None:
        """Nobody has to wait for a monitor longer than he wants to."""
        vm = self.started()
        with vm.qemu.monitor():
            begin = time.monotonic()
            self.assertEqual(vm.run('--timeout', '1').status, 1)
            tool = vm.tool()
            wait_for('it waits', lambda: any(
                vm.qemu.qmp in line and line.split()[5] == '03'
                for line in Path('/proc/net/unix').read_text(
                    'utf-8').splitlines()))
            tool.send(signal.SIGINT)
            tool.end_early()
            self.assertLess(time.monotonic() - begin, ANSWER)

    # The file system

    def test_other_way(self) -> None:
        """The monitor is named through another folder."""
        vm = self.started()
        link = vm.folder / 'link'
        link.symlink_to(vm.qemu.folder)
        qmp = vm.qemu.qmp
        vm.qemu.qmp = str(link / 'qmp.sock')
        self.assert_updates_bare(vm)
        with self.cut(vm, 'verify', 'tool'):
            pass
        vm.qemu.qmp = qmp
        self.assertEqual(vm.run().said('earlier')[:17],
                         'an earlier update')
        self.assertEqual(set(vm.processes()), {vm.qemu.pid})

    def test_report(self) -> None:
        """A report that cannot be written is known before the result."""
        vm = self.started()
        outcome = vm.run('--dry-run', '--report', str(vm.qemu.folder))
        self.assertEqual(outcome.status, 0)
        self.assertIn('cannot be written', outcome.said('report'))

    @unittest.skipUnless(os.geteuid() == 0, 'needs root')
    def test_changes_user(self) -> None:
        """The old QEMU is another user than the new one begins as."""
        vm = self.bare('-run-with', 'user=nobody', ram=CPR)
        for path in vm.folder, vm.qemu.folder:
            path.chmod(0o711)
        vm.qemu.start()
        outcome = vm.run()
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['mode'], CPR)
        self.assertEqual(os.stat(f'/proc/{vm.qemu.pid}').st_uid, NOBODY)


if __name__ == '__main__':
    main()
