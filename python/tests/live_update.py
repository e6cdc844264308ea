# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of how live-update changes command lines, names files, and waits

They are unit tests: no QEMU is needed.
"""
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, cast
from unittest import mock

from qemu.live_update.error import NeedsPerson, Refused
from qemu.live_update.host.private_files import (LONGEST, PrivateFiles,
                                                 RecoveryNote, public_name)
from qemu.live_update.host.process import Process, find, service_of
from qemu.live_update.interruption import Interrupted, Interruption
from qemu.live_update.monitor import Monitor, MonitorError
from qemu.live_update.new_qemu import NewQemu
from qemu.live_update.output import Output
from qemu.live_update.waiting import POLL, until


class Files(unittest.TestCase):
    """Names for the files of the new QEMU"""

    def test_public(self) -> None:
        """The next update finds the names that everybody knows."""
        files = PrivateFiles('/run/vm', (0, 0))
        for path, name in (('a', '/run/vm/a'), ('/tmp/b', '/tmp/b')):
            private = files.private(path)
            self.assertIn(files.token, private)
            self.assertEqual(public_name(private), name)
            self.assertEqual(files.private(private), private)
        self.assertEqual(public_name('/tmp/b'), '/tmp/b')

    def test_too_long(self) -> None:
        """The path of a socket has an end."""
        files = PrivateFiles('/', (0, 0))
        room = LONGEST - len(f'//{files.token}')
        files.socket('/' + 'x' * room)
        with self.assertRaisesRegex(Refused, '1 bytes too long'):
            files.socket('/' + 'x' * (room + 1))
        files.private('/' + 'x' * (room + 1))       # is no socket


class Folders(unittest.TestCase):
    """The private folders, as an update and the next one see them"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        (self.top / 'link').symlink_to(self.top)
        self.files = PrivateFiles(folder.name, (os.getuid(), os.getgid()))
        self.private = Path(self.files.private('qmp'))
        self.note = RecoveryNote('1 2', 'paused', {'capabilities': {}})

    def test_remembered(self) -> None:
        """The next update knows whose they are, and all of them."""
        (self.top / 'sub').mkdir()
        self.files.private('sub/pid')
        self.files.create(self.note)
        again = PrivateFiles.of_earlier(self.private.parent)
        self.assertEqual(again.note, self.note)
        for path, is_known in (('qmp', True), ('link/qmp', True),
                               ('sub/../qmp', True), ('other', False)):
            self.assertEqual(again.has_public(self.top / path), is_known, path)
        again.remove()
        self.assertEqual(sorted(p.name for p in self.top.iterdir()),
                         ['link', 'sub'])
        self.assertEqual(list((self.top / 'sub').iterdir()), [])

    def test_one_name(self) -> None:
        """A file has one private name, whatever way leads to it."""
        for path in 'link/qmp', str(self.top / 'qmp'), './qmp':
            self.assertEqual(Path(self.files.private(path)), self.private)

    def test_withdraw(self) -> None:
        """The old files have their names again."""
        self.files.create(self.note)
        for path, text in (self.top / 'qmp', 'old'), (self.private, 'new'):
            path.write_text(text, 'ascii')
        self.files.publish()
        self.assertEqual((self.top / 'qmp').read_text('ascii'), 'new')
        self.files.withdraw()
        self.assertEqual((self.top / 'qmp').read_text('ascii'), 'old')
        self.files.remove()
        self.assertFalse(self.private.parent.exists())

    def test_taken_away(self) -> None:
        """Who clears up may take a folder away that was just made."""
        lock = PrivateFiles.lock
        taken: List[Path] = []

        def take(folder: Path, wait: bool = False) -> int:
            if not taken:
                taken.append(folder)
                folder.rmdir()
            return lock(folder, wait)

        with mock.patch.object(PrivateFiles, 'lock', staticmethod(take)):
            self.files.create(self.note)
        again = PrivateFiles.of_earlier(self.private.parent)
        self.assertEqual(again.note, self.note)


class Connecting(unittest.TestCase):
    """A monitor that does not do at first what a client expects"""

    @staticmethod
    def serve(listener: socket.socket, ended: int, said: bytes) -> None:
        """Be a monitor that says something and ends so many connections."""
        greeting = {'QMP': {'version': {'qemu': {
            'micro': 0, 'minor': 0, 'major': 1}, 'package': ''},
            'capabilities': []}}
        for number in range(ended + 1):
            try:
                client, _ = listener.accept()
            except OSError:
                return          # the client has given up
            with client:
                client.sendall(json.dumps(greeting).encode() + b'\r\n' +
                               (said if number < ended else b''))
                # A command has no end of line, and the next one waits.
                while number == ended and (command := client.recv(4096)):
                    answer: Dict[str, object] = {'return': {}}
                    if 'id' in json.loads(command):
                        answer['id'] = json.loads(command)['id']
                    client.sendall(json.dumps(answer).encode() + b'\r\n')

    def connect(self, ended: int, said: bytes = b'') -> None:
        """Connect to such a monitor."""
        async def work(path: str) -> None:
            monitor = Monitor('QEMU', path)
            await monitor.connect()
            self.assertEqual(await monitor.ask('query'), {})
            await monitor.close()

        with tempfile.TemporaryDirectory() as folder, \
                socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f'{folder}/qmp')
            listener.listen()
            server = threading.Thread(target=self.serve, daemon=True,
                                      args=(listener, ended, said))
            server.start()
            try:
                asyncio.run(work(f'{folder}/qmp'))
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                server.join()

    def test_once(self) -> None:
        """One that does so once, as QEMU may, is connected to again."""
        self.connect(1)

    def test_event(self) -> None:
        """So is one from which an event comes before the first answer."""
        self.connect(1, b'{"event": "STOP", "timestamp": {"seconds": 1, '
                        b'"microseconds": 1}}\r\n')

    def test_always(self) -> None:
        """One that always does so is no monitor."""
        with self.assertRaisesRegex(MonitorError, 'does not speak QMP'):
            self.connect(9)


class Waiting(unittest.TestCase):
    """Waiting for a condition"""

    def setUp(self) -> None:
        self.calls = 0

    async def third(self) -> str:
        """A condition that is true at the third look."""
        self.calls += 1
        return 'yes' if self.calls == 3 else ''

    def test_value(self) -> None:
        """The result is the first value that is true."""
        self.assertEqual(asyncio.run(until(self.third)), 'yes')
        self.assertEqual(self.calls, 3)

    def test_timeout(self) -> None:
        """The last value is the result, also without time to wait."""
        for timeout, looks in (0, 1), (POLL / 2, 2):
            self.calls = 0
            self.assertEqual(asyncio.run(until(self.third, timeout)), '')
            self.assertEqual(self.calls, looks)

    def test_slow(self) -> None:
        """The time that the condition takes does not count."""
        async def slow() -> str:
            await asyncio.sleep(3 * POLL)
            return await self.third()

        self.assertEqual(asyncio.run(until(slow, 2 * POLL)), 'yes')

    def test_exception(self) -> None:
        """An exception of the condition ends the wait."""
        async def fail() -> bool:
            raise Refused('no')

        with self.assertRaisesRegex(Refused, 'no'):
            asyncio.run(until(fail))

    def test_process(self) -> None:
        """A process ends, or it does not."""
        async def work() -> None:
            child = await asyncio.create_subprocess_exec('sleep', '1000')
            process = Process(child.pid)
            self.assertFalse(await process.wait(POLL))
            process.kill()
            self.assertTrue(await process.wait(10))
            process.close()
            await child.wait()

        asyncio.run(work())


class FakeMonitor:
    """
    A monitor of a QEMU that has the VM in some state, or has ended.

    run_state: None: it has ended
    """
    path = '/no-such'

    def __init__(self) -> None:
        self.run_state: Optional[str] = 'inmigrate'
        self.migration_state = 'active'

    async def status(self) -> str:
        """The run state."""
        if self.run_state is None:
            raise MonitorError('it has ended')
        return self.run_state

    async def migration(self) -> Dict[str, Any]:
        """The state of the migration."""
        await self.status()
        return {'status': self.migration_state}


class NewQemus(unittest.TestCase):
    """The new QEMU: any program is one here"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        self.files = PrivateFiles(folder.name, (os.getuid(), os.getgid()))
        self.monitor = FakeMonitor()
        printing = mock.patch.object(Output, '_print')
        printing.start()
        self.addCleanup(printing.stop)
        self.output = Output(True)
        self.new = self.create()

    def create(self) -> NewQemu:
        """A new QEMU, which was not started."""
        return NewQemu(self.files, cast(Any, self.monitor), self.output)

    def start_like(self, command: List[str], as_user: bool
                   ) -> 'subprocess.Popen[bytes]':
        """Take the place of Process.start_like()."""
        self.assertTrue(as_user)
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert child.stderr
        self.addCleanup(child.stderr.close)
        return child

    def run_script(self, script: str, *arguments: str) -> None:
        """Start a script as the new QEMU, and wait until it listens."""
        async def work() -> None:
            new = self.create()
            new.start(cast(Any, self), ['sh', '-c', script, *arguments], True)
            try:
                await new.wait_listening(str(self.top / 'qmp'))
            finally:
                await new.end()

        asyncio.run(asyncio.wait_for(work(), 10))

    def test_ends(self) -> None:
        """It ends at its start: the user gets its messages, or a status."""
        with self.assertRaisesRegex(Refused, 'does not start: no memory'):
            self.run_script('echo no memory >&2; sleep 0.1; exit 1')
        for status in 0, 3:
            with self.assertRaisesRegex(Refused, f'status {status};'):
                self.run_script(f'exit {status}')

    def test_daemon(self) -> None:
        """A child that ends well may have left a process of its token."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.top / 'qmp'))
            threading.Timer(0.2, listener.listen).start()
            self.run_script(
                'sh -c "while sleep 0.1; do :; done" $0 &', self.files.token)
        self.assertEqual(find(self.files.token), [])

    def test_gets_vm(self) -> None:
        """It gets the VM, or fails, or ends."""
        for run_state, migration, expected in (
                ('running', 'completed', True), ('paused', 'active', True),
                ('inmigrate', 'failed', False), (None, '', False)):
            self.monitor.run_state = run_state
            self.monitor.migration_state = migration
            begin = time.monotonic()
            self.assertIs(asyncio.run(self.new.gets_vm()), expected)
            self.assertLess(time.monotonic() - begin, 5)

    def test_gets_vm_late(self) -> None:
        """It gets the VM a moment later."""
        async def work() -> bool:
            asyncio.get_running_loop().call_later(
                5 * POLL, setattr, self.monitor, 'run_state', 'running')
            return await self.new.gets_vm()

        self.assertTrue(asyncio.run(work()))

    def replace(self, old: Any) -> None:
        """Give it the place of an old QEMU."""
        self.files.private('pid')
        self.files.create(RecoveryNote('1 2', 'running', {}))
        for name in str(self.top / 'pid'), self.files.private('pid'):
            Path(name).write_text(Path(name).parent.name, 'ascii')
        asyncio.run(self.new.replace(old))

    def test_replaces(self) -> None:
        """It has the names of its files when the old QEMU is killed."""
        async def wait(_: float) -> bool:
            return True

        killed: List[str] = []
        self.monitor.run_state = 'running'
        self.replace(SimpleNamespace(pid=1, wait=wait, kill=lambda: (
            killed.append((self.top / 'pid').read_text('ascii')))))
        self.assertEqual(killed, [self.files.token])
        self.assertEqual([path.name for path in self.top.iterdir()], ['pid'])
        self.assertEqual([event['name'] for event in self.output.events],
                         ['names', 'end'])

    def test_ends_before_it_replaces(self) -> None:
        """It ends when it has the names: the old QEMU gets them back."""
        def step(*_: object) -> None:
            self.monitor.run_state = None

        self.monitor.run_state = 'running'
        with mock.patch.object(self.output, 'step', step), \
                self.assertRaises(MonitorError):
            self.replace(None)
        self.assertEqual((self.top / 'pid').read_text('ascii'),
                         self.top.name)

    def test_check_alive(self) -> None:
        """A QEMU that has ended with the VM is a matter for a person."""
        self.monitor.run_state = 'running'
        asyncio.run(self.new.check_alive())
        self.monitor.run_state = None
        with self.assertRaises(NeedsPerson):
            asyncio.run(self.new.check_alive())


class Interrupting(unittest.TestCase):
    """What ends an update early"""

    def test_lost(self) -> None:
        """Work that loses an interruption gets another one."""
        async def work() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            await asyncio.sleep(30)

        async def interrupt() -> None:
            await asyncio.wait_for(Interruption(0.01).may_end(work()), 10)

        with mock.patch('signal.signal'), self.assertRaises(Interrupted):
            asyncio.run(interrupt())


class Services(unittest.TestCase):
    """The systemd service that a process is in"""

    def test_unit(self) -> None:
        """It is the last part of the control group, in both versions."""
        for text, unit in (
                ('0::/system.slice/vm.service\n', 'vm.service'),
                ('1:name=systemd:/system.slice/vm.service\n0::/\n',
                 'vm.service'),
                ('0::/user.slice/user-0.slice/session-1.scope\n', ''),
                ('0::/system.slice/vm.service/vcpus\n', ''),
                ('', '')):
            self.assertEqual(service_of(text), unit)


if __name__ == '__main__':
    unittest.main()
