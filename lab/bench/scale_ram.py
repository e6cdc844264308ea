# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the move of a guest costs, by the size of its memory

Three quarters of what the guest has free are filled, so that there is
something to copy where RAM is copied.
"""
import random
from typing import Dict, List

from lab.machines.chain import COPY

from .transfer_downtime import vhost_disk
from .transfer_moves import Move, Mover, bed
from .transfer_stream import MODES

SMALL, LARGE = '256M', '4G'
ROUNDS = 12
COPY_ROUNDS = 5         # which take much longer
FILL = ("mount -t tmpfs -o size=100% none /mnt && "
        "dd if=/dev/urandom of=/tmp/seed bs=1M count=8 && "
        "for i in $(seq $(awk '/MemAvailable/ "
        "{ print int($2 / 8192 * 3 / 4) }' /proc/meminfo)); do "
        "cat /tmp/seed || exit; done >/mnt/fill")

Moves = Dict[str, List[Move]]


def measure_ram(mode: str) -> Moves:
    """Move a small and a large guest; a round is at each index."""
    moves: Moves = {SMALL: [], LARGE: []}
    with bed() as place:
        movers = {}
        for size in moves:
            # What live-update asks for; by default it is 128 MiB/s.
            movers[size] = mover = Mover(
                place, vhost_disk(place, f'disk-{size}'), mode=mode,
                memory=size, args=('-global', 'migration.x-max-bandwidth=1T'))
            mover.guest.run(FILL, timeout=300)
        for _ in range(COPY_ROUNDS if mode == COPY else ROUNDS):
            for size in random.sample(list(moves), len(moves)):
                moves[size].append(movers[size].move())
    return moves


def measure_rams() -> Dict[str, Moves]:
    """The moves of all modes."""
    return {mode: measure_ram(mode) for mode in MODES}
