# SPDX-License-Identifier: GPL-2.0-or-later
"""
The time without a disk in an update as stock QEMU allows it

There is no pause between the steps, and the guest only does I/O: a real guest
would have to unmount file systems, or to stop and start services.
"""
from typing import Callable, Dict, List

from lab import STOCK_OBJ
from lab.machines.agent import Guest
from lab.machines.disks import Disk, Load
from lab.machines.scope import Scope
from lab.machines.vm import HOTPLUG_BUSES

from .moving_guest import MovingGuest, bench_scope

ROUNDS = 5


def first_after(guest: Guest, end: float) -> float:
    """Start I/O; returns the seconds from end to the first completion."""
    count = len(guest.records)
    load = Load(guest)
    seconds = guest.records[count].time - end
    load.stop()
    return seconds


def last_before(guest: Guest) -> float:
    """Do I/O for a while; returns the time of the last completion."""
    Load(guest).stop()
    return guest.records[-1].time


def unplug(scope: Scope) -> List[float]:
    """Unplug the disk, migrate, plug the disk again."""
    disk = Disk(scope.daemon(obj=STOCK_OBJ),
                options=f',bus={HOTPLUG_BUSES[0]}')
    moving = MovingGuest(scope, transfer=False, obj=STOCK_OBJ)
    disk.plug(moving.vm)
    times = []
    for _ in range(ROUNDS):
        prepared = moving.prepare()
        end = last_before(moving.guest)
        moving.vm.delete_device(disk.name)
        moving.vm.cmd('chardev-remove', id=disk.chardev)
        prepared.move()
        disk.plug(moving.vm)
        times.append(first_after(moving.guest, end))
    return times


def restart(scope: Scope) -> List[float]:
    """End QEMU without a shutdown of the guest, and boot again."""
    disk = Disk(scope.daemon(obj=STOCK_OBJ))
    times = []
    moving = MovingGuest(scope, disk, obj=STOCK_OBJ)
    for _ in range(ROUNDS):
        end = last_before(moving.guest)
        moving.vm.shutdown()
        moving = MovingGuest(scope, disk, obj=STOCK_OBJ)
        times.append(first_after(moving.guest, end))
    return times


def measure_today() -> Dict[str, List[float]]:
    """Return the seconds without a disk, by the way of the update."""
    ways: Dict[str, Callable[[Scope], List[float]]] = {
        'unplug, migrate, plug': unplug, 'end the VM, boot': restart}
    times = {}
    for name, way in ways.items():
        with bench_scope() as scope:
            times[name] = way(scope)
    return times
