# SPDX-License-Identifier: GPL-2.0-or-later
"""
How long a guest is without its disk by what stock QEMU offers for an update

Nobody waits between the steps, and the guest does nothing but I/O: in real
life it has to unmount, or to stop and start its services.
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
    """Start I/O; seconds from end until the first request is complete."""
    count = len(guest.records)
    load = Load(guest)
    seconds = guest.records[count].time - end
    load.stop()
    return seconds


def last_before(guest: Guest) -> float:
    """Do I/O for a while; when was the last request complete?"""
    Load(guest).stop()
    return guest.records[-1].time


def unplug(scope: Scope) -> List[float]:
    """Unplug the disk, migrate, plug it again."""
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
    """End the VM without asking its guest, and boot it again."""
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
    """Return the seconds without a disk, by what is done."""
    ways: Dict[str, Callable[[Scope], List[float]]] = {
        'unplug, migrate, plug': unplug, 'end the VM, boot': restart}
    times = {}
    for name, way in ways.items():
        with bench_scope() as scope:
            times[name] = way(scope)
    return times
