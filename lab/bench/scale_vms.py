# SPDX-License-Identifier: GPL-2.0-or-later
"""
The cost of live updates on a host with many VMs

Each VM has a disk under light, verified load.  First one VM is updated while
it is alone on the host; then all VMs are started, and updated one after the
other.
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
# Requests a second of each disk; more would keep two processors busy.
REQUESTS = 10
TRACES = 'trace-'


class Update(NamedTuple):
    """
    An update of a VM.

    seconds: how long live-update ran
    pause: how long the guest did not run, in ms
    """
    seconds: float
    pause: float


class Host(NamedTuple):
    """
    Memory in MiB.

    used: of the whole host
    own: private memory of all QEMUs
    """
    used: float
    own: float


class Updates(NamedTuple):
    """
    All updates.

    alone: of the VM that was alone on the host
    among: of all VMs, in the order in which they were updated
    before, after: the host before and after the updates of all VMs
    verified: blocks that the guests have written and verified
    """
    alone: List[Update]
    among: List[Update]
    before: Host
    after: Host
    verified: int


class TracedVM:
    """A VM that is updated again and again, with traces of each QEMU."""

    def __init__(self) -> None:
        self.vm = UpdatedVM(*TRACE, size=MEMORY, limit=REQUESTS)
        # QEMU replaces %d by its process id: each QEMU has its own file.
        self.vm.qemu.command += [
            '-D', str(self.vm.qemu.folder / f'{TRACES}%d')]

    def boot(self) -> None:
        """Start the VM without load."""
        self.vm.boot(load=False)
        self._source, = self._traces()

    def start_load(self) -> None:
        """Put load on the disk."""
        self.vm.start_load()

    def _traces(self) -> Set[Path]:
        return set(self.vm.qemu.folder.glob(f'{TRACES}*'))

    def update(self) -> Update:
        """Update the VM; nothing may change but QEMU."""
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
        """Nothing may have changed but QEMU, and the guest must do I/O."""
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
    """The files of a VM without the traces."""
    return {name: what for name, what in state.files.items()
            if TRACES not in name}


def look(traced: List[TracedVM]) -> Host:
    """Return the memory that is used."""
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text(
        'utf-8').splitlines())
    total, free = (int(lines[name].split()[0]) / 1024
                   for name in ('MemTotal', 'MemAvailable'))
    return Host(total - free, sum(memory(one.vm.qemu.pid)
                                  for one in traced) / 2**20)


@contextmanager
def running(count: int) -> Iterator[List[TracedVM]]:
    """So many VMs, of which the first is started, for a "with" block."""
    with bench_errors(), ExitStack() as stack:
        traced = []
        for _ in range(count):
            traced.append(TracedVM())
            stack.callback(traced[-1].vm.close)
        traced[0].boot()
        traced[0].start_load()
        yield traced


def measure_updates() -> Updates:
    """Update a VM while it is alone, and then each of all VMs."""
    with running(VMS) as traced:
        alone = [traced[0].update() for _ in range(ALONE)]
        others = traced[1:]
        # Booting needs a processor each; starting the load mostly waits.
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
