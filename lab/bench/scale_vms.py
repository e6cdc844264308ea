# SPDX-License-Identifier: GPL-2.0-or-later
"""
Many VMs on this host, which are updated one after the other

Each is a daemon with a disk under light, verified load, and is updated by
scripts/live-update: first one that is alone on the host, then all.
"""
import os
import time
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set

from lab.machines.watch import memory
from lab.tests.live_update_case import Outcome, Scene, State

from .process import BenchError
from .transfer_moves import TRACE, Log, bench_errors, pause_between

VMS = 32
ALONE = 8               # updates of the VM that is alone
MEMORY = '96M'
# A second that each disk carries out; more would keep two processors busy.
REQUESTS = 10
TRACES = 'trace-'


class Update(NamedTuple):
    """
    An update of a VM.

    seconds: how long the tool ran
    pause: how long the guest did not run, in ms
    """
    seconds: float
    pause: float


class Host(NamedTuple):
    """
    Memory in MiB.

    used: of this host, whatever uses it
    own: of all QEMUs, what is not shared
    """
    used: float
    own: float


class Updates(NamedTuple):
    """
    All updates.

    alone: of a VM that is the only one
    among: of all VMs, in the order in which they were updated
    before, after: the host when all VMs ran, and when all were updated
    verified: blocks that the guests have written and read back
    """
    alone: List[Update]
    among: List[Update]
    before: Host
    after: Host
    verified: int


class Subject:
    """A VM that is updated again and again."""

    def __init__(self) -> None:
        self.scene = Scene(*TRACE, size=MEMORY, limit=REQUESTS)
        # QEMU puts a number there: each has a file of its own.
        self.scene.vm.command += [
            '-D', str(self.scene.vm.folder / f'{TRACES}%d')]

    def boot(self) -> None:
        """Start it, without its load."""
        self.scene.boot(load=False)
        self._source, = self._traces()

    def start_load(self) -> None:
        """Have it do I/O."""
        self.scene.start_load()

    def _traces(self) -> Set[Path]:
        return set(self.scene.vm.folder.glob(f'{TRACES}*'))

    def update(self) -> Update:
        """Update it; nothing may change but QEMU."""
        state, traces = self.scene.state(), self._traces()
        pid = self.scene.vm.pid
        begin = time.monotonic()
        outcome = self.scene.run()
        seconds = time.monotonic() - begin
        self._check(state, pid, outcome)
        dest, = self._traces() - traces
        pause = pause_between(Log(str(self._source)), Log(str(dest)))
        self._source = dest
        return Update(seconds, pause.length)

    def _check(self, before: State, old: int, outcome: Outcome) -> None:
        """Is all as it was, and does the guest do I/O?"""
        if outcome.status:
            raise BenchError(f'live-update failed: {outcome.message}')
        self.scene.vm.connect()
        self.scene.guest.wait_records(REQUESTS)
        after = self.scene.state()
        wanted = set(before.pids) - {old} | {self.scene.vm.pid}
        if (set(after.pids) != wanted or after.memory != before.memory or
                after.connections != before.connections or
                files(after) != files(before)):
            raise BenchError('an update has left something behind, or taken '
                             f'something away: {before}, {after}')


def files(state: State) -> Dict[str, object]:
    """The files of a VM, without the traces."""
    return {name: what for name, what in state.files.items()
            if TRACES not in name}


def look(subjects: List[Subject]) -> Host:
    """How much memory is used?"""
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text(
        'utf-8').splitlines())
    total, free = (int(lines[name].split()[0]) / 1024
                   for name in ('MemTotal', 'MemAvailable'))
    return Host(total - free, sum(memory(subject.scene.vm.pid)
                                  for subject in subjects) / 2**20)


@contextmanager
def running(count: int) -> Iterator[List[Subject]]:
    """So many VMs, of which the first runs."""
    with bench_errors(), ExitStack() as stack:
        subjects = []
        for _ in range(count):
            subjects.append(Subject())
            stack.callback(subjects[-1].scene.close)
        subjects[0].boot()
        subjects[0].start_load()
        yield subjects


def measure_updates() -> Updates:
    """Update a VM that is alone, and all."""
    with running(VMS) as subjects:
        alone = [subjects[0].update() for _ in range(ALONE)]
        others = subjects[1:]
        # Booting takes time on the processors, and starting the load does not.
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(Subject.boot, others))
        with futures.ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(Subject.start_load, others))
        before = look(subjects)
        among = [subject.update() for subject in subjects]
        after = look(subjects)
        verified = sum(summary.verified for subject in subjects
                       for summary in subject.scene.stop_load())
    return Updates(alone, among, before, after, verified)
