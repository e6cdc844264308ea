# SPDX-License-Identifier: GPL-2.0-or-later
"""
How long a guest is without its disk by what stock QEMU offers for an update

Nobody waits between the steps, and the guest does nothing but I/O: in real
life it has to unmount, or to stop and start its services.
"""
from typing import Callable, Dict, List

from lab import STOCK_OBJ
from lab.machines.agent import Guest
from lab.machines.chain import plug
from lab.machines.disks import Disk, Load
from lab.machines.vm import HOTPLUG_BUSES

from .transfer_moves import Bed, Mover, bed

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


def unplug(place: Bed) -> List[float]:
    """Unplug the disk, migrate, plug it again."""
    disk = Disk(place.daemon(obj=STOCK_OBJ),
                options=f',bus={HOTPLUG_BUSES[0]}')
    mover = Mover(place, transfer=False, obj=STOCK_OBJ)
    plug(mover.vm, disk)
    times = []
    for _ in range(ROUNDS):
        prepared = mover.prepare()
        end = last_before(mover.guest)
        mover.vm.delete_device(disk.name)
        mover.vm.cmd('chardev-remove', id=f'c-{disk.name}')
        prepared.move()
        plug(mover.vm, disk)
        times.append(first_after(mover.guest, end))
    return times


def restart(place: Bed) -> List[float]:
    """End the VM without asking its guest, and boot it again."""
    disk = Disk(place.daemon(obj=STOCK_OBJ))
    times = []
    mover = Mover(place, disk, obj=STOCK_OBJ)
    for _ in range(ROUNDS):
        end = last_before(mover.guest)
        mover.vm.shutdown()
        mover = Mover(place, disk, obj=STOCK_OBJ)
        times.append(first_after(mover.guest, end))
    return times


def measure_today() -> Dict[str, List[float]]:
    """Return the seconds without a disk, by what is done."""
    ways: Dict[str, Callable[[Bed], List[float]]] = {
        'unplug, migrate, plug': unplug, 'end the VM, boot': restart}
    times = {}
    for name, way in ways.items():
        with bed() as place:
            times[name] = way(place)
    return times
