# SPDX-License-Identifier: GPL-2.0-or-later
"""
Load in a guest that migrates, and the longest gap between completions

The guest reports each completion, and the host adds the time of arrival: the
clock of the guest stops while the guest is paused.
"""
import time
from typing import List

from lab.machines.agent import Guest, Record
from lab.machines.disks import Load

from .moving_guest import MovingGuest

# A disk that takes 1 s for each request.  As many readers as its queue has
# entries start one after the other, evenly spread over a second.
SLOW_DISK = ('driver=null-co,node-name={},size=1099511627776,read-zeroes=on,'
             'latency-ns=1000000000')
DEPTH = 128
READ = 'dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=$n iflag=direct'
# The same processes without a disk, for comparison: a new QEMU must translate
# their code again, which takes long.
SLEEP = 'usleep 1000000'
READERS = (
    f'for i in $(seq {DEPTH}); do (n=$i; until [ -e /tmp/stop ]; do '
    f'%s && echo r >&3; n=$((n + {DEPTH})); done) & '
    f'usleep {1000000 // DEPTH}; done 2>/dev/null; wait')
# Some thousand reports a second, without a disk.
TICKS = ('until [ -e /tmp/stop ]; do i=0; while [ $i -lt 20 ]; do '
         'i=$((i + 1)); done; echo t; done >&3')


class Shell:
    """A command that reports until the file /tmp/stop exists."""

    def __init__(self, guest: Guest, command: str) -> None:
        self._guest = guest
        guest.run('rm -f /tmp/stop')
        self._run = guest.start(command)
        guest.wait_records(DEPTH)

    def stop(self) -> None:
        """End the command."""
        self._guest.run('touch /tmp/stop')
        self._guest.wait(self._run)


def ticks(moving: MovingGuest) -> Shell:
    """Report without a disk."""
    return Shell(moving.guest, TICKS)


def reads(moving: MovingGuest) -> Shell:
    """Fill the queue of a slow disk with reads."""
    moving.guest.wait_until('[ -b /dev/vda ]')
    return Shell(moving.guest, READERS % READ)


def sleeps(moving: MovingGuest) -> Shell:
    """Run the processes of reads() without a disk."""
    return Shell(moving.guest, READERS % SLEEP)


def verified(moving: MovingGuest) -> Load:
    """Write blocks and verify what is read back."""
    return Load(moving.guest)


def longest_gap(records: List[Record], begin: float, end: float) -> float:
    """The longest gap between records in begin...end, in ms."""
    times = [record.time for record in records]
    return max(after - before for before, after in zip(times, times[1:])
               if after > begin and before < end) * 1000


def wait_beyond(guest: Guest, end: float) -> None:
    """Wait for a record after this time."""
    time.sleep(max(0, end - time.monotonic()))
    guest.wait_records(1)
