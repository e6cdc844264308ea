# SPDX-License-Identifier: GPL-2.0-or-later
"""
A VM that live-update updates, and what must be true after an update

Whatever an update could leave behind has the path of the VM's folder in its
name or on its command line.
"""
import contextlib
from pathlib import Path
from typing import (Any, Dict, Iterator, List, NamedTuple, Optional, Sequence,
                    Set, Tuple)

from qemu.live_update.host.process import Process, find
from qemu.qmp import QMPError

from lab import OBJ

from .agent import Guest, Summary
from .backend import StorageDaemon
from .chain import CPR, IGNORE_SHARED
from .disks import Disk, Load
from .evidence import ask_guest, ask_monitor, describe_process
from .monitor import Monitor
from .scope import Scope
from .server_vm import MEMORY, ServerVM
from .tool import FAULTY, PREFIX, TOOL, Outcome, Tool
from .vm import MEMFD
from .watch import connections

BINARY = OBJ / 'qemu-system-x86_64'
# live-update changes these during an update, and must restore them.
SETTINGS = 'query-migrate-capabilities', 'query-migrate-parameters'


def assert_equal(found: object, wanted: object, what: object) -> None:
    """Raise AssertionError unless two values are equal."""
    assert found == wanted, f'{what}: {found!r} instead of {wanted!r}'


class State(NamedTuple):
    """
    Everything that a failed update must leave unchanged.

    status: the run state of the VM
    pids: command lines of the processes
    files: mode, owner and group of the files in the VM's folder
    connections: inodes of the connections of each back-end
    memory: names of the files with guest memory
    told: answers of the VM's monitor
    """
    status: str
    pids: Dict[int, str]
    files: Dict[str, Tuple[int, int, int]]
    connections: List[Set[int]]
    memory: List[str]
    told: Dict[str, Any]

    def assert_equal(self, wanted: 'State') -> None:
        """All must be equal."""
        for name, value in self._asdict().items():
            assert_equal(value, getattr(wanted, name), name)

    def assert_same(self, before: 'State') -> None:
        """Equal must be what a successful update leaves unchanged."""
        for name in 'status', 'files', 'connections', 'memory':
            assert_equal(getattr(self, name), getattr(before, name), name)
        for name in SETTINGS:
            assert_equal(self.told[name], before.told[name], name)


class UpdatedVM:
    """
    A VM as on a server, whose QEMU is updated while its disks are under load.

    qemu: runs the VM; it is not started yet
    folder: of the VM and its back-ends
    binary: the new QEMU, a link in the VM's folder: so its processes have that
            folder on their command line

    @param args: more arguments for QEMU
    @param ram: a memory backend; IGNORE_SHARED and CPR stand for those that
                these modes take
    @param size: of the memory
    @param disks: how many
    @param limit: requests a second that each disk does; 0: no limit
    @param disk: options of each disk; see disks.Disk
    """
    def __init__(self, *args: str, ram: str = IGNORE_SHARED,
                 size: str = MEMORY, disks: int = 1, limit: int = 0,
                 **disk: str) -> None:
        self._scope = Scope()
        self.folder = self._scope.folder
        self.memory = self._scope.memory()
        self.guest = Guest()
        self.disks = [Disk(self.daemon(f'd{number}', limit), f'd{number}',
                           **disk) for number in range(disks)]
        self.qemu = ServerVM(
            self.folder / 'vm', self.guest,
            {IGNORE_SHARED: str(self.memory), CPR: MEMFD}.get(ram, ram),
            [*(word for disk in self.disks for word in disk.args()), *args,
             *(('-machine', 'aux-ram-share=on') if ram == CPR else ())],
            root='', memory=size)
        self.binary = self.qemu.folder / 'new-qemu'
        self.binary.symlink_to(BINARY)
        self._load: Optional[Load] = None

    def daemon(self, name: str, limit: int = 0) -> StorageDaemon:
        """Another back-end, which runs."""
        return self._scope.daemon(name, limit=limit)

    def close(self) -> None:
        """End all processes, and remove all files."""
        self._scope.end_processes()
        self.qemu.reap()
        self._scope.close()

    # The load

    def boot(self, load: bool = True) -> 'UpdatedVM':
        """Start the VM, and put load on its disks."""
        self.qemu.boot()
        if load:
            self.start_load()
        return self

    def start_load(self) -> None:
        """Put load on all disks."""
        self._load = Load(self.guest, *(
            f'vd{chr(ord("a") + number)}'
            for number in range(len(self.disks))))

    def stop_load(self) -> List[Summary]:
        """End the load; it must not have found an error."""
        load, self._load = self._load, None
        return load.stop() if load else []

    def check_alive(self) -> None:
        """The guest must answer, and its load advance."""
        if self._load:
            self._load.advance()
        self.guest.run('true')

    # Updates

    def tool(self, *options: str, binary: Optional[object] = None,
             command: Optional[Sequence[str]] = None,
             fault: Sequence[str] = (), **more: Any) -> Tool:
        """
        Start live-update.

        @param binary: the new QEMU, in place of self.binary
        @param command: the words after "--"
        @param fault: arguments of tool.FAULTY
        @param more: options of subprocess.Popen
        """
        return Tool(['--qmp', self.qemu.qmp, '--binary',
                     str(binary or self.binary), *options,
                     *(() if command is None else ('--', *command))],
                    [*FAULTY, *fault] if fault else (TOOL,), **more)

    def run(self, *options: str, **more: Any) -> Outcome:
        """Run live-update to its end."""
        return self.tool(*options, **more).end()

    def wrap(self, script: str) -> Path:
        """
        Make a shell script that is given as the new QEMU.

        In the script, "$qemu" is the path of the real one.  live-update also
        runs the new QEMU to ask for its features: "waits" is true if the
        script is run to take the VM over.
        """
        path = self.qemu.folder / 'wrapper'
        path.write_text(
            f'#!/bin/sh\nqemu={self.binary}\nwaits() {{ case "$all" in '
            f'*-incoming*) true;; *) false; esac; }}\nall="$*"\n{script}\n',
            'ascii')
        path.chmod(0o755)
        return path

    def new_qemus(self) -> List[int]:
        """The QEMUs that wait for this VM, or have just got it."""
        return [pid for pid in find(f'{self.qemu.folder}/{PREFIX}')
                if pid != self.qemu.pid]

    @contextlib.contextmanager
    def streaming(self, *options: str) -> Iterator[Tool]:
        """A run of live-update whose QEMUs have connected for migration."""
        tool = self.tool(*options)
        try:
            assert tool.wait_for('start'), tool.events
            while not self._is_streaming():
                pass            # sleeping could miss the stream
            yield tool
        finally:
            tool.close()

    def _is_streaming(self) -> bool:
        """Has the old QEMU connected to the socket of the new one?"""
        connected = '03'
        with open('/proc/net/unix', encoding='utf-8') as sockets:
            return any(words[5] == connected and len(words) > 7 and
                       words[7].endswith('/migration') and
                       words[7].startswith(str(self.qemu.folder))
                       for words in map(str.split, sockets))

    # State

    def arguments(self) -> List[str]:
        """The command line of the QEMU that runs the VM."""
        return Process(self.qemu.pid).arguments

    def processes(self) -> Dict[int, str]:
        """The command lines of all processes."""
        return {pid: ' '.join(Process(pid).arguments)
                for pid in find(str(self.folder))}

    def files(self) -> Dict[str, Tuple[int, int, int]]:
        """Mode, owner and group of all files in the VM's folder."""
        found = {}
        for path in sorted(self.qemu.folder.rglob('*')):
            status = path.lstat()
            found[str(path.relative_to(self.qemu.folder))] = (
                status.st_mode, status.st_uid, status.st_gid)
        return found

    def told(self, monitor: Monitor) -> Dict[str, Any]:
        """The answers of the VM's monitor that an update might change."""
        told = {command: monitor.cmd(command) for command in (
            'query-migrate-capabilities', 'query-migrate-parameters',
            'query-chardev', 'query-memory-devices', 'query-block',
            'query-cpus-fast', 'query-pci', 'query-iothreads',
            'query-machines')}
        for chardev in told['query-chardev']:
            # While its server is away, the state of a chardev alternates.
            chardev['connected'] = chardev.pop('state', '') == 'connected'
        return told

    def status(self) -> str:
        """The run state of the VM."""
        with self.qemu.monitor() as monitor:
            return str(monitor.cmd('query-status')['status'])

    def state(self) -> State:
        """Everything that a failed update must leave unchanged."""
        with self.qemu.monitor() as monitor:
            told = self.told(monitor)
            status = monitor.cmd('query-status')['status']
        return State(
            status, self.processes(), self.files(),
            [connections(disk.backend.pid, disk.backend.path)
             for disk in self.disks if disk.backend.is_running()],
            [file.name for file in
             Path('/dev/shm').glob(f'{self.memory.name}*')], told)

    def describe(self) -> Iterator[str]:
        """The state of the VM, as evidence after a failure."""
        for file in self.qemu.log, self.qemu.console:
            if file.exists():
                yield f'{file}: {file.read_text("utf-8", "replace")[-2000:]}'
        for pid in find(str(self.folder)):
            yield from describe_process(pid)
        try:
            with self.qemu.monitor() as monitor:
                yield from ask_monitor(lambda name, args: monitor.cmd(
                    name, **args))
        except (QMPError, OSError) as error:
            yield f'its monitor: {error!r}'
        yield ask_guest(self.guest)

    # Assertions

    def assert_runs(self, *options: str, **more: Any) -> Outcome:
        """A run of live-update must succeed."""
        outcome = self.run(*options, **more)
        assert_equal(outcome.status, 0, outcome)
        return outcome

    def assert_refuses(self, *words: str, **more: Any) -> None:
        """A dry run must refuse the update, with a reason."""
        outcome = self.run('--dry-run', **more)
        assert_equal(outcome.status, 1, outcome)
        for word in words:
            assert word in outcome.reasons, outcome

    def assert_updates(self, *options: str, **more: Any) -> Outcome:
        """An update must succeed, and change nothing but QEMU."""
        before = self.state()
        old = self.qemu.pid
        outcome = self.run(*options, **more)
        assert_equal(outcome.result['status'], 'updated', outcome)
        self.assert_updated(before, old, outcome)
        return outcome

    def assert_updated(self, before: State, old: int,
                       outcome: Outcome) -> None:
        """An update must have changed nothing but QEMU."""
        new = self.qemu.pid
        assert_equal((outcome.result['old-pid'], outcome.result['pid']),
                     (old, new), 'process ids')
        self.qemu.connect()
        if before.status == 'running':
            self.check_alive()
        after = self.state()
        assert_equal(set(after.pids), set(before.pids) - {old} | {new},
                     'processes')
        after.assert_same(before)

    def assert_fails(self, status: int, *words: str,
                     options: Sequence[str] = (), **more: Any) -> Outcome:
        """An update must fail, give a reason, and change nothing."""
        before = self.state()
        outcome = self.run(*options, **more)
        self.assert_unchanged(before, outcome, status, *words)
        return outcome

    def assert_unchanged(self, before: State, outcome: Outcome, status: int,
                         *words: str) -> None:
        """An update must have failed, given a reason, and changed nothing."""
        assert_equal(outcome.status, status, outcome)
        for word in words:
            assert word in outcome.reasons, \
                f'{word!r} is not in {outcome.reasons!r}'
        self.state().assert_equal(before)
        if before.status == 'running':
            self.check_alive()

    def assert_survived(self, before: State, old: int,
                        outcome: Outcome) -> None:
        """An update must have succeeded, or failed and changed nothing."""
        if outcome.status == 0:
            self.assert_updated(before, old, outcome)
        else:
            assert outcome.status in (1, 2), outcome
            self.assert_unchanged(before, outcome, outcome.status)

    def assert_completes(self, before: State) -> None:
        """After live-update was killed, the same command must succeed."""
        self.assert_runs()
        self.qemu.connect()
        self.check_alive()
        after = self.state()
        assert_equal(set(after.pids), {
            self.qemu.pid, *(disk.backend.pid for disk in self.disks)},
            'processes')
        after.assert_same(before)
