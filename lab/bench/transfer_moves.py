# SPDX-License-Identifier: GPL-2.0-or-later
"""
Guests that move from QEMU to QEMU, and what the trace says of each move

Both QEMUs put the time of the same clock on their trace events.  The pause is
all that the guest does not run: from before the source stops its vCPUs until
the destination has started its own.
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
from lab.machines.chain import IGNORE_SHARED, Line, TransferFailed
from lab.machines.disks import Disk
from lab.machines.relay import Relay
from lab.machines.vm import VM, VMLaunchFailure
from lab.tests.transfer_case import TransferTest

from .process import BenchError

EVENT = re.compile(r'(\S+)Z (\w+) ?(.*)')
SECTION = re.compile(r'type=\S+ idstr=(\S+) .* downtime=(\d+)')
TRACE = ('-msg', 'timestamp=on', '-trace', 'vmstate_downtime_*',
         '-trace', 'qemu_file_put_fd')

# What the pause is made of, by the checkpoint that ends each part.  Loading
# goes on while the source saves; here is what is left of it after that.
START = 'src-downtime-start'
PARTS = {
    'src-vm-stopped': 'stop', 'src-non-iterable-saved': 'save',
    'dst-precopy-loadvm-completed': 'load',
    'dst-precopy-bh-vm-started': 'start'}


class Pause(NamedTuple):
    """
    A pause of a guest; times are in ms.

    length: how long the guest did not run
    parts: what that is made of
    begin: a time of the trace's clock
    """
    length: float
    parts: Dict[str, float]
    begin: float


class Move(NamedTuple):
    """
    A move of a guest; times are in ms.

    start: until the new QEMU waited
    total: from the first command after that until the guest ran there
    pause: how long the guest did not run
    parts: what that is made of
    saved, loaded: time spent in the sections of devices, by kind of device
    fds: how many the main channel has carried
    maps: how many memory maps the new QEMU has made in the pause, if traced
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
        """When each was reached, in ms."""
        return {rest: when for when, event, rest in self._events()
                if event == 'vmstate_downtime_checkpoint'}

    def sections(self, what: str) -> Dict[str, float]:
        """The ms that it took to "save" or "load", by kind of device."""
        spent: Dict[str, float] = {}
        for _, event, rest in self._events():
            found = SECTION.match(rest)
            if event == f'vmstate_downtime_{what}' and found:
                kind = found[1].rpartition('/')[2]
                spent[kind] = spent.get(kind, 0) + int(found[2]) / 1000
        return spent

    def fds(self) -> int:
        """How many files were put into the stream."""
        return sum(event == 'qemu_file_put_fd'
                   for _, event, _ in self._events())

    def maps(self, begin: float) -> int:
        """How many memory maps were made since then."""
        return sum(event == 'flatview_new' and when > begin
                   for when, event, _ in self._events())

    def _events(self) -> Iterator[Any]:
        for line in Path(self.path).read_text('utf-8').splitlines():
            found = EVENT.match(line)
            if found:
                when = datetime.fromisoformat(found[1]).timestamp()
                yield when * 1000, found[2], found[3]


def pause_between(source: Log, dest: Log) -> Pause:
    """How long a guest did not run that has moved."""
    times = {**dest.checkpoints(), **{
        name: when for name, when in source.checkpoints().items()
        if name.startswith('src-')}}
    parts, before = {}, times[START]
    for checkpoint, part in PARTS.items():
        parts[part] = times[checkpoint] - before
        before = times[checkpoint]
    return Pause(sum(parts.values()), parts, times[START])


class Bed(TransferTest):
    """Where processes and files live that go away together."""


@contextmanager
def bench_errors() -> Iterator[None]:
    """What goes wrong in the "with" block is a BenchError."""
    try:
        yield
    except (TransferFailed, GuestError, VMLaunchFailure, QMPError,
            RuntimeError, TimeoutError, AssertionError) as error:
        raise BenchError(f'{type(error).__name__}: {error}') from error


@contextmanager
def bed() -> Iterator[Bed]:
    """A bed for the "with" block; what goes wrong there is a BenchError."""
    made = Bed()
    # Whoever else writes to the disk of this machine must not disturb us.
    tempfile.tempdir = '/dev/shm'
    try:
        with bench_errors():
            made.setUp()
            yield made
    finally:
        made.doCleanups()
        tempfile.tempdir = None


class Mover:
    """
    A guest that moves again and again.

    guest: to talk to
    vm: the QEMU that it is in
    moves: all that it has made

    @param disks: vhost-user disks
    @param mode: how RAM gets to the next QEMU
    @param transfer: use backend-transfer?  Stock has none.
    @param obj: where QEMU was built
    @param memory: size of the guest's memory, if not what it mostly is
    @param args: more arguments for QEMU
    """
    def __init__(self, place: Bed, *disks: Disk, mode: str = IGNORE_SHARED,
                 transfer: bool = True, obj: Path = OBJ, memory: str = '',
                 args: Tuple[str, ...] = ()) -> None:
        self.line = Line(place, *disks, mode=mode, obj=obj, memory=memory,
                         args=(*TRACE, *args))
        self.guest = self.line.guest
        self.moves: List[Move] = []
        self._place = place
        self._transfer = transfer
        self._log = self._new_log()
        self.vm = self.line.boot('-D', self._log.path)

    def _new_log(self) -> Log:
        return Log(self._place.path(f'log-{time.monotonic_ns()}'))

    def prepare(self) -> 'Prepared':
        """Start the next QEMU."""
        log = self._new_log()
        begin = time.monotonic()
        dest = self.line.destination('-D', log.path)
        return Prepared(self, dest, log, (time.monotonic() - begin) * 1000)

    def move(self, relay: Optional[Relay] = None) -> Move:
        """Move to a new QEMU, and end the old one."""
        return self.prepare().move(relay)

    def moved(self, dest: VM, log: Log, start: float, begun: float) -> Move:
        """Take note of a move that has just ended."""
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
        """Migrate, wait for the end and return when it was begun."""
        begun = time.monotonic()
        self.line.send(self.vm, dest, relay.path if relay else '',
                       (self._transfer, self._transfer))
        self.line.arrive(self.vm, dest)
        return begun


class Prepared:
    """A QEMU that waits for a guest."""

    def __init__(self, mover: Mover, dest: VM, log: Log,
                 start: float) -> None:
        self._mover = mover
        self._dest = dest
        self._log = log
        self._start = start

    def move(self, relay: Optional[Relay] = None) -> Move:
        """Move the guest here."""
        begun = self._mover.send(self._dest, relay)
        return self._mover.moved(self._dest, self._log, self._start, begun)
