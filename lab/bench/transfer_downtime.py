# SPDX-License-Identifier: GPL-2.0-or-later
"""
How long a guest does not run when it moves, with disks of several kinds

In a round every guest moves once.  There are two with plain disks: how far
they are apart shows what a ratio is worth.
"""
import random
import sys
import time
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.disks import Disk, Load

from .transfer_gap import (DEPTH, SLOW_DISK, Shell, longest_gap, reads, sleeps,
                           ticks, verified, wait_beyond)
from .transfer_moves import Bed, Move, Mover, bed

NONE, PLAIN, AGAIN, VHOST = 'none', 'plain', 'plain again', 'vhost-user'


class Setup(NamedTuple):
    """
    What the guests of a comparison have in common.

    busy: there is verified I/O
    slow: the queue is full of requests of 1 s
    window: seconds of I/O that are looked at before a move, and from its begin
    rounds: how many there are at least
    """
    disks: int = 1
    mode: str = IGNORE_SHARED
    busy: bool = False
    slow: bool = False
    window: float = 0.5
    rounds: int = 15
    seconds: float = 30.0

    def __str__(self) -> str:
        name = f'{self.disks} disk{"s" if self.disks > 1 else ""}'
        if self.mode != IGNORE_SHARED:
            name += f', {self.mode}'
        if self.slow:
            return f'{name}, {DEPTH} requests of 1 s'
        return f'{name}, verified I/O' if self.busy else name

    def arms(self) -> Tuple[str, ...]:
        """The guests that are compared."""
        return ((NONE, PLAIN, VHOST) if self.slow
                else (NONE, PLAIN, AGAIN, VHOST))


IDLE = (Setup(1), Setup(4), Setup(16), Setup(1, CPR))
BUSY = Setup(busy=True)
SLOW = Setup(slow=True, window=2, rounds=6, seconds=0)


class Sample(NamedTuple):
    """
    A move; with load also the longest gaps in its reports, in ms.

    gap: from the begin of the move
    quiet: in the same time before it
    """
    move: Move
    gap: Optional[float] = None
    quiet: Optional[float] = None


def seat(number: int) -> str:
    """The option that gives a disk its place on the PCI bus."""
    return f',multifunction=on,addr={0x10 + number // 8:x}.{number % 8}'


def plain_disk(place: Bed, name: str, slow: bool = False,
               where: str = '') -> Tuple[str, ...]:
    """Arguments for a virtio-blk-pci disk."""
    if slow:
        node = SLOW_DISK.format(name)
    else:
        image = make_disk(place.path(f'{name}.img'))
        node = f'driver=file,node-name={name},filename={image}'
    return ('-blockdev', node, '-device',
            f'virtio-blk-pci,drive={name}{where}')


def vhost_disk(place: Bed, name: str, slow: bool = False,
               where: str = '') -> Disk:
    """A vhost-user-blk-pci disk with a storage daemon of its own."""
    filters = (SLOW_DISK.format('disk'),) if slow else ()
    return Disk(place.daemon(name, *filters), name, where)


def make_mover(place: Bed, arm: str, setup: Setup,
               args: Tuple[str, ...] = ()) -> Mover:
    """Boot the guest of an arm, with more arguments for QEMU."""
    names = [f'{arm.replace(" ", "-")}{n}' for n in range(setup.disks)]
    if arm == VHOST:
        return Mover(place, *(
            vhost_disk(place, name, setup.slow, seat(number))
            for number, name in enumerate(names)), mode=setup.mode, args=args)
    for number, name in enumerate(names if arm != NONE else ()):
        args += plain_disk(place, name, setup.slow, seat(number))
    return Mover(place, mode=setup.mode, args=args)


def start_load(mover: Mover, arm: str, setup: Setup) -> Union[Load, Shell]:
    """Start what the guest of an arm has to do."""
    if setup.slow:
        return sleeps(mover) if arm == NONE else reads(mover)
    return ticks(mover) if arm == NONE else verified(mover)


def take_sample(mover: Mover, arm: str, setup: Setup) -> Sample:
    """Move a guest, if wanted under load."""
    prepared = mover.prepare()
    if not setup.busy and not setup.slow:
        return Sample(prepared.move())
    load = start_load(mover, arm, setup)
    begin = time.monotonic()
    wait_beyond(mover.guest, begin + setup.window)
    move = prepared.move()
    wait_beyond(mover.guest, move.begun + setup.window)
    records = list(mover.guest.records)
    load.stop()
    mover.guest.records.clear()
    return Sample(move,
                  longest_gap(records, move.begun, move.begun + setup.window),
                  longest_gap(records, begin, begin + setup.window))


def measure_moves(setup: Setup) -> Dict[str, List[Sample]]:
    """Return the samples of each arm, a round at each index."""
    # A thread that waits for another costs 5 ms by default: too long a gap.
    sys.setswitchinterval(0.0001)
    samples: Dict[str, List[Sample]] = {arm: [] for arm in setup.arms()}
    with bed() as place:
        movers = {arm: make_mover(place, arm, setup) for arm in samples}
        end = time.monotonic() + setup.seconds
        rounds = 0
        while rounds < setup.rounds or time.monotonic() < end:
            for arm in random.sample(setup.arms(), len(samples)):
                samples[arm].append(take_sample(movers[arm], arm, setup))
            rounds += 1
    return samples
