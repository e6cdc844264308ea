# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest that migrates again and again, and figures from the traces of QEMU

The timestamps of both QEMUs are of the same clock.  The pause is the time in
which the guest does not run: from just before the source stops its vCPUs until
the destination has started its vCPUs.
"""
import re
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from qemu.qmp import QMPError

from lab import OBJ
from lab.machines.agent import GuestError
from lab.machines.chain import IGNORE_SHARED, Chain, TransferFailed
from lab.machines.disks import Disk
from lab.machines.relay import Relay
from lab.machines.scope import Scope
from lab.machines.vm import VM, VMLaunchFailure

from .process import BenchError

EVENT = re.compile(r'(\S+)Z (\w+) ?(.*)')
SECTION = re.compile(r'type=\S+ idstr=(\S+) .* downtime=(\d+)')
TRACE = ('-msg', 'timestamp=on', '-trace', 'vmstate_downtime_*',
         '-trace', 'qemu_file_put_fd')

# The parts of a pause, by the checkpoint that ends each of them.  Loading
# begins while the source still saves; its part is the time after that.
START = 'src-downtime-start'
PARTS = {
    'src-vm-stopped': 'stop', 'src-non-iterable-saved': 'save',
    'dst-precopy-loadvm-completed': 'load',
    'dst-precopy-bh-vm-started': 'start'}


class Pause(NamedTuple):
    """
    A pause of a guest; times are in ms.

    length: how long the guest did not run
    parts: the length of each part
    begin: by the clock of the trace
    """
    length: float
    parts: Dict[str, float]
    begin: float


class Move(NamedTuple):
    """
    A migration of a guest; times are in ms.

    start: from the start of the new QEMU until it waited for the migration
    total: from the first command after that until the guest ran there
    pause: how long the guest did not run
    parts: the length of each part of the pause
    saved, loaded: time spent in the sections of devices, by kind of device
    fds: file descriptors that were passed through the main channel
    maps: memory maps that the new QEMU has made in the pause, if traced
    begun: time.monotonic() when the migration was started
    """
    start: float
    total: float
    pause: float
    parts: Dict[str, float]
    saved: Dict[str, float]
    loaded: Dict[str, float]
    fds: int
    maps: int
    begun: float


class Log:
    """The trace of one QEMU."""

    def __init__(self, path: str) -> None:
        self.path = path

    def checkpoints(self) -> Dict[str, float]:
        """The time of each checkpoint, in ms."""
        return {rest: when for when, event, rest in self._events()
                if event == 'vmstate_downtime_checkpoint'}

    def sections(self, what: str) -> Dict[str, float]:
        """The ms that "save" or "load" took, by kind of device."""
        spent: Dict[str, float] = {}
        for _, event, rest in self._events():
            found = SECTION.match(rest)
            if event == f'vmstate_downtime_{what}' and found:
                kind = found[1].rpartition('/')[2]
                spent[kind] = spent.get(kind, 0) + int(found[2]) / 1000
        return spent

    def fds(self) -> int:
        """How many file descriptors were put into the stream."""
        return sum(event == 'qemu_file_put_fd'
                   for _, event, _ in self._events())

    def maps(self, begin: float) -> int:
        """How many memory maps were made after a time."""
        return sum(event == 'flatview_new' and when > begin
                   for when, event, _ in self._events())

    def _events(self) -> Iterator[Any]:
        for line in Path(self.path).read_text('utf-8').splitlines():
            found = EVENT.match(line)
            if found:
                when = datetime.fromisoformat(found[1]).timestamp()
                yield when * 1000, found[2], found[3]


def pause_between(source: Log, dest: Log) -> Pause:
    """How long a guest did not run in a migration."""
    times = {**dest.checkpoints(), **{
        name: when for name, when in source.checkpoints().items()
        if name.startswith('src-')}}
    parts, before = {}, times[START]
    for checkpoint, part in PARTS.items():
        parts[part] = times[checkpoint] - before
        before = times[checkpoint]
    return Pause(sum(parts.values()), parts, times[START])


@contextmanager
def bench_errors() -> Iterator[None]:
    """Turn errors in the "with" block into BenchErrors."""
    try:
        yield
    except (TransferFailed, GuestError, VMLaunchFailure, QMPError,
            RuntimeError, TimeoutError, AssertionError) as error:
        raise BenchError(f'{type(error).__name__}: {error}') from error


@contextmanager
def bench_scope() -> Iterator[Scope]:
    """A scope for the "with" block; errors there are BenchErrors."""
    # Files are in RAM: other users of the host's disk must not disturb us.
    tempfile.tempdir = '/dev/shm'
    try:
        with bench_errors(), Scope() as scope:
            yield scope
    finally:
        tempfile.tempdir = None


class MovingGuest:
    """
    A guest that migrates again and again.

    vm: the QEMU that runs the guest
    moves: all migrations so far

    @param disks: vhost-user disks
    @param mode: how the next QEMU gets the guest's RAM
    @param transfer: use backend-transfer?  Stock QEMU does not have it.
    @param obj: the folder where QEMU was built
    @param memory: size of the guest's memory, if not the default
    @param args: more arguments for QEMU
    """
    def __init__(self, scope: Scope, *disks: Disk, mode: str = IGNORE_SHARED,
                 transfer: bool = True, obj: Path = OBJ, memory: str = '',
                 args: Tuple[str, ...] = ()) -> None:
        self.chain = Chain(scope, *disks, mode=mode, obj=obj, memory=memory,
                           args=(*TRACE, *args))
        self.guest = self.chain.guest
        self.moves: List[Move] = []
        self._scope = scope
        self._transfer = transfer
        self._log = self._new_log()
        self.vm = self.chain.boot('-D', self._log.path)

    def _new_log(self) -> Log:
        return Log(self._scope.path(f'log-{time.monotonic_ns()}'))

    def prepare(self) -> 'Prepared':
        """Start the next QEMU."""
        log = self._new_log()
        begin = time.monotonic()
        dest = self.chain.destination('-D', log.path)
        return Prepared(self, dest, log, (time.monotonic() - begin) * 1000)

    def move(self, relay: Optional[Relay] = None) -> Move:
        """Migrate to a new QEMU, and end the old one."""
        return self.prepare().move(relay)

    def moved(self, dest: VM, log: Log, start: float, begun: float) -> Move:
        """Add the figures of a migration that has just ended."""
        total = (time.monotonic() - begun) * 1000
        self.vm.shutdown()
        pause = pause_between(self._log, log)
        move = Move(start, total, pause.length, pause.parts,
                    self._log.sections('save'), log.sections('load'),
                    self._log.fds(), log.maps(pause.begin), begun)
        self.vm, self._log = dest, log
        self.moves.append(move)
        return move

    def send(self, dest: VM, relay: Optional[Relay] = None) -> float:
        """Migrate; returns when the migration was begun."""
        begun = time.monotonic()
        self.chain.send(self.vm, dest, relay.path if relay else '',
                        (self._transfer, self._transfer))
        self.chain.arrive(self.vm, dest)
        return begun


class Prepared:
    """A QEMU that waits for a migration."""

    def __init__(self, moving: MovingGuest, dest: VM, log: Log,
                 start: float) -> None:
        self._moving = moving
        self._dest = dest
        self._log = log
        self._start = start

    def move(self, relay: Optional[Relay] = None) -> Move:
        """Migrate the guest to this QEMU."""
        begun = self._moving.send(self._dest, relay)
        return self._moving.moved(self._dest, self._log, self._start, begun)
