# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tests of scripts/live-update share: a VM to update, and the tool

All that could be left behind has the path of the VM's folder somewhere: on
its command line, or as its own name.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import (Any, Dict, Iterator, List, NamedTuple, Optional, Sequence,
                    Set, Tuple)

from qemu.live_update.process import Process, find
from qemu.qmp import QMPError

from lab import OBJ, ROOT
from lab.machines.agent import Guest, Summary
from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.disks import Daemon, Disk, Load
from lab.machines.evidence import ask_guest, ask_monitor, describe_process
from lab.machines.server_vm import MEMORY, Monitor, ServerVM
from lab.machines.watch import connections, wait_for

from .testcase import TestCase

TOOL = str(ROOT / 'scripts/live-update')
BINARY = OBJ / 'qemu-system-x86_64'
RAM = 'memory-backend-ram'
LONGEST = 90                    # seconds for a run of the tool
PREFIX = '.live-update-'        # of what is there during an update
# What JSON objects have, by the kind of event.
KEYS = {'check': {'name', 'verdict', 'message'}, 'step': {'name', 'message'},
        'plan': {'command'}, 'result': {'status', 'message', 'exit'}}
RESULTS = {'updated': 0, 'possible': 0, 'refused': 1, 'failed': 2,
           'attention': 3}
Event = Dict[str, Any]
# The tool, with a fault: argv[1] is the name of an event, argv[2] Python that
# is executed when the user has been told of it.
FAULTY = [sys.executable, '-c', '''
import os, resource, signal, sys, time
from qemu.live_update import cli, output
original, at, fault = output.Output._tell, *sys.argv[1:3]
def tell(self, event, *more):
    original(self, event, *more)
    if event.get('name') == at:
        exec(fault)
output.Output._tell = tell
sys.exit(cli.main(sys.argv[3:]))
''']
STOP = 'os.kill(os.getpid(), signal.SIGSTOP)'
# What an update sets for itself.
SETTINGS = 'query-migrate-capabilities', 'query-migrate-parameters'


class Outcome(NamedTuple):
    """How a run of the tool has ended."""
    status: int
    events: List[Event]

    @property
    def result(self) -> Event:
        """The last event."""
        return self.events[-1]

    @property
    def message(self) -> str:
        """What the user was told at the end."""
        return str(self.result['message'])

    def said(self, name: str) -> str:
        """What was said of something that was checked, or of a step."""
        return ' '.join(event['message'] for event in self.events
                        if event.get('name') == name)


class Tool:
    """
    A live-update that runs.

    @param arguments: of the tool
    @param program: the tool
    @param options: of subprocess.Popen
    """
    def __init__(self, arguments: Sequence[str],
                 program: Sequence[str] = (TOOL,), **options: Any) -> None:
        self.events: List[Event] = []
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            [*program, '--json', *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self._errors, text=True, **options)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def next(self) -> Optional[Event]:
        """Wait for an event; None: there will be no more."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            return None
        self.events.append(json.loads(line))
        return self.events[-1]

    def wait_for(self, name: str) -> bool:
        """Wait until it reports something; false: it ends without that."""
        while True:
            event = self.next()
            if not event or event.get('name') == name:
                return bool(event)

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """A "with" block in the middle of one with the fault STOP."""
        assert self.wait_for(name), self.events
        wait_for('it stops', lambda: Path(f'/proc/{self.pid}/stat').read_text(
            'utf-8').rpartition(')')[2].split()[0] == 'T')
        yield
        self.send(signal.SIGCONT)

    def end(self, complaint: Optional[str] = '') -> Outcome:
        """
        Wait until it ends; it must have said how, as documented.

        @param complaint: what it must have said on stderr; None: anything
        """
        while self.next():
            pass
        status = self._process.wait(LONGEST)
        self.close(complaint)
        assert status >= 0, f'ended by signal {-status}'
        assert self.events, 'it says nothing'
        for event in self.events:
            missing = {'event', 'time', *KEYS[event['event']]} - event.keys()
            assert not missing, f'{missing} not in {event}'
        result = self.events[-1]
        assert result['event'] == 'result', result
        assert result['exit'] == status == RESULTS[result['status']], result
        if result['status'] == 'updated' and any(
                event.get('name') == 'migrate' for event in self.events):
            missing = {'mode', 'old-pid', 'pid', 'downtime'} - result.keys()
            assert not missing, f'{missing} not in {result}'
        return Outcome(status, self.events)

    def end_early(self) -> Optional[Outcome]:
        """Wait until it ends; None: it was interrupted before it began."""
        if self.next():
            # The interpreter may take the signal, complain of it, and go on.
            return self.end(complaint=None)
        status = self._process.wait(LONGEST)
        self.kill()
        assert status in (1, -signal.SIGINT), status
        return None

    def kill(self) -> None:
        """End it the hard way."""
        self._stop()
        self._errors.close()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def close(self, complaint: Optional[str] = '') -> None:
        """Let go of it; it must not have complained of anything else."""
        if self._errors.closed:
            return
        self._stop()
        with self._errors as file:
            file.seek(0)
            errors = file.read()
        if complaint is not None:
            assert complaint in errors if complaint else not errors, errors


class State(NamedTuple):
    """All that a failed update must leave as it was."""
    status: str
    pids: Dict[int, str]
    files: Dict[str, Tuple[int, int, int]]
    connections: List[Set[int]]
    memory: List[str]
    told: Dict[str, Any]


class Scene:
    """
    A VM as it is on a server, whose disks are under load.

    vm: it; it is not started yet
    binary: what the new QEMU is; in the VM's folder, so that nothing of it
            can be left behind unseen

    @param ram: its memory: IGNORE_SHARED and CPR stand for what these take,
                or a memory backend
    @param size: of its memory
    @param disks: how many
    @param limit: requests a second that each carries out; 0: no limit
    @param disk: options of each disk, as in Disk
    @param args: more arguments for QEMU
    """
    def __init__(self, *args: str, ram: str = IGNORE_SHARED,
                 size: str = MEMORY, disks: int = 1, limit: int = 0,
                 **disk: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix='qemu-functional-'))
        self.memory = Path(f'/dev/shm/{self.folder.name}')
        self.guest = Guest()
        self.disks = [Disk(self.daemon(f'd{number}', limit), f'd{number}',
                           **disk) for number in range(disks)]
        self.vm = ServerVM(
            self.folder / 'vm', self.guest,
            {IGNORE_SHARED: str(self.memory),
             CPR: 'memory-backend-memfd,share=on'}.get(ram, ram),
            [*(word for disk in self.disks for word in disk.args()), *args,
             *(('-machine', 'aux-ram-share=on') if ram == CPR else ())],
            root='', memory=size)
        self.binary = self.vm.folder / 'new-qemu'
        self.binary.symlink_to(BINARY)
        self._load: Optional[Load] = None

    def daemon(self, name: str, limit: int = 0) -> Daemon:
        """A back-end that runs."""
        daemon = Daemon(str(self.folder / f'{name}.sock'),
                        make_disk(str(self.folder / f'{name}.img')),
                        limit=limit)
        daemon.start()
        return daemon

    def close(self) -> None:
        """End all processes, and remove all files."""
        for disk in self.disks:
            disk.backend.__exit__(None, None, None)
        for pid in find(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for('all processes end', lambda: not find(str(self.folder)))
        self.vm.reap()
        for file in Path('/dev/shm').glob(f'{self.memory.name}*'):
            file.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    # The load

    def boot(self, load: bool = True) -> 'Scene':
        """Start the VM, and load on its disks."""
        self.vm.boot()
        if load:
            self.start_load()
        return self

    def start_load(self) -> None:
        """Put load on all disks."""
        self._load = Load(self.guest, *(
            f'vd{chr(ord("a") + number)}'
            for number in range(len(self.disks))))

    def stop_load(self) -> List[Summary]:
        """End it; nothing may have gone wrong."""
        load, self._load = self._load, None
        return load.stop() if load else []

    def check_alive(self) -> None:
        """The guest must run, and do I/O."""
        if self._load:
            self._load.advance()
        self.guest.run('true')

    # The tool

    def tool(self, *options: str, binary: Optional[object] = None,
             command: Optional[Sequence[str]] = None,
             fault: Sequence[str] = (), **more: Any) -> Tool:
        """
        Start the tool.

        @param binary: the new QEMU, if it is another one
        @param command: what follows "--"
        @param fault: when and what; see FAULTY
        @param more: options of subprocess.Popen
        """
        return Tool(['--qmp', self.vm.qmp, '--binary',
                     str(binary or self.binary), *options,
                     *(() if command is None else ('--', *command))],
                    [*FAULTY, *fault] if fault else (TOOL,), **more)

    def run(self, *options: str, **more: Any) -> Outcome:
        """Run the tool to its end."""
        return self.tool(*options, **more).end()

    def wrap(self, script: str) -> Path:
        """
        A new QEMU that is a script.

        In it, "$qemu" is the true one, and "waits" tells whether it is to
        take a VM over: it is also run to see what it knows.
        """
        path = self.vm.folder / 'wrapper'
        path.write_text(
            f'#!/bin/sh\nqemu={self.binary}\nwaits() {{ case "$all" in '
            f'*-incoming*) true;; *) false; esac; }}\nall="$*"\n{script}\n',
            'ascii')
        path.chmod(0o755)
        return path

    def new_qemus(self) -> List[int]:
        """The QEMUs that wait for this VM, or have just got it."""
        return [pid for pid in find(f'{self.vm.folder}/{PREFIX}')
                if pid != self.vm.pid]

    # What there is

    def processes(self) -> Dict[int, str]:
        """The command lines of all processes."""
        return {pid: ' '.join(Process(pid).arguments)
                for pid in find(str(self.folder))}

    def files(self) -> Dict[str, Tuple[int, int, int]]:
        """Mode and owner of all files."""
        found = {}
        for path in sorted(self.vm.folder.rglob('*')):
            status = path.lstat()
            found[str(path.relative_to(self.vm.folder))] = (
                status.st_mode, status.st_uid, status.st_gid)
        return found

    def told(self, monitor: Monitor) -> Dict[str, Any]:
        """What the VM's monitor says of what may change it."""
        told = {command: monitor.cmd(command) for command in (
            'query-migrate-capabilities', 'query-migrate-parameters',
            'query-chardev', 'query-memory-devices', 'query-block',
            'query-cpus-fast', 'query-pci', 'query-iothreads',
            'query-machines')}
        for chardev in told['query-chardev']:
            # It tries again and again, if its server is away.
            chardev['connected'] = chardev.pop('state', '') == 'connected'
        return told

    def state(self) -> State:
        """All that a failed update must leave as it was."""
        with self.vm.monitor() as monitor:
            told = self.told(monitor)
            status = monitor.cmd('query-status')['status']
        return State(
            status, self.processes(), self.files(),
            [connections(disk.backend.pid, disk.backend.path)
             for disk in self.disks if disk.backend.is_running()],
            [file.name for file in
             Path('/dev/shm').glob(f'{self.memory.name}*')], told)

    def describe(self) -> Iterator[str]:
        """What can be seen of the VM when a test has failed."""
        for file in self.vm.log, self.vm.console:
            if file.exists():
                yield f'{file}: {file.read_text("utf-8", "replace")[-2000:]}'
        for pid in find(str(self.folder)):
            yield from describe_process(pid)
        with contextlib.suppress(QMPError, OSError), \
                self.vm.monitor() as monitor:
            yield from ask_monitor(lambda name, args: monitor.cmd(
                name, **args))
        yield ask_guest(self.guest)

    def status(self) -> str:
        """The run state of the VM."""
        with self.vm.monitor() as monitor:
            return str(monitor.cmd('query-status')['status'])


class LiveUpdateTest(TestCase):
    """A test of the tool"""
    scenes: List[Scene] = []        # that wait for the next test

    def setUp(self) -> None:
        super().setUp()
        self._own_scenes: List[Scene] = []

    def evidence(self) -> str:
        return '\n'.join([super().evidence(), *(
            line for scene in self._own_scenes for line in scene.describe())])

    def scene(self, *args: str, **options: Any) -> Scene:
        """A VM for this test alone; it is not started yet."""
        scene = Scene(*args, **options)
        self._own(scene)
        return scene

    def bare(self, *args: str, **options: Any) -> Scene:
        """A VM without a guest; it is not started yet."""
        scene = self.scene(*args, disks=0, **{'ram': RAM, **options})
        for option in '-kernel', '-initrd', '-append':
            scene.vm.drop(option)
        return scene

    def _own(self, scene: Scene) -> None:
        """Let it end with this test, which looks at it if it has failed."""
        self._own_scenes.append(scene)
        self.addCleanup(scene.close)

    @contextlib.contextmanager
    def shared(self) -> Iterator[Scene]:
        """
        A VM that runs, for a "with" block; at its end it must run still.

        The next test gets it, too, if this one succeeds.
        """
        scene = self.scenes.pop() if self.scenes else Scene()
        try:
            if not scene.vm.is_started:
                scene.vm.boot()
            scene.start_load()
            yield scene
            scene.stop_load()
        except BaseException:
            self._own(scene)
            raise
        self.scenes.append(scene)

    @classmethod
    def tearDownClass(cls) -> None:
        while cls.scenes:
            cls.scenes.pop().close()

    def assert_updates(self, scene: Scene, *options: str, **more: Any
                       ) -> Outcome:
        """An update must succeed, and leave all as it was but QEMU."""
        before = scene.state()
        old = scene.vm.pid
        outcome = scene.run(*options, **more)
        self.assertEqual(outcome.result['status'], 'updated', outcome)
        self.assert_updated(scene, before, old, outcome)
        return outcome

    def assert_updated(self, scene: Scene, before: State, old: int,
                       outcome: Outcome) -> None:
        """After an update, all must be as it was but QEMU."""
        new = scene.vm.pid
        self.assertEqual((outcome.result['old-pid'], outcome.result['pid']),
                         (old, new))
        scene.vm.connect()
        if before.status == 'running':
            scene.check_alive()
        after = scene.state()
        self.assertEqual(after.status, before.status)
        self.assertEqual(set(after.pids), set(before.pids) - {old} | {new})
        self.assert_same(after, before)

    def assert_same(self, after: State, before: State) -> None:
        """What an update leaves as it was."""
        for what in 'files', 'connections', 'memory':
            self.assertEqual(getattr(after, what), getattr(before, what))
        for what in SETTINGS:
            self.assertEqual(after.told[what], before.told[what])

    def assert_fails(self, scene: Scene, status: int, *words: str,
                     options: Sequence[str] = (), **more: Any) -> Outcome:
        """An update must fail, say why, and leave all as it was."""
        before = scene.state()
        outcome = scene.run(*options, **more)
        self.assert_unchanged(scene, before, outcome, status, *words)
        return outcome

    def assert_unchanged(self, scene: Scene, before: State, outcome: Outcome,
                         status: int, *words: str) -> None:
        """After a failure, all must be as it was."""
        # pylint: disable=too-many-arguments
        self.assertEqual(outcome.status, status, outcome)
        for word in words:
            self.assertIn(word, outcome.message + ' '.join(
                event['message'] for event in outcome.events
                if event.get('verdict') == 'refused'))
        self.assertEqual(scene.state(), before)
        if before.status == 'running':
            scene.check_alive()


def plug(monitor: Monitor, name: str, path: str, bus: str,
         **chardev: object) -> None:
    """Hot-plug a disk that a back-end serves at a path."""
    address = {'type': 'unix', 'data': {'path': path}}
    monitor.cmd('chardev-add', id=f'c-{name}', backend={
        'type': 'socket', 'data': {
            'addr': address, 'server': False,
            **{k.replace('_', '-'): v for k, v in chardev.items()}}})
    monitor.cmd('device_add', driver='vhost-user-blk-pci', id=name,
                chardev=f'c-{name}', bus=bus)
