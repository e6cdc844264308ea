# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is in flight on a guest's disks, watched in the guest's memory

Only the memory can tell while the guest is between two QEMUs.
"""
import mmap
import threading
import time
from pathlib import Path
from typing import Any, List

from guest.vm import VM


class Rings:
    """
    Watches the first queue of vhost-user disks in a "with" block.

    @param vm: the QEMU that the guest is in
    @param memory: size of the guest's memory, in MiB; it is one file
    @param disks: names of the devices
    """
    def __init__(self, vm: VM, memory: int, *disks: str) -> None:
        # Not x-query-virtio-queue-status: it stops the queue (GET_VRING_BASE).
        self._rings: List[Any] = [vm.cmd(
            'x-query-virtio-vhost-queue-status', queue=0,
            path=f'/machine/peripheral/{disk}/virtio-backend')
            for disk in disks]
        size = memory * 1024 * 1024
        path = next(path for path in Path(f'/proc/{vm.get_pid()}/fd').iterdir()
                    if path.stat().st_size == size)
        with path.open('rb') as ram:
            self._ram = mmap.mmap(ram.fileno(), size, prot=mmap.PROT_READ)
        self._samples = [(time.time(), self._flying())]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _indices(self, area: str) -> int:
        total = 0
        for ring in self._rings:
            place = ring[area] + 2
            total += int.from_bytes(self._ram[place:place + 2], 'little')
        return total

    def _flying(self) -> int:
        # In this order: what is used later must have been available before.
        used = self._indices('used-phys')
        return (self._indices('avail-phys') - used) % 65536

    def _watch(self) -> None:
        while not self._done.wait(0.0002):
            self._samples.append((time.time(), self._flying()))

    def __enter__(self) -> 'Rings':
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._ram.close()

    def in_flight(self, event: Any) -> int:
        """How many requests the back-ends had at the time of an event."""
        stamp = event['timestamp']
        when = stamp['seconds'] + stamp['microseconds'] / 1e6
        return [flying for moment, flying in self._samples
                if moment <= when][-1]
