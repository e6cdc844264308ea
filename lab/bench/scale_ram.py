# SPDX-License-Identifier: GPL-2.0-or-later
"""
The cost of a migration by the size of the guest's memory

The guest fills three quarters of its free memory with random data, so that
RAM that is copied is not zero.
"""
import random
from typing import Dict, List

from lab.machines.chain import COPY, MODES

from .moving_guest import Move, MovingGuest, bench_scope
from .transfer_downtime import vhost_disk

SMALL, LARGE = '256M', '4G'
ROUNDS = 12
COPY_ROUNDS = 5         # fewer, since copying RAM takes long
FILL = ("mount -t tmpfs -o size=100% none /mnt && "
        "dd if=/dev/urandom of=/tmp/seed bs=1M count=8 && "
        "for i in $(seq $(awk '/MemAvailable/ "
        "{ print int($2 / 8192 * 3 / 4) }' /proc/meminfo)); do "
        "cat /tmp/seed || exit; done >/mnt/fill")

Moves = Dict[str, List[Move]]


def measure_ram(mode: str) -> Moves:
    """Migrate a small and a large guest; each index is a round."""
    moves: Moves = {SMALL: [], LARGE: []}
    with bench_scope() as scope:
        guests = {}
        for size in moves:
            # The bandwidth of live-update; the default is 128 MiB/s.
            guests[size] = moving = MovingGuest(
                scope, vhost_disk(scope, f'disk-{size}'), mode=mode,
                memory=size, args=('-global', 'migration.x-max-bandwidth=1T'))
            moving.guest.run(FILL, timeout=300)
        for _ in range(COPY_ROUNDS if mode == COPY else ROUNDS):
            for size in random.sample(list(moves), len(moves)):
                moves[size].append(guests[size].move())
    return moves


def measure_rams() -> Dict[str, Moves]:
    """The migrations in each mode."""
    return {mode: measure_ram(mode) for mode in MODES}
