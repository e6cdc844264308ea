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
from lab.machines.server_vm import Monitor
from lab.machines.watch import wait_for

from .live_update_case import (RAM, STOP, TOOL, LiveUpdateTest, Outcome, Scene,
                               State, Tool)
from .testcase import main

MEMFD = 'memory-backend-memfd,share=on'
NOBODY = 65534
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
    def start_paused(scene: Scene, *args: str, **options: Any) -> None:
        """Start a VM without a guest, so that nothing changes in it."""
        scene.vm.start(*args, **options)
        with scene.vm.monitor() as monitor:
            monitor.cmd('stop')

    def assert_bare_refused(self, scene: Scene, *words: str) -> None:
        """An update of a VM without a guest is refused."""
        before = scene.state()
        for options in ('--dry-run',), ():
            outcome = scene.run(*options)
            self.assertEqual(outcome.status, 1, outcome)
            for word in words:
                self.assertIn(word, outcome.message)
            self.assertEqual(scene.state(), before)

    # The new QEMU

    def test_binary(self) -> None:
        """What is given as the new QEMU is none, or one that will not do."""
        with self.shared() as scene:
            self.assert_fails(scene, 1, 'no-such', binary=scene.folder /
                              'no-such')
            self.assert_fails(scene, 1, 'is not a program', binary=__file__)
            self.assert_fails(scene, 1, 'cannot run', binary=scene.folder)
            self.assert_fails(scene, 1, 'does not answer as a QEMU',
                              binary='/bin/true')
            script = scene.wrap('')
            script.write_text('no program at all', 'ascii')
            self.assert_fails(scene, 1, str(script), binary=script)
            script.write_text(IMPOSTOR, 'ascii')
            self.assert_fails(scene, 1, 'does not know the machine',
                              binary=script)
            self.assert_updates(scene)

    def test_stock(self) -> None:
        """A QEMU without backend-transfer cannot take the disk over."""
        stock = STOCK_OBJ / 'qemu-system-x86_64'
        if not stock.exists():
            self.skipTest('stock QEMU is not built')
        with self.shared() as scene:
            self.assert_fails(scene, 1, 'd0', 'backend-transfer',
                              binary=stock)
            self.assert_updates(scene)

    def test_stock_runs(self) -> None:
        """Nor can a QEMU without it hand the disk over."""
        stock = STOCK_OBJ / 'qemu-system-x86_64'
        if not stock.exists():
            self.skipTest('stock QEMU is not built')
        scene = self.scene()
        scene.vm.command[0] = str(stock)
        scene.boot()
        self.assert_fails(scene, 1, 'd0', 'backend-transfer')
        scene.stop_load()

    def test_does_not_start(self) -> None:
        """The new QEMU ends before it waits for the VM."""
        with self.shared() as scene:
            options = ['--timeout', '20']
            self.assert_fails(scene, 1, 'no-such-option', options=options,
                              command=[*scene.vm.command, '-no-such-option'])
            self.assert_fails(
                scene, 1, 'does not start', options=options,
                command=[*scene.vm.command, '-version'])
            for script in ('waits && { echo It is broken. >&2; exit 3; }',
                           'waits && exit 0', 'waits && kill -9 $$'):
                self.assert_fails(
                    scene, 1, 'does not start', options=options,
                    binary=scene.wrap(script + '\nexec $qemu "$@"'))
            self.assert_updates(scene)

    def test_hangs(self) -> None:
        """The new QEMU does nothing, at first or in the end."""
        with self.shared() as scene:
            for script in ('exec sleep 1000', 'waits && exec sleep 1000',
                           'waits && exec sleep 1000 <&-; kill -STOP $$'):
                begin = time.monotonic()
                self.assert_fails(
                    scene, 1, options=['--timeout', '2'],
                    binary=scene.wrap(script + '\nexec $qemu "$@"'))
                self.assertLess(time.monotonic() - begin, 30)
            self.assert_updates(scene)

    # The command line

    def test_other_devices(self) -> None:
        """What is given after "--" has other devices."""
        with self.shared() as scene:
            line = scene.vm.command
            at = line.index('vhost-user-blk-pci,id=d0,chardev=c-d0')
            self.assert_fails(scene, 1, "'d0'",
                              command=line[:at - 1] + line[at + 1:])
            self.assert_fails(
                scene, 1, 'virtio-rng', command=[*line, '-device',
                                                 'virtio-rng-pci'])
            self.assert_fails(
                scene, 1, "'d0'", command=[
                    *line[:at], line[at] + ',addr=9', *line[at + 1:]])
            self.assert_fails(scene, 1, 'monitor', command=[
                word.replace('qmp.sock', 'other.sock') for word in line])
            self.assert_fails(scene, 1, 'word', command=['-S', 'a', 'word'])
            self.assert_updates(scene)

    def test_other_memory(self) -> None:
        """What is given after "--" has other memory, or disks."""
        with self.shared() as scene:
            line = ' '.join(scene.vm.command)
            disk = 'chardev=c-d0'
            for old, new in (('256M', '128M'),
                             (disk, f'{disk},num-queues=2'),
                             (disk, f'{disk},queue-size=64'),
                             (disk, f'{disk},config-wce=off'),
                             ('-m 256M', '-m 256M -smp 2')):
                before = scene.state()
                outcome = scene.run(command=[
                    word.replace('\0', ' ') for word in
                    self.joined(scene).replace(old, new).split(' ')])
                self.assertIn(old, line)
                self.assertIn(outcome.status, (1, 2))
                self.assert_unchanged(scene, before, outcome, outcome.status)
            self.assert_updates(scene)

    @staticmethod
    def joined(scene: Scene) -> str:
        """The VM's command line, in one string."""
        return ' '.join(word.replace(' ', '\0') for word in scene.vm.command)

    def test_options(self) -> None:
        """Options that a second QEMU cannot be given."""
        with socket.socket(socket.AF_UNIX) as listener, \
                open(self.path('config'), 'w', encoding='ascii') as config:
            listener.bind(self.path('listener'))
            listener.listen()
            for args, word in (
                    (['-snapshot'], '-snapshot'),
                    (['-serial', 'stdio'], 'stdio'),
                    (['-chardev', 'stdio,id=s'], 'stdio'),
                    (['-add-fd', f'fd={listener.fileno()},set=1'], '-add-fd'),
                    (['-chardev', 'socket,id=s,server=on,'
                      f'fd={listener.fileno()}'],
                     'file descriptor'),
                    (['-readconfig', config.name], '-readconfig'),
                    (['-netdev', 'stream,id=n,server=on,addr.type=unix,'
                      f'addr.path={self.path("net")}'], 'listens')):
                scene = self.bare(*args)
                scene.vm.drop('-daemonize')
                self.start_paused(scene, pass_fds=[listener.fileno()])
                self.assert_bare_refused(scene, word)
                scene.close()

    def test_terminal(self) -> None:
        """A VM whose terminal is that of its user."""
        scene = self.bare()
        for option in '-daemonize', '-nodefaults', '-serial':
            scene.vm.drop(option)
        self.start_paused(scene, '-nographic')
        self.assert_bare_refused(scene, '-nographic')

    # The monitor

    def test_monitor(self) -> None:
        """It is not there, is no monitor, or talks with somebody else."""
        with self.shared() as scene:
            qmp = scene.vm.qmp
            before = scene.state()
            other = scene.folder / 'other.sock'
            for path, word in ((str(scene.folder / 'no-such'), 'no-such'),
                               (str(scene.vm.pid_file), 'vm.pid'),
                               (str(scene.folder), 'connect'),
                               ('x' * 200, 'x' * 200), ('', "''"),
                               (str(scene.disks[0].backend.path) + '.no',
                                'connect')):
                scene.vm.qmp = path
                outcome = scene.run()
                scene.vm.qmp = qmp
                self.assert_unchanged(scene, before, outcome, 1, word)
            # A socket where nobody speaks, and a monitor that is busy.
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(other))
                listener.listen()
                before = scene.state()
                with scene.vm.monitor():
                    busy = scene.tool()
                    scene.vm.qmp = str(other)
                    silent = scene.tool()
                    scene.vm.qmp = qmp
                    outcomes = busy.end(), silent.end()
            for outcome in outcomes:
                self.assert_unchanged(scene, before, outcome, 1,
                                      'one client at a time')
            self.assert_updates(scene)

    # The VM

    def test_states(self) -> None:
        """A VM that does not run, or not yet, or not here."""
        scene = self.bare()
        scene.vm.start('-incoming', 'defer')
        self.assert_bare_refused(scene, 'inmigrate')
        scene.close()
        scene = self.bare()
        scene.vm.start('-S')
        self.assert_bare_refused(scene, 'prelaunch')
        with scene.vm.monitor() as monitor:
            monitor.cmd('migrate', uri=f'file:{scene.folder}/state')
            wait_for('it is migrated', lambda: monitor.cmd('query-status')[
                'status'] == 'postmigrate')
        self.assert_bare_refused(scene, 'postmigrate')

    def test_under_way(self) -> None:
        """A VM that is being migrated."""
        scene = self.bare()
        self.start_paused(scene)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(scene.folder / 'elsewhere'))
            listener.listen()
            with scene.vm.monitor() as monitor:
                monitor.cmd('migrate', uri=f'unix:{scene.folder}/elsewhere')
            self.assert_bare_refused(scene, 'is being migrated')

    def test_blocked(self) -> None:
        """A VM with a device that cannot be migrated."""
        scene = self.bare('-device', 'amd-iommu')
        self.start_paused(scene)
        self.assert_bare_refused(scene, 'migrat')

    def test_other_vhost_user_device(self) -> None:
        """A vhost-user device that takes no part."""
        scene = self.scene()
        daemon = scene.daemon('other')
        self.addCleanup(daemon.__exit__, None, None, None)
        scene.vm.command += [
            '-chardev', f'socket,id=other,path={daemon.path}', '-device',
            'vhost-user-test-device-pci,id=other,chardev=other,virtio-id=2,'
            'num_vqs=1,config_size=60']
        scene.boot()
        self.assert_fails(scene, 1, "'other'", 'vhost-user-test-device')

    def test_backend_away(self) -> None:
        """A back-end that is not there cannot be handed over."""
        scene = self.scene(chardev=',reconnect-ms=100').boot()
        disk, = scene.disks
        scene.stop_load()
        disk.backend.kill()
        with scene.vm.monitor() as monitor:
            disk.wait_connected(monitor, False)
        self.assert_fails(scene, 1, "'d0'", 'start the back-end first')
        disk.backend.start()
        with scene.vm.monitor() as monitor:
            disk.wait_connected(monitor)
        scene.start_load()
        self.assert_updates(scene)
        scene.stop_load()

    def test_opts_out(self) -> None:
        """A disk with backend-transfer=off needs a back-end of its own."""
        scene = self.scene(options=',backend-transfer=off').boot()
        before = scene.state()
        outcome = scene.run()
        self.assertIn('backend-transfer=off', outcome.said('d0'))
        self.assert_unchanged(scene, before, outcome, outcome.status)
        self.assertIn(outcome.status, (1, 2))
        self.assertIn('c-d0', outcome.message)
        scene.stop_load()

    # Memory

    def test_other_image(self) -> None:
        """A drive whose image is not that of the command line any more."""
        images = [make_disk(self.path(name)) for name in ('disk', 'cd')]
        scene = self.bare(
            '-drive', f'if=none,id=disk,format=raw,file={images[0]}',
            '-device', 'virtio-blk-pci,id=disk,drive=disk', '-drive',
            f'if=none,id=cd,media=cdrom,format=raw,file={images[1]}',
            '-device', 'ide-cd,id=cd,drive=cd')
        self.start_paused(scene)
        with scene.vm.monitor() as monitor:
            monitor.cmd('eject', id='cd', force=True)
        before = scene.state()
        self.assert_unchanged(scene, before, scene.run(), 1, "'cd'", 'none',
                              images[1])
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-change-medium', id='cd', format='raw',
                        filename=images[1])
        self.assert_updates_bare(scene)
        overlay = self.path('overlay')
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-snapshot-sync', device='disk',
                        snapshot_file=overlay, format='qcow2')
        before = scene.state()
        self.assert_unchanged(scene, before, scene.run(), 1, overlay)
        self.assert_updates_bare(scene, command=[
            word.replace(f'format=raw,file={images[0]}', f'file={overlay}')
            for word in scene.vm.command])

    def test_memory_file(self) -> None:
        """The file that is memory was removed, or replaced, or will be."""
        scene = self.bare(ram=IGNORE_SHARED)
        self.start_paused(scene)
        scene.memory.rename(f'{scene.memory}-moved')
        self.assert_bare_refused(scene, str(scene.memory), 'not there')
        make_disk(str(scene.memory), 256)
        self.assert_bare_refused(scene, str(scene.memory), 'replaced')
        Path(f'{scene.memory}-moved').rename(scene.memory)
        self.assert_updates_bare(scene)
        scene.close()

        scene = self.bare()
        backend = scene.vm.command.index(f'{RAM},id=ram,size=256M')
        scene.vm.command[backend] = (
            'memory-backend-file,share=on,discard-data=on,'
            f'mem-path={scene.memory},id=ram,size=256M')
        self.start_paused(scene)
        self.assert_bare_refused(scene, 'discard-data')

    def assert_updates_bare(self, scene: Scene, **options: Any) -> None:
        """An update of a VM without a guest succeeds."""
        old = scene.vm.pid
        outcome = scene.run(**options)
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['old-pid'], old)
        self.assertNotEqual(scene.vm.pid, old)

    # The file system

    def test_long_path(self) -> None:
        """A socket whose path would become too long."""
        scene = self.bare()
        folder = scene.vm.folder / ('x' * (95 - len(str(scene.vm.folder))))
        folder.mkdir()
        self.start_paused(scene, '-monitor',
                          f'unix:{folder}/sock,server=on,wait=off')
        self.assert_bare_refused(scene, 'too long', str(folder))

    def test_permissions(self) -> None:
        """Somebody who may not, and somebody who may not write."""
        scene = self.scene()
        user = os.getuid()
        as_user: Dict[str, Any] = {}
        if user == 0:
            user = NOBODY
            as_user = {'user': user, 'group': user, 'extra_groups': []}
        for file in [scene.folder, *scene.folder.rglob('*')]:
            os.chown(file, user, -1, follow_symlinks=False)
        scene.vm.start(**as_user)
        scene.vm.connect()
        scene.guest.wait_booted()
        scene.start_load()
        # The folder cannot be written to.
        scene.vm.folder.chmod(0o500)
        self.assert_fails(scene, 1, str(scene.vm.folder), **as_user)
        scene.vm.folder.chmod(0o700)
        if as_user:
            # Sockets and their folders may be used by all, the VM not.
            for path in scene.folder, scene.vm.folder, Path(scene.vm.qmp):
                path.chmod(0o777)
            self.assert_fails(scene, 1, 'run this as', user=1234, group=1234,
                              extra_groups=[])
            Path(scene.vm.qmp).chmod(0o700)
            self.assert_fails(scene, 1, 'Permission denied', user=1234,
                              group=1234, extra_groups=[])
            # By root: for the VM's user.
            self.assert_updates(scene)
            status = os.stat(f'/proc/{scene.vm.pid}')
            self.assertEqual(status.st_uid, user)
        self.assert_updates(scene, **as_user)
        scene.stop_load()


class LiveUpdateFailures(LiveUpdateTest):
    """Updates that come to a bad end in the middle"""

    def assert_survived(self, scene: Scene, before: Any, old: int,
                        outcome: Outcome) -> None:
        """It must have ended in one of the ways in which the VM runs."""
        if outcome.status == 0:
            self.assert_updated(scene, before, old, outcome)
        else:
            self.assertIn(outcome.status, (1, 2), outcome)
            self.assert_unchanged(scene, before, outcome, outcome.status)

    def events(self, scene: Scene) -> List[str]:
        """Update once; what events are there, in order?"""
        return [event['name'] for event in self.assert_updates(scene).events
                if 'name' in event]

    def check_signals(self, scene: Scene) -> None:
        """SIGINT or SIGTERM at each event."""
        names = self.events(scene)
        for number, name in enumerate(names):
            with self.subTest(name):
                before, old = scene.state(), scene.vm.pid
                tool = scene.tool()
                self.assertTrue(tool.wait_for(name))
                tool.send((signal.SIGINT, signal.SIGTERM)[number % 2])
                outcome = tool.end()
                if name == 'VM':
                    self.assertIn('interrupted', outcome.message)
                self.assert_survived(scene, before, old, outcome)
        self.assert_updates(scene)

    def test_signals(self) -> None:
        """Ctrl-C at each step."""
        with self.shared() as scene:
            self.check_signals(scene)

    def test_signals_cpr(self) -> None:
        """The same where the new QEMU is given the memory."""
        scene = self.scene(ram=CPR).boot()
        self.check_signals(scene)
        scene.stop_load()

    def test_random_signals(self) -> None:
        """Ctrl-C, twice, at random moments."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        with self.shared() as scene:
            begin = time.monotonic()
            self.assert_updates(scene)
            length = time.monotonic() - begin
            for _ in range(8):
                before, old = scene.state(), scene.vm.pid
                tool = scene.tool()
                assert tool.next()
                for _ in range(2):
                    time.sleep(moments.uniform(0, length / 2))
                    tool.send(signal.SIGINT)
                with self.subTest(f'seed {seed}'):
                    self.assert_survived(scene, before, old, tool.end())
            self.assert_updates(scene)

    def test_interrupted_early(self) -> None:
        """Ctrl-C before anything is said."""
        with self.shared() as scene:
            for pause in 0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3:
                before, old = scene.state(), scene.vm.pid
                tool = scene.tool()
                time.sleep(pause)
                tool.send(signal.SIGINT)
                outcome = tool.end_early()
                if outcome:
                    self.assert_survived(scene, before, old, outcome)
                self.assertTrue(outcome or scene.state() == before)
            self.assert_updates(scene)

    # The tool is killed

    def check_tool_killed(self, scene: Scene) -> None:
        """SIGKILL of the tool at each event: the next one completes it."""
        for name in self.events(scene):
            with self.subTest(name):
                before = scene.state()
                tool = scene.tool()
                self.assertTrue(tool.wait_for(name))
                tool.kill()
                self.assert_completes(scene, before)
        self.assert_updates(scene)

    def assert_completes(self, scene: Scene, before: Any) -> None:
        """The same command again must succeed, and leave nothing behind."""
        outcome = scene.run()
        self.assertEqual(outcome.status, 0, outcome)
        scene.vm.connect()
        scene.check_alive()
        after = scene.state()
        backends = {disk.backend.pid for disk in scene.disks}
        self.assertEqual(set(after.pids), {scene.vm.pid, *backends},
                         after.pids)
        self.assertEqual(after.status, before.status)
        self.assert_same(after, before)

    def test_tool_killed(self) -> None:
        """SIGKILL of the tool at each step."""
        with self.shared() as scene:
            self.check_tool_killed(scene)

    def test_tool_killed_at_random(self) -> None:
        """SIGKILL of the tool at random moments, with copied memory."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        scene = self.scene(ram=MEMFD).boot()
        begin = time.monotonic()
        self.assert_updates(scene)
        length = time.monotonic() - begin
        for _ in range(6):
            before = scene.state()
            tool = scene.tool()
            time.sleep(moments.uniform(0, length))
            tool.kill()
            with self.subTest(f'seed {seed}'):
                self.assert_completes(scene, before)
        with self.subTest(f'seed {seed}'):
            scene.stop_load()

    def test_tool_killed_in_stream(self) -> None:
        """SIGKILL of the tool when the VM is on its way."""
        scene = self.scene(ram=MEMFD).boot()
        for _ in range(4):
            before = scene.state()
            with self.streaming(scene) as tool:
                tool.kill()
            self.assert_completes(scene, before)
        scene.stop_load()

    # The back-end dies

    def test_backend_dies(self) -> None:
        """Whichever QEMU has the VM then connects to the next back-end."""
        scene = self.scene(chardev=',reconnect-ms=100').boot()
        scene.stop_load()
        backend = scene.disks[0].backend
        for moment in 'd0', 'start', 'migrate', 'names':
            with self.subTest(moment):
                old = scene.vm.pid
                tool = scene.tool()
                self.assertTrue(tool.wait_for(moment))
                backend.kill()
                outcome = tool.end()
                self.assertIn(outcome.status, (0, 1, 2), outcome)
                backend.start()
                if scene.vm.pid != old:
                    scene.vm.connect()
                scene.start_load()
                scene.check_alive()
                self.assert_updates(scene)
                scene.stop_load()

    # The new QEMU is killed, or does not answer

    @contextlib.contextmanager
    def streaming(self, scene: Scene, *options: str) -> Iterator[Tool]:
        """An update whose old QEMU has connected to the new one."""
        tool = scene.tool(*options)
        try:
            connected = '03'

            def is_connected() -> bool:
                with open('/proc/net/unix', encoding='utf-8') as sockets:
                    return any(
                        words[5] == connected and len(words) > 7 and
                        words[7].endswith('/migration') and
                        words[7].startswith(str(scene.vm.folder))
                        for words in map(str.split, sockets))

            self.assertTrue(tool.wait_for('start'))
            while not is_connected():
                pass
            yield tool
        finally:
            tool.close()

    def test_killed_at_start(self) -> None:
        """The new QEMU is killed when it waits for the VM."""
        with self.shared() as scene:
            before = scene.state()
            tool = scene.tool()
            self.assertTrue(tool.wait_for('start'))
            for pid in scene.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            self.assert_unchanged(scene, before, outcome, outcome.status,
                                  'the new QEMU')
            self.assert_updates(scene)

    def assert_private(self, scene: Scene) -> None:
        """Others cannot get at the sockets that the new QEMU has made."""
        sockets = {}
        for folder in scene.vm.folder.glob('.live-update-*'):
            self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
            for file in filter(Path.is_socket, folder.iterdir()):
                sockets[file.name] = file.stat().st_mode & 0o777
        self.assertIn('migration', sockets)
        self.assertIn(Path(scene.vm.qmp).name, sockets)
        self.assertEqual(set(sockets.values()), {0o600}, sockets)

    def test_killed_in_stream(self) -> None:
        """The new QEMU is killed when it has got a part of the VM."""
        scene = self.scene(ram=MEMFD).boot()
        before = scene.state()
        with self.streaming(scene) as tool:
            self.assert_private(scene)
            for pid in scene.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
        self.assert_unchanged(scene, before, outcome, 2,
                              'the VM runs on in the old QEMU')

        # It does not read: the clock ends that, or Ctrl-C.
        for options, number in (('--timeout', '6'), 0), ((), signal.SIGINT):
            before = scene.state()
            with self.streaming(scene, *options) as tool:
                for pid in scene.new_qemus():
                    os.kill(pid, signal.SIGSTOP)
                if number:
                    tool.send(number)
                outcome = tool.end()
            self.assert_unchanged(scene, before, outcome, 2,
                                  'the VM runs on in the old QEMU')
        self.assert_updates(scene)
        scene.stop_load()

    def test_stopped_at_start(self) -> None:
        """The new QEMU stops to answer when it waits for the VM."""
        for mode in IGNORE_SHARED, CPR:
            scene = self.scene(ram=mode).boot()
            before = scene.state()
            tool = scene.tool('--timeout', '5')
            self.assertTrue(tool.wait_for('start'))
            for pid in scene.new_qemus():
                os.kill(pid, signal.SIGSTOP)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            self.assert_unchanged(scene, before, outcome, outcome.status)
            self.assert_updates(scene)
            scene.stop_load()
            scene.close()

    def test_two_at_a_time(self) -> None:
        """Two updates of a VM at a time: one is refused, or comes later."""
        with self.shared() as scene:
            before = scene.state()
            tools = [scene.tool() for _ in range(3)]
            outcomes = [tool.end() for tool in tools]
            self.assertIn(0, [outcome.status for outcome in outcomes])
            for outcome in outcomes:
                self.assertIn(outcome.status, (0, 1), outcome)
            self.assert_completes(scene, before)


class LiveUpdateAccidents(LiveUpdateTest):
    """What other programs and people do meanwhile, to VMs without a guest"""

    def started(self, *args: str, paused: bool = False, **options: Any
                ) -> Scene:
        """A VM with a second monitor."""
        scene = self.bare(*args, **options)
        scene.vm.command += [
            '-qmp', f'unix:{scene.vm.folder}/second.sock,server=on,wait=off']
        scene.vm.start()
        if paused:
            self.second(scene, 'stop')
        return scene

    @staticmethod
    def second(scene: Scene, command: str, folder: str = '.') -> Any:
        """Have the second monitor of the old or new QEMU do something."""
        path, = scene.vm.folder.glob(f'{folder}/second.sock')
        with Monitor(str(path)) as monitor:
            return monitor.cmd(command)

    @contextlib.contextmanager
    def cut(self, scene: Scene, name: str, *ends: str) -> Iterator[Tool]:
        """An update that waits after an event; then a QEMU or it may end."""
        old = scene.vm.pid
        tool = scene.tool(fault=(name, STOP))
        with tool.stopped(name):
            if 'new' in ends:
                for pid in find(str(scene.folder)):
                    if pid not in (old, tool.pid):
                        os.kill(pid, signal.SIGKILL)
                wait_for('it ends', lambda: set(find(str(scene.folder))) <=
                         {old, tool.pid})
            if 'tool' in ends:
                tool.kill()
            yield tool

    def assert_updates_bare(self, scene: Scene, before: Optional[State] = None
                            ) -> None:
        """An update succeeds, and changes nothing."""
        before = before or scene.state()
        outcome = scene.run()
        self.assertEqual(outcome.status, 0, outcome)
        after = scene.state()
        self.assertEqual(after.status, before.status)
        self.assertEqual(set(after.pids), {scene.vm.pid})
        self.assertEqual(outcome.result['pid'], scene.vm.pid)
        self.assert_same(after, before)

    # Two VMs

    def test_neighbour(self) -> None:
        """What an update of one VM has left is nothing to another VM."""
        scene = self.started()
        other = str(scene.vm.folder / 'other.sock')
        subprocess.run([re.sub(r'(agent|records|second)\.sock', r'other-\1',
                               re.sub(r'(qmp|vm)\.(sock|pid)', r'other.\2',
                                      word))
                        for word in scene.vm.command], check=True)
        pid_file = scene.vm.folder / 'other.pid'

        def tool(*fault: str) -> Tool:
            qmp, scene.vm.qmp = scene.vm.qmp, other
            try:
                return scene.tool(fault=fault)
            finally:
                scene.vm.qmp = qmp

        # One is under way.
        slow = tool('start', STOP)
        with slow.stopped('start'):
            self.assertEqual(scene.run().status, 0)
        self.assertEqual(slow.end().status, 0)
        # One was cut off.
        cut = tool('verify', STOP)
        with cut.stopped('verify'):
            cut.kill()
        before = scene.processes()
        first = scene.vm.pid
        self.assertEqual(scene.run().status, 0)
        self.assertEqual(set(before) - set(scene.processes()), {first})
        self.assertIn('earlier', [event.get('name')
                                  for event in tool().end().events])
        self.assertEqual(set(scene.processes()), {
            scene.vm.pid, int(pid_file.read_text('ascii'))})
        self.assertEqual(list(scene.vm.folder.glob('.live-update-*')), [])

    # The tool

    def test_settings(self) -> None:
        """What the update has set is not left to the new QEMU."""
        scene = self.started(ram=IGNORE_SHARED)
        with scene.vm.monitor() as monitor:
            monitor.cmd('migrate-set-parameters', max_bandwidth=1 << 20)
            monitor.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'events', 'state': True}])
        self.assert_updates_bare(scene)
        # Nor if the tool was killed, wherever the VM is then.
        for name in 'start', 'verify':
            before = scene.state()
            with self.cut(scene, name, 'tool'):
                pass
            self.assert_updates_bare(scene, before)

    def test_nobody_listens(self) -> None:
        """Its output cannot be written."""
        scene = self.started()
        command = [TOOL, '--qmp', scene.vm.qmp, '--binary', str(scene.binary)]
        for options in (), ('--json',):
            for output in 'closed', '/dev/full':
                old = scene.vm.pid
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
                self.assertEqual(set(scene.processes()), {scene.vm.pid})
                self.assertNotEqual(scene.vm.pid, old)

    def test_faults(self) -> None:
        """It is broken."""
        scene = self.started(paused=True)
        fault = 'raise ValueError("broken")'
        for name, status in ('start', 1), ('names', 3), ('end', 3):
            with self.subTest(name):
                before = scene.state()
                outcome = scene.tool(fault=(name, fault)).end('ValueError')
                self.assertEqual(outcome.status, status, outcome)
                self.assertIn('broken', outcome.message)
                if status == 1:
                    self.assertEqual(scene.state(), before)
                else:
                    self.assertIn('same command again', outcome.message)
                self.assert_updates_bare(scene, before)

    def test_killed_with_child(self) -> None:
        """It is killed when it has a child that becomes the new QEMU."""
        scene = self.started()
        before = scene.state()
        tool = scene.tool(fault=(
            'binary', 'resource.setrlimit = lambda *_: time.sleep(0.05)'))
        self.assertTrue(tool.wait_for('binary'))
        wait_for('it is there', lambda: list(
            scene.vm.folder.glob('.live-update-*/old')) and
            Path(f'/proc/{tool.pid}/task/{tool.pid}/children').read_text(
                'ascii'))
        tool.kill()
        self.assert_updates_bare(scene, before)

    # The new QEMU

    def test_new_ends(self) -> None:
        """It ends when it has got the VM, which was paused."""
        scene = self.started(paused=True)
        for name in 'verify', 'names':
            before = scene.state()
            with self.cut(scene, name, 'new') as tool:
                pass
            outcome = tool.end()
            self.assertEqual(outcome.status, 2, outcome)
            self.assertIn('paused, as before, in the old', outcome.message)
            after = scene.state()
            self.assertEqual((after.status, after.pids),
                             (before.status, before.pids))
            self.assert_same(after, before)
            with self.cut(scene, name, 'new', 'tool'):
                pass
            self.assert_updates_bare(scene, before)

    def test_new_ends_running(self) -> None:
        """It ends when it has run the VM: nothing can bring it back."""
        for name in 'verify', 'names', 'end':
            scene = self.started()
            with self.cut(scene, name, 'new') as tool:
                pass
            self.assertEqual(tool.end().status, 3)
            scene.close()

    def test_new_cannot_start(self) -> None:
        """It gets the VM, but not the images."""
        image = make_disk(self.path('disk'))
        write = 201                     # QEMU's lock: nobody else may write
        scene = self.started('-drive', f'if=virtio,format=raw,file={image}')
        for ends in (), ('tool',):
            before = scene.state()
            with open(image, 'rb') as file:
                fcntl.lockf(file, fcntl.LOCK_SH, 1, write)
                with self.cut(scene, 'migrate', *ends) as tool:
                    wait_for('it is over', lambda: self.second(
                        scene, 'query-migrate', '.live-update-*').get('status')
                        == 'completed')
            begin = time.monotonic()
            outcome = scene.run() if ends else tool.end()
            self.assertLess(time.monotonic() - begin, 30)
            if not ends:
                self.assertIn('cannot start it', outcome.message)
            self.assertEqual(outcome.status, 0 if ends else 2, outcome)
            self.assert_updates_bare(scene, before)

    # People

    def test_stopped_meanwhile(self) -> None:
        """The VM is stopped through another monitor."""
        scene = self.started()
        with self.cut(scene, 'start') as tool:
            self.second(scene, 'stop')
        self.assertEqual(tool.end().status, 0)
        self.assertEqual(scene.status(), 'paused')

    def test_stopped_in_stream(self) -> None:
        """The same, and then the update fails: it stays stopped."""
        scene = self.started()
        tool = scene.tool(fault=('start', 'from qemu.live_update import update'
                                 '; update.SENDER["max-bandwidth"] = 4096'))
        self.assertTrue(tool.wait_for('start'))
        wait_for('it is on its way', lambda: self.second(
            scene, 'query-migrate').get('status') == 'active')
        self.second(scene, 'stop')
        for pid in scene.new_qemus():
            os.kill(pid, signal.SIGKILL)
        outcome = tool.end()
        self.assertEqual(outcome.status, 2, outcome)
        self.assertEqual(scene.status(), 'paused')
        self.assert_updates_bare(scene)

    def test_busy_monitor(self) -> None:
        """Nobody has to wait for a monitor longer than he wants to."""
        scene = self.started()
        with scene.vm.monitor():
            begin = time.monotonic()
            self.assertEqual(scene.run('--timeout', '1').status, 1)
            tool = scene.tool()
            wait_for('it waits', lambda: any(
                scene.vm.qmp in line and line.split()[5] == '03'
                for line in Path('/proc/net/unix').read_text(
                    'utf-8').splitlines()))
            tool.send(signal.SIGINT)
            tool.end_early()
            self.assertLess(time.monotonic() - begin, ANSWER)

    # The file system

    def test_other_way(self) -> None:
        """The monitor is named through another folder."""
        scene = self.started()
        link = scene.folder / 'link'
        link.symlink_to(scene.vm.folder)
        qmp = scene.vm.qmp
        scene.vm.qmp = str(link / 'qmp.sock')
        self.assert_updates_bare(scene)
        with self.cut(scene, 'verify', 'tool'):
            pass
        scene.vm.qmp = qmp
        self.assertEqual(scene.run().said('earlier')[:17],
                         'an earlier update')
        self.assertEqual(set(scene.processes()), {scene.vm.pid})

    def test_report(self) -> None:
        """A report that cannot be written is known before the result."""
        scene = self.started()
        outcome = scene.run('--dry-run', '--report', str(scene.vm.folder))
        self.assertEqual(outcome.status, 0)
        self.assertIn('cannot be written', outcome.said('report'))

    @unittest.skipUnless(os.geteuid() == 0, 'needs root')
    def test_changes_user(self) -> None:
        """The old QEMU is another user than the new one begins as."""
        scene = self.bare('-run-with', 'user=nobody', ram=CPR)
        for path in scene.folder, scene.vm.folder:
            path.chmod(0o711)
        scene.vm.start()
        outcome = scene.run()
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['mode'], CPR)
        self.assertEqual(os.stat(f'/proc/{scene.vm.pid}').st_uid, NOBODY)


if __name__ == '__main__':
    main()
