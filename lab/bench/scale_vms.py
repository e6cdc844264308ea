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

from lab.machines.tool import Outcome
from lab.machines.updated_vm import State, UpdatedVM
from lab.machines.watch import memory

from .moving_guest import TRACE, Log, bench_errors, pause_between
from .process import BenchError

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


class TracedVM:
    """A VM that is updated again and again."""

    def __init__(self) -> None:
        self.vm = UpdatedVM(*TRACE, size=MEMORY, limit=REQUESTS)
        # QEMU puts a number there: each has a file of its own.
        self.vm.qemu.command += [
            '-D', str(self.vm.qemu.folder / f'{TRACES}%d')]

    def boot(self) -> None:
        """Start it, without its load."""
        self.vm.boot(load=False)
        self._source, = self._traces()

    def start_load(self) -> None:
        """Have it do I/O."""
        self.vm.start_load()

    def _traces(self) -> Set[Path]:
        return set(self.vm.qemu.folder.glob(f'{TRACES}*'))

    def update(self) -> Update:
        """Update it; nothing may change but QEMU."""
        state, traces = self.vm.state(), self._traces()
        pid = self.vm.qemu.pid
        begin = time.monotonic()
        outcome = self.vm.run()
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
        self.vm.qemu.connect()
        self.vm.guest.wait_records(REQUESTS)
        after = self.vm.state()
        wanted = set(before.pids) - {old} | {self.vm.qemu.pid}
        if (set(after.pids) != wanted or after.memory != before.memory or
                after.connections != before.connections or
                files(after) != files(before)):
            raise BenchError('an update has left something behind, or taken '
                             f'something away: {before}, {after}')


def files(state: State) -> Dict[str, object]:
    """The files of a VM, without the traces."""
    return {name: what for name, what in state.files.items()
            if TRACES not in name}


def look(traced: List[TracedVM]) -> Host:
    """How much memory is used?"""
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text(
        'utf-8').splitlines())
    total, free = (int(lines[name].split()[0]) / 1024
                   for name in ('MemTotal', 'MemAvailable'))
    return Host(total - free, sum(memory(one.vm.qemu.pid)
                                  for one in traced) / 2**20)


@contextmanager
def running(count: int) -> Iterator[List[TracedVM]]:
    """So many VMs, of which the first runs."""
    with bench_errors(), ExitStack() as stack:
        traced = []
        for _ in range(count):
            traced.append(TracedVM())
            stack.callback(traced[-1].vm.close)
        traced[0].boot()
        traced[0].start_load()
        yield traced


def measure_updates() -> Updates:
    """Update a VM that is alone, and all."""
    with running(VMS) as traced:
        alone = [traced[0].update() for _ in range(ALONE)]
        others = traced[1:]
        # Booting takes time on the processors, and starting the load does not.
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(TracedVM.boot, others))
        with futures.ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(TracedVM.start_load, others))
        before = look(traced)
        among = [one.update() for one in traced]
        after = look(traced)
        verified = sum(summary.verified for one in traced
                       for summary in one.vm.stop_load())
    return Updates(alone, among, before, after, verified)
