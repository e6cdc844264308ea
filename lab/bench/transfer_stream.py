# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a disk adds to the migration stream, and the messages to its back-end
"""
from typing import Dict, List, NamedTuple

from lab.machines.disks import Disk, Load
from lab.machines.scope import Scope
from lab.machines.watch import Messages, count_fds

from .moving_guest import MovingGuest, bench_scope
from .transfer_downtime import pci_slot, plain_disk, vhost_disk


class Stream(NamedTuple):
    """
    What a disk adds.

    size: bytes in the stream
    fds: file descriptors in the stream
    held: file descriptors that QEMU has open
    """
    size: int
    fds: int
    held: int

    def __sub__(self, other: 'Stream') -> 'Stream':
        return Stream(*(a - b for a, b in zip(self, other)))


def measure_messages(mode: str) -> List[int]:
    """Migrate a guest under load; returns the messages to its back-end."""
    with bench_scope() as scope:
        backend = scope.daemon()
        moving = MovingGuest(scope, Disk(backend), mode=mode)
        load = Load(moving.guest)
        with Messages(backend.pid, scope.path('')) as messages:
            moving.move()
            load.advance()
        load.stop()
        return messages.requests


def measure_stream(scope: Scope, vhost: int, plain: int) -> Stream:
    """Migrate an idle guest with so many disks of each kind."""
    disks = [vhost_disk(scope, f'd{n}', where=pci_slot(n))
             for n in range(vhost)]
    args = [arg for n in range(plain)
            for arg in plain_disk(scope, f'p{n}', where=pci_slot(n))]
    moving = MovingGuest(scope, *disks, args=tuple(args))
    # The first QEMU has state which a QEMU that the guest migrated to lacks.
    moving.move()
    relay = moving.chain.relay()
    move = moving.move(relay)
    relay.close()
    return Stream(relay.passed, move.fds, count_fds(moving.vm.get_pid() or 0))


def measure_streams() -> Dict[str, Stream]:
    """Return what a disk adds, by the kind of the disk."""
    with bench_scope() as scope:
        none = measure_stream(scope, 0, 0)
    with bench_scope() as scope:
        plain = measure_stream(scope, 0, 1)
    with bench_scope() as scope:
        vhost = measure_stream(scope, 1, 0)
    with bench_scope() as scope:
        second = measure_stream(scope, 2, 0)
    return {'plain': plain - none, 'vhost-user, the first': vhost - none,
            'vhost-user, the second': second - vhost}
