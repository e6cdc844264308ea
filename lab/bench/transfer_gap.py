# SPDX-License-Identifier: GPL-2.0-or-later
"""
Load in a guest that moves, and the longest time that nothing came of it

The guest reports what it completes, and the host puts its time on that: the
guest's own clock stands still while it moves.
"""
import time
from typing import List

from lab.machines.agent import Guest, Record
from lab.machines.disks import Load

from .transfer_moves import Mover

# A disk that takes 1 s for each request, and as many of these as its queue
# has room for, evenly spread over that second.
SLOW_DISK = ('driver=null-co,node-name={},size=1099511627776,read-zeroes=on,'
             'latency-ns=1000000000')
DEPTH = 128
READ = 'dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=$n iflag=direct'
# What makes as many processes without a disk: a QEMU that has just started
# must translate the guest's code again, and this is much code.
SLEEP = 'usleep 1000000'
READERS = (
    f'for i in $(seq {DEPTH}); do (n=$i; until [ -e /tmp/stop ]; do '
    f'%s && echo r >&3; n=$((n + {DEPTH})); done) & '
    f'usleep {1000000 // DEPTH}; done 2>/dev/null; wait')
# Reports without a disk, some thousand a second.
TICKS = ('until [ -e /tmp/stop ]; do i=0; while [ $i -lt 20 ]; do '
         'i=$((i + 1)); done; echo t; done >&3')


class Shell:
    """A command that reports until stop() makes the file /tmp/stop."""

    def __init__(self, guest: Guest, command: str) -> None:
        self._guest = guest
        guest.run('rm -f /tmp/stop')
        self._run = guest.start(command)
        guest.wait_records(DEPTH)

    def stop(self) -> None:
        """Wait until the command has ended."""
        self._guest.run('touch /tmp/stop')
        self._guest.wait(self._run)


def ticks(mover: Mover) -> Shell:
    """Report without a disk."""
    return Shell(mover.guest, TICKS)


def reads(mover: Mover) -> Shell:
    """Fill the queue of a slow disk with reads."""
    mover.guest.wait_until('[ -b /dev/vda ]')
    return Shell(mover.guest, READERS % READ)


def sleeps(mover: Mover) -> Shell:
    """Do without a disk what else the guest does in reads()."""
    return Shell(mover.guest, READERS % SLEEP)


def verified(mover: Mover) -> Load:
    """Write blocks and verify what is read back."""
    return Load(mover.guest)


def longest_gap(records: List[Record], begin: float, end: float) -> float:
    """The longest time without a record that overlaps begin...end, in ms."""
    times = [record.time for record in records]
    return max(after - before for before, after in zip(times, times[1:])
               if after > begin and before < end) * 1000


def wait_beyond(guest: Guest, end: float) -> None:
    """Wait until a record has come after this time."""
    time.sleep(max(0, end - time.monotonic()))
    guest.wait_records(1)
