# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the move of a guest costs, by the number of its disks

As elsewhere, a guest with vhost-user disks is compared with one that has as
many plain disks, and that with another one like it.
"""
import math
import random
import statistics
from typing import Dict, List, NamedTuple, Optional

from lab.machines.watch import count_fds, memory

from .transfer_downtime import AGAIN, PLAIN, VHOST, Setup, make_mover
from .transfer_moves import Move, Mover, bed
from .transfer_stream import Stream, measure_stream

COUNTS = (1, 4, 16, 32, 64)
FEW, MANY = 16, 64              # where the cost of a disk is compared
ARMS = (PLAIN, AGAIN, VHOST)
ROUNDS = 10


class Cost(NamedTuple):
    """
    What a move has cost.

    own: memory that the new QEMU shares with nobody, in MiB
    peak: the most that it has ever had mapped and present, in MiB
    held: files that it has open
    """
    move: Move
    own: float
    peak: float
    held: int


Costs = Dict[str, List[Cost]]


def take_cost(mover: Mover) -> Cost:
    """Move a guest."""
    move = mover.move()
    pid = mover.vm.get_pid()
    assert pid
    return Cost(move, memory(pid) / 2**20, memory(pid, 'VmHWM') / 2**20,
                count_fds(pid))


def wait_disks(mover: Mover, count: int) -> None:
    """Wait until the guest has found all its disks."""
    mover.guest.wait_until(
        f'[ "$(ls /sys/block | grep -c ^vd)" -eq {count} ]')


def measure_costs(count: int) -> Costs:
    """Move guests with so many disks; a round is at each index."""
    costs: Costs = {arm: [] for arm in ARMS}
    with bed() as place:
        movers = {arm: make_mover(place, arm, Setup(count)) for arm in ARMS}
        for mover in movers.values():
            wait_disks(mover, count)
            # The first QEMU has state that those which follow do not have.
            mover.move()
        for _ in range(ROUNDS):
            for arm in random.sample(ARMS, len(ARMS)):
                costs[arm].append(take_cost(movers[arm]))
    return costs


def count_maps(count: int) -> Dict[str, int]:
    """How many memory maps the new QEMU makes while the guest pauses."""
    maps = {}
    for arm in (PLAIN, VHOST):
        with bed() as place:
            mover = make_mover(place, arm, Setup(count),
                               ('-trace', 'flatview_new'))
            mover.move()
            maps[arm] = mover.move().maps
    return maps


def measure_sizes(count: int) -> Dict[str, Stream]:
    """What is in the stream, by the kind of the disks."""
    sizes = {}
    for arm, vhost, plain in ((PLAIN, 0, count), (VHOST, count, 0)):
        with bed() as place:
            sizes[arm] = measure_stream(place, vhost, plain)
    return sizes


class Growth(NamedTuple):
    """
    How a cost grows with the number of disks.

    slope: of the straight line that is nearest to all counts
    few, many: what each disk adds to the cost of one disk, up to FEW and MANY
    power: 1 if the growth from FEW to MANY is linear, 2 if it is quadratic;
           None if there is none
    """
    slope: float
    few: float
    many: float
    power: Optional[float]


def growth(costs: Dict[int, float]) -> Growth:
    """Say how costs grow, which are given by the number of disks."""
    slope, _ = statistics.linear_regression(list(costs), list(costs.values()))
    few, many = ((costs[count] - costs[1]) / (count - 1)
                 for count in (FEW, MANY))
    power = None
    if few > 0 and many > 0:
        power = 1 + math.log(many / few) / math.log((MANY - 1) / (FEW - 1))
    return Growth(slope, few, many, power)
