# SPDX-License-Identifier: GPL-2.0-or-later
"""
Load on a guest's disks: fio in the guest, and its requests seen from the host

fio writes blocks, reads them back and verifies them while it runs.
"""
import json
import time
from typing import Any, Dict, Iterable, NamedTuple

from qemu.live_update.report.rings import Request, Watch, gaps

from lab.machines.agent import Guest, GuestError, Reply
from lab.machines.watch import wait_for

Options = Dict[str, object]
INTERRUPTED = 128               # exit status of fio after SIGINT
LEAD = 1.0                      # seconds of load before and after an update


class Verdict(NamedTuple):
    """The result of fio: requests that were written and verified."""
    written: int
    verified: int
    error: int                  # an errno


class Fio:
    """
    A run of fio, until end().

    job: the job file, in one line

    @param name: of the job; each run at the same time needs another name
    @param options: of fio
    @param when: a shell command; fio starts, but gets its job only when the
                 command has ended
    """
    def __init__(self, guest: Guest, name: str, options: Options,
                 when: str = 'true') -> None:
        self._guest = guest
        self._reply = Reply(0, '')
        self._name = name
        self._pid = f'/var/{name}.pid'
        self._report = f'/var/{name}.report'
        self.job = f'[{name}] thread ' + ' '.join(
            f'{key}={value}' for key, value in {
                'ioengine': 'libaio', 'direct': 1, 'rw': 'randwrite',
                'bs': '4k', 'verify': 'crc32c', 'verify_backlog': 64,
                'verify_fatal': 1, 'time_based': 1, 'runtime': 3600,
                **options}.items())
        self._run = guest.start(
            f'mkfifo /var/{name}.job; echo $$ >{self._pid}; '
            f'{{ {when}; echo {name} >&3; printf "%s\\n" {self.job}; }} '
            f'>/var/{name}.job & exec fio --output-format=json '
            f'--output={self._report} - </var/{name}.job')

    @property
    def begun(self) -> float:
        """The time.time() when fio got its job; it must have got it."""
        when, = (record.time for record in self._guest.records
                 if record.text == self._name)
        return when + time.time() - time.monotonic()

    def end(self) -> None:
        """End fio."""
        self._guest.wait(self._guest.start(f'kill -INT $(cat {self._pid})'))
        self._reply = self._guest.wait(self._run)

    def verdict(self) -> Verdict:
        """The result, which must be without an error."""
        report = self._guest.run(f'cat {self._report}')
        # A line about the signal comes first.
        job: Any = json.loads(report[report.index('{'):])['jobs'][0]
        verdict = Verdict(job['write']['total_ios'],
                          job['read']['total_ios'], job['error'])
        if verdict.error or self._reply.status != INTERRUPTED:
            raise GuestError(f'fio ended with error {verdict.error} and exit '
                             f'status {self._reply.status}: '
                             f'{self._reply.output}')
        return verdict


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """The sum of several results."""
    result = Verdict(*map(sum, zip(*verdicts)))
    if not result.verified:
        raise GuestError('fio has not verified anything')
    return result


def of_disk(requests: Iterable[Request], disk: str) -> 'list[Request]':
    """The requests of one disk."""
    return [request for request in requests if request.device == disk]


def longest_gap(requests: Iterable[Request], begin: float,
                end: float) -> float:
    """The longest time without a completion of "data", in seconds."""
    return max(later - earlier for earlier, later in gaps(
        of_disk(requests, 'data'), begin, end))


def wait_until_busy(watch: Watch, *disks: str) -> None:
    """Wait until each disk has been in use for LEAD seconds from now."""
    begin = time.time()

    def is_busy(disk: str) -> bool:
        ends = [request.ended for request in of_disk(watch.requests, disk)
                if request.ended > begin]
        return bool(ends) and ends[-1] - ends[0] > LEAD

    wait_for(f'the guest uses its disks ({", ".join(disks)})',
             lambda: all(map(is_busy, disks)))
