# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a disk adds to the migration stream, and what its back-end is told
"""
from typing import Dict, List, NamedTuple

from lab.machines.chain import COPY, CPR, IGNORE_SHARED
from lab.machines.disks import Disk, Load
from lab.machines.watch import Messages, count_fds

from .transfer_downtime import plain_disk, seat, vhost_disk
from .transfer_moves import Bed, Mover, bed

MODES = (IGNORE_SHARED, CPR, COPY)


class Stream(NamedTuple):
    """
    What a disk adds.

    size: bytes in the stream
    fds: files in the stream
    held: files that QEMU has open
    """
    size: int
    fds: int
    held: int

    def __sub__(self, other: 'Stream') -> 'Stream':
        return Stream(*(a - b for a, b in zip(self, other)))


def measure_messages(mode: str) -> List[int]:
    """Move a guest under load; which messages does the back-end get?"""
    with bed() as place:
        backend = place.daemon()
        mover = Mover(place, Disk(backend), mode=mode)
        load = Load(mover.guest)
        with Messages(backend.pid, place.path('')) as messages:
            mover.move()
            load.advance()
        load.stop()
        return messages.requests


def measure_stream(place: Bed, vhost: int, plain: int) -> Stream:
    """Move an idle guest with so many disks."""
    disks = [vhost_disk(place, f'd{n}', where=seat(n)) for n in range(vhost)]
    args = [arg for n in range(plain)
            for arg in plain_disk(place, f'p{n}', where=seat(n))]
    mover = Mover(place, *disks, args=tuple(args))
    # The first QEMU has state that those which follow do not have.
    mover.move()
    relay = place.relay(mover.line)
    move = mover.move(relay)
    relay.close()
    return Stream(relay.passed, move.fds, count_fds(mover.vm.get_pid() or 0))


def measure_streams() -> Dict[str, Stream]:
    """Return what a disk adds, by its kind."""
    with bed() as place:
        none = measure_stream(place, 0, 0)
    with bed() as place:
        plain = measure_stream(place, 0, 1)
    with bed() as place:
        vhost = measure_stream(place, 1, 0)
    with bed() as place:
        second = measure_stream(place, 2, 0)
    return {'plain': plain - none, 'vhost-user, the first': vhost - none,
            'vhost-user, the second': second - vhost}
