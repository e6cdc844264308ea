# SPDX-License-Identifier: GPL-2.0-or-later
"""
The cost of a migration by the number of disks

A guest with vhost-user disks is compared with a guest with as many plain
disks, and that with another guest with as many plain disks.
"""
import math
import random
import statistics
from typing import Dict, List, NamedTuple, Optional

from lab.machines.watch import count_fds, memory

from .moving_guest import Move, MovingGuest, bench_scope
from .transfer_downtime import AGAIN, PLAIN, VHOST, Setup, make_guest
from .transfer_stream import Stream, measure_stream

COUNTS = (1, 4, 16, 32, 64)
FEW, MANY = 16, 64              # numbers for which the cost is compared
ARMS = (PLAIN, AGAIN, VHOST)
ROUNDS = 10


class Cost(NamedTuple):
    """
    The cost of a migration.

    own: private memory of the new QEMU in MiB
    peak: the greatest resident set size of the new QEMU in MiB
    held: file descriptors that the new QEMU has open
    """
    move: Move
    own: float
    peak: float
    held: int


Costs = Dict[str, List[Cost]]


def take_cost(moving: MovingGuest) -> Cost:
    """Migrate a guest."""
    move = moving.move()
    pid = moving.vm.get_pid()
    assert pid
    return Cost(move, memory(pid) / 2**20, memory(pid, 'VmHWM') / 2**20,
                count_fds(pid))


def wait_disks(moving: MovingGuest, count: int) -> None:
    """Wait until the guest has found all disks."""
    moving.guest.wait_until(
        f'[ "$(ls /sys/block | grep -c ^vd)" -eq {count} ]')


def measure_costs(count: int) -> Costs:
    """Migrate guests with so many disks; each index is a round."""
    costs: Costs = {arm: [] for arm in ARMS}
    with bench_scope() as scope:
        guests = {arm: make_guest(scope, arm, Setup(count)) for arm in ARMS}
        for moving in guests.values():
            wait_disks(moving, count)
            # The first QEMU has state which later ones lack: do not count it.
            moving.move()
        for _ in range(ROUNDS):
            for arm in random.sample(ARMS, len(ARMS)):
                costs[arm].append(take_cost(guests[arm]))
    return costs


def count_maps(count: int) -> Dict[str, int]:
    """How many memory maps the new QEMU makes in the pause of the guest."""
    maps = {}
    for arm in (PLAIN, VHOST):
        with bench_scope() as scope:
            moving = make_guest(scope, arm, Setup(count),
                                ('-trace', 'flatview_new'))
            moving.move()
            maps[arm] = moving.move().maps
    return maps


def measure_sizes(count: int) -> Dict[str, Stream]:
    """The size of the stream, by the kind of the disks."""
    sizes = {}
    for arm, vhost, plain in ((PLAIN, 0, count), (VHOST, count, 0)):
        with bench_scope() as scope:
            sizes[arm] = measure_stream(scope, vhost, plain)
    return sizes


class Growth(NamedTuple):
    """
    The growth of a cost with the number of disks.

    slope: of the regression line
    few, many: the cost that each disk adds to the first, up to FEW or MANY
    power: 1 if the growth from FEW to MANY is linear, 2 if it is quadratic;
           None if the cost does not grow
    """
    slope: float
    few: float
    many: float
    power: Optional[float]


def growth(costs: Dict[int, float]) -> Growth:
    """Return the growth of costs, which are given by number of disks."""
    slope, _ = statistics.linear_regression(list(costs), list(costs.values()))
    few, many = ((costs[count] - costs[1]) / (count - 1)
                 for count in (FEW, MANY))
    power = None
    if few > 0 and many > 0:
        power = 1 + math.log(many / few) / math.log((MANY - 1) / (FEW - 1))
    return Growth(slope, few, many, power)
