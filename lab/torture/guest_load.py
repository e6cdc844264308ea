# SPDX-License-Identifier: GPL-2.0-or-later
"""
Load on the disks of a guest: each request must be answered once
"""
from typing import Dict, List, Set

from lab.machines.agent import Guest, Summary, blkverify
from lab.machines.watch import wait_for

from .choices import DELAYED, DiskChoice

BLOCKS = 1024                   # few, so that checking them does not take long
PATIENCE = 90                   # seconds; the host may be busy
# For disks that delay each request: read one block after the other, which must
# be zero, and print a summary like the one of blkverify.
READER = (
    'head -c 4096 /dev/zero >/tmp/zeroes; trap stop=1 TERM; n=0; '
    'while [ -z "$stop" ]; do dd if=/dev/$dev bs=4096 count=1 iflag=direct '
    f'skip=$((n % {BLOCKS})) 2>/dev/null | cmp -s - /tmp/zeroes || exit 1; '
    'echo "TAG w $n" >&3; echo "TAG r $n" >&3; n=$((n + 1)); done; '
    'echo "written $n, verified $n, errors 0, bytes 0, seconds 0"')


def find_device(sectors: int) -> str:
    """Shell commands that set $dev to the disk of this size."""
    return (f'until f=$(grep -lx {sectors} /sys/block/vd*/size 2>/dev/null) '
            '&& f=${f%/size} && dev=${f##*/} && [ -b /dev/$dev ]; '
            'do usleep 10000; done; ')


class Run:
    """
    A program that loads one disk.

    @param number: of this run among all runs; it is also the seed
    """
    def __init__(self, guest: Guest, disk: DiskChoice, sectors: int,
                 number: int) -> None:
        self.tag = f'run{number}'
        self.disk = disk
        self._guest = guest
        self._sectors = sectors
        self.done: Dict[str, Set[int]] = {'w': set(), 'r': set()}
        self._blocks = min(BLOCKS, sectors * 512 // disk.block_size)
        self._options: Dict[str, object] = {
            'tag': self.tag, 'seed': number, 'block_size': disk.block_size,
            'blocks': self._blocks, 'depth': disk.depth}
        if disk.backend == DELAYED:
            command = READER.replace('TAG', self.tag)
        else:
            command = blkverify('$dev', **self._options)
        self._command = guest.start(
            f'{find_device(sectors)}echo $$ >/tmp/{self.tag}; {command}')

    def account(self, kind: str, sequence: int) -> None:
        """Note the completion of a request, which must be the first one."""
        assert sequence not in self.done[kind], \
            f'{self.tag}: {kind} {sequence} completed twice'
        self.done[kind].add(sequence)

    def stop(self) -> None:
        """Send the program SIGTERM."""
        self._guest.run(f'kill $(cat /tmp/{self.tag})')

    def summary(self) -> Summary:
        """Wait until the program has ended, and check its summary."""
        reply = self._guest.wait(self._command, PATIENCE)
        assert reply.status == 0, f'{self.tag}: {reply.output}'
        summary = Summary.parse(reply.output)
        assert summary.errors == 0, f'{self.tag}: {reply.output}'
        assert summary.verified == summary.written, \
            f'{self.tag}: {reply.output}'
        return summary

    def lasting(self) -> int:
        """How many writes, without a gap from the first, have completed."""
        count = 0
        while count in self.done['w']:
            count += 1
        return count

    def check_after_crash(self, guest: Guest) -> None:
        """All writes that had completed before a crash must be on disk."""
        count = self.lasting()
        if self.disk.backend == DELAYED or not count:
            return
        reply = guest.wait(guest.start(find_device(self._sectors) + blkverify(
            '$dev', '--check', **{**self._options, 'tag': 'check',
                                  'count': count})), PATIENCE)
        summary = Summary.parse(reply.output)
        wanted = min(count, self._blocks)
        assert (summary.errors, summary.verified) == (0, wanted), \
            f'{self.tag}: after a crash, of {count}: {reply.output}'


class GuestLoad:
    """The load on all disks of a guest, which may boot again."""

    def __init__(self) -> None:
        self.runs: Dict[str, Run] = {}
        self._by_tag: Dict[str, Run] = {}
        self._read = 0
        self._numbers = 0
        self.guest = Guest()

    def start(self, name: str, disk: DiskChoice, sectors: int) -> None:
        """Put load on a disk."""
        self._numbers += 1
        run = Run(self.guest, disk, sectors, self._numbers)
        self.runs[name] = run
        self._by_tag[run.tag] = run

    def moved_to(self, guest: Guest) -> None:
        """Use another guest; runs must be started again."""
        self.count()
        self.guest = guest
        self._read = 0

    def count(self) -> Dict[str, int]:
        """Note new completions; returns how many each run has, by tag."""
        end = len(self.guest.records)
        for record in self.guest.records[self._read:end]:
            tag, kind, sequence = record.text.split(' ')
            if tag != 'check':
                self._by_tag[tag].account(kind, int(sequence))
        self._read = end
        return {run.tag: len(run.done['r']) for run in self.runs.values()}

    def advance(self, count: int = 3) -> None:
        """Wait until each disk has answered more requests."""
        before = self.count()
        ahead: List[str] = []

        def is_ahead() -> bool:
            now = self.count()
            ahead[:] = [tag for tag in before
                        if now[tag] < before[tag] + count]
            return not ahead

        try:
            wait_for('each disk answers requests', is_ahead, PATIENCE)
        except TimeoutError as error:
            raise TimeoutError(f'{error}; these do not: {ahead}') from None

    def stop(self, *names: str) -> None:
        """End the load on some disks; each request must have been answered."""
        runs = [self.runs[name] for name in names]
        for run in runs:
            run.stop()
        summaries = [run.summary() for run in runs]
        for run, summary in zip(runs, summaries):
            def all_came(run: Run = run, wanted: int = summary.written
                         ) -> bool:
                self.count()
                everything = set(range(wanted))
                return run.done == {'w': everything, 'r': everything}

            wait_for(f'{run.tag}: each of {summary.written} requests was '
                     'answered once', all_came)
        for name in names:
            del self.runs[name]
