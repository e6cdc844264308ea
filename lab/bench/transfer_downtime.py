# SPDX-License-Identifier: GPL-2.0-or-later
"""
The pause of a guest in a migration, with disks of several kinds

In a round each guest migrates once.  Two of the guests have plain disks: their
difference shows how far the ratio of equal guests is from 1.
"""
import random
import sys
import time
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.disks import Disk, Load
from lab.machines.scope import Scope

from .moving_guest import Move, MovingGuest, bench_scope
from .transfer_gap import (DEPTH, SLOW_DISK, Shell, longest_gap, reads, sleeps,
                           ticks, verified, wait_beyond)

NONE, PLAIN, AGAIN, VHOST = 'none', 'plain', 'plain again', 'vhost-user'


class Setup(NamedTuple):
    """
    The common properties of the guests of a comparison.

    mode: how the next QEMU gets the guest's RAM
    busy: is there verified I/O?
    slow: is the queue full of requests that take 1 s?
    window: seconds of I/O in which the longest gap is searched: before a
            migration, and from its begin
    rounds, seconds: the least number of rounds, and the least duration
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
    A migration, and with load the longest gaps between completions, in ms.

    gap: in the window from the begin of the migration
    quiet: in a window of the same length before
    """
    move: Move
    gap: Optional[float] = None
    quiet: Optional[float] = None


def pci_slot(number: int) -> str:
    """The options that put a disk into a slot of the PCI bus."""
    return f',multifunction=on,addr={0x10 + number // 8:x}.{number % 8}'


def plain_disk(scope: Scope, name: str, slow: bool = False,
               where: str = '') -> Tuple[str, ...]:
    """Arguments for a virtio-blk-pci disk."""
    if slow:
        node = SLOW_DISK.format(name)
    else:
        image = make_disk(scope.path(f'{name}.img'))
        node = f'driver=file,node-name={name},filename={image}'
    return ('-blockdev', node, '-device',
            f'virtio-blk-pci,drive={name}{where}')


def vhost_disk(scope: Scope, name: str, slow: bool = False,
               where: str = '') -> Disk:
    """A vhost-user-blk-pci disk with a storage daemon of its own."""
    filters = (SLOW_DISK.format('disk'),) if slow else ()
    return Disk(scope.daemon(name, *filters), name, where)


def make_guest(scope: Scope, arm: str, setup: Setup,
               args: Tuple[str, ...] = ()) -> MovingGuest:
    """Boot the guest of an arm."""
    names = [f'{arm.replace(" ", "-")}{n}' for n in range(setup.disks)]
    if arm == VHOST:
        return MovingGuest(scope, *(
            vhost_disk(scope, name, setup.slow, pci_slot(number))
            for number, name in enumerate(names)), mode=setup.mode, args=args)
    for number, name in enumerate(names if arm != NONE else ()):
        args += plain_disk(scope, name, setup.slow, pci_slot(number))
    return MovingGuest(scope, mode=setup.mode, args=args)


def start_load(moving: MovingGuest, arm: str,
               setup: Setup) -> Union[Load, Shell]:
    """Start the load in the guest of an arm."""
    if setup.slow:
        return sleeps(moving) if arm == NONE else reads(moving)
    return ticks(moving) if arm == NONE else verified(moving)


def take_sample(moving: MovingGuest, arm: str, setup: Setup) -> Sample:
    """Migrate a guest, under load if the setup has it."""
    prepared = moving.prepare()
    if not setup.busy and not setup.slow:
        return Sample(prepared.move())
    load = start_load(moving, arm, setup)
    begin = time.monotonic()
    wait_beyond(moving.guest, begin + setup.window)
    move = prepared.move()
    wait_beyond(moving.guest, move.begun + setup.window)
    records = list(moving.guest.records)
    load.stop()
    moving.guest.records.clear()
    return Sample(move,
                  longest_gap(records, move.begun, move.begun + setup.window),
                  longest_gap(records, begin, begin + setup.window))


def measure_moves(setup: Setup) -> Dict[str, List[Sample]]:
    """Return the samples of each arm; each index is a round."""
    # By default a Python thread may have to wait 5 ms for another one.
    sys.setswitchinterval(0.0001)
    samples: Dict[str, List[Sample]] = {arm: [] for arm in setup.arms()}
    with bench_scope() as scope:
        guests = {arm: make_guest(scope, arm, setup) for arm in samples}
        end = time.monotonic() + setup.seconds
        rounds = 0
        while rounds < setup.rounds or time.monotonic() < end:
            for arm in random.sample(setup.arms(), len(samples)):
                samples[arm].append(take_sample(guests[arm], arm, setup))
            rounds += 1
    return samples
