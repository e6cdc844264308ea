# SPDX-License-Identifier: GPL-2.0-or-later
"""
An update with stock QEMU: unplug the disk, migrate, plug the disk again

The root disk cannot be unplugged: it is a plain virtio-blk disk here.  The
load on the data disk must end before that is unplugged.  Everything else is
prepared, so that the time without the disk is short: the new QEMU has been
started, there is no pause between the steps, and the next fio only waits for
the disk.
"""
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from qemu.live_update.report.html import Step
from qemu.live_update.report.rings import Request, Watch, find_rings

from lab import OBJ, STOCK_OBJ
from lab.machines.agent import Guest
from lab.machines.backend import Backend
from lab.machines.disks import Disk
from lab.machines.monitor import Monitor
from lab.machines.server_vm import SLOT, ServerVM
from lab.machines.watch import wait_for

from .load import Fio, Options, Verdict, longest_gap, total, wait_until_busy

IS_BUILT = (STOCK_OBJ / 'qemu-system-x86_64').exists()
# Run in the guest: wait until /dev/vdb is another disk.  Polling more often
# would take too much time of the guest's only CPU.
ANOTHER_DISK = (
    'number=/sys/block/vdb/diskseq; read old <$number; until read new <$number'
    ' && [ $new != $old ] && [ -b /dev/vdb ]; do usleep 50000; done')
MIGRATION = {'x-ignore-shared', 'return-path', 'events'}


class StockUpdate(NamedTuple):
    """
    The figures of an update; times are those of time.time().

    requests: of both disks, with some before and after the update
    steps: each with the time when it began
    ended: the end of the measurement
    paused: when the guest was paused, and when it resumed
    downtime: of the migration, as QEMU reports it, in seconds
    gap: the longest time in which no request of the data disk completed, in
         seconds
    verdict: the result of fio
    """
    requests: List[Request]
    steps: List[Step]
    ended: float
    paused: Tuple[float, float]
    downtime: float
    gap: float
    verdict: Verdict


class StockVM:
    """
    A VM with load on its disks.

    @param folder: a new one, for the files of the QEMUs
    @param ram: path of the file that is the guest's memory
    @param image: of the root disk
    @param data: the back-end of the data disk
    @param load: options of fio for each disk
    """
    # pylint: disable=too-many-arguments, too-many-instance-attributes

    def __init__(self, folder: Path, ram: str, image: str, data: Backend,
                 load: Dict[str, Options]) -> None:
        folder.mkdir()
        self._guest = Guest()
        self._data = Disk(data, 'data', f',bus={SLOT}')
        self._load = load
        self._path = f'{folder}/migration'
        self._steps: List[Step] = []
        disks = ('-drive', f'if=none,id=d,format=raw,file={image}',
                 '-device', 'virtio-blk-pci,id=root,drive=d')
        obj = STOCK_OBJ if IS_BUILT else OBJ
        self._old, self._new = (
            ServerVM(folder / name, self._guest, ram, disks, obj)
            for name in ('old', 'new'))

    def _step(self, name: str, message: str) -> None:
        self._steps.append(Step(time.time(), name, message))

    def _plug(self, qmp: Monitor) -> None:
        self._step('plug', 'chardev-add')
        self._data.add_chardev(qmp)
        self._step('plug', 'device_add')
        self._data.add_device(qmp)

    def _unplug(self, qmp: Monitor) -> None:
        self._step('unplug', 'device_del')
        qmp.cmd('device_del', id=self._data.name)
        qmp.wait('DEVICE_DELETED')
        self._step('unplug', 'chardev-remove')
        qmp.cmd('chardev-remove', id=self._data.chardev)

    def _migrate(self, source: Monitor,
                 dest: Monitor) -> Tuple[float, float]:
        self._step('migrate', 'to the new QEMU, which has been started')
        for qmp in (source, dest):
            qmp.cmd('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True} for name in MIGRATION])
        dest.cmd('migrate-incoming', uri=f'unix:{self._path}')
        source.cmd('migrate', uri=f'unix:{self._path}')
        paused = source.wait('STOP'), dest.wait('RESUME')
        self._new.connect()
        return paused

    @staticmethod
    def _watch(vm: ServerVM, qmp: Monitor, device: str) -> Watch:
        """Watch a disk which the driver of the guest has set up."""
        rings, _ = qmp.do(find_rings)
        return Watch(vm.pid, [ring for ring in rings if ring.device == device])

    @staticmethod
    def _is_used(qmp: Monitor) -> bool:
        """Has the driver of the guest set up the data disk?"""
        status = qmp.cmd('x-query-virtio-status',
                         path='/machine/peripheral/data/virtio-backend')
        return bool(status['vhost-started'])

    def update(self) -> StockUpdate:
        """Boot the guest, put load on its disks, and update its QEMU."""
        self._old.boot()
        self._new.start('-incoming', 'defer')
        with self._old.monitor() as source, self._new.monitor() as dest:
            self._plug(source)
            self._guest.wait_until('[ -b /dev/vdb ]')
            root, data = (Fio(self._guest, disk, self._load[disk])
                          for disk in ('root', 'data'))
            next_data = Fio(self._guest, 'next-data', self._load['data'],
                            ANOTHER_DISK)
            with self._watch(self._old, source, 'root') as always:
                with self._watch(self._old, source, 'data') as before:
                    wait_until_busy(before, 'data')
                    self._steps.clear()
                    self._step('load', 'fio is told to end')
                    data.end()
                self._unplug(source)
                paused = self._migrate(source, dest)
                self._plug(dest)
                wait_for('the guest finds the disk',
                         lambda: self._is_used(dest))
                with self._watch(self._new, dest, 'data') as after:
                    wait_until_busy(after, 'data')
                    ended = time.time()
                    runs = root, next_data
                    for run in runs:
                        run.end()
                    verdict = total(run.verdict() for run in (data, *runs))
            downtime = source.cmd('query-migrate')['downtime'] / 1000
        self._old.quit()
        self._new.quit()
        # The requests before are the kernel's: it looks for partitions.
        loaded = [request for request in after.requests
                  if request.ended > next_data.begun]
        self._steps += [
            Step(next_data.begun, 'load', 'the next fio has found the disk'),
            Step(loaded[0].ended, 'load', 'its first request has completed')]
        requests = [*always.requests, *before.requests, *loaded]
        return StockUpdate(
            requests, self._steps, ended, paused, downtime,
            longest_gap(requests, self._steps[0].time, paused[1]),
            verdict)
