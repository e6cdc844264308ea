# SPDX-License-Identifier: GPL-2.0-or-later
"""
After a transfer a disk can do all that a disk can do without one
"""
from lab.machines.agent import Summary, blkverify
from lab.machines.backend import MEGABYTE
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain, status
from lab.machines.disks import Disk, Load
from lab.machines.vm import HOTPLUG_BUSES, VM
from lab.machines.watch import Messages, connections, wait_for

from .testcase import TestCase, main

DRIVER = '/sys/bus/virtio/drivers/virtio_blk'
SET_MEM_TABLE = 5
ADD_MEM_REG = 37


class LaterLife(TestCase):
    """A disk that has been transferred"""

    def check_disk(self, vm: VM) -> None:
        """The disk must work, and another transfer, too."""
        self.chain.guest.verify('vda', count=1000, seed=3)
        load = Load(self.chain.guest, seed=4)
        self.chain.transfer(vm)
        load.advance(300)
        load.stop()

    def set_up(self, disk: Disk, mode: str = IGNORE_SHARED,
               *args: str) -> VM:
        """Boot a guest and transfer it, under load."""
        self.chain = Chain(self.scope, disk, mode=mode, args=args)
        source = self.chain.boot()
        load = Load(self.chain.guest)
        dest = self.chain.transfer(source)
        load.advance(300)
        load.stop()
        source.shutdown()
        return dest

    def check_reboot(self, mode: str) -> None:
        """The guest reboots, and the host resets it."""
        backend = self.scope.daemon()
        vm = self.set_up(Disk(backend), mode)
        before = connections(backend.pid, backend.path)
        vm.cmd('set-action', reboot='reset')
        self.chain.guest.start('reboot -f')
        self.chain.guest.wait_booted()
        Load(self.chain.guest, seed=2)
        vm.cmd('system_reset')      # with requests in flight
        self.chain.guest.wait_booted()
        self.check_disk(vm)
        self.assertEqual(connections(backend.pid, backend.path), before)

    def test_reboot(self) -> None:
        """Reboot after a live transfer."""
        self.check_reboot(IGNORE_SHARED)

    def test_reboot_copied_memory(self) -> None:
        """Reboot after a transfer that stopped the rings."""
        self.check_reboot(COPY)

    def test_reboot_cpr(self) -> None:
        """Reboot after cpr-transfer."""
        self.check_reboot(CPR)

    def test_driver(self) -> None:
        """The driver is unbound from the disk, and bound again."""
        vm = self.set_up(Disk(self.scope.daemon()))
        for _ in range(2):
            self.chain.guest.run(
                f'dev=$(basename $(readlink -f /sys/block/vda/device)) && '
                f'echo $dev >{DRIVER}/unbind && [ ! -e /sys/block/vda ] && '
                f'echo $dev >{DRIVER}/bind')
            self.chain.guest.verify('vda', count=1000, seed=2)
        self.check_disk(vm)

    def test_stop_and_continue(self) -> None:
        """The VM is stopped and continued under load."""
        vm = self.set_up(Disk(self.scope.daemon()))
        load = Load(self.chain.guest, seed=2)
        for _ in range(3):
            vm.cmd('stop')
            vm.cmd('cont')
            load.advance(300)
        load.stop()
        self.check_disk(vm)

    def test_resize(self) -> None:
        """The guest sees a new size, before and after a transfer."""
        backend = self.scope.daemon()
        vm = self.set_up(Disk(backend))
        for size in 24, 32:
            backend.cmd('block_resize', **{'node-name': 'disk',
                                           'size': size * MEGABYTE})
            sectors = size * MEGABYTE // 512
            self.chain.guest.wait_until(
                f'[ $(cat /sys/block/vda/size) = {sectors} ]', 20)
            vm = self.chain.transfer(vm)
        self.check_disk(vm)

    def test_unplug_beside_source(self) -> None:
        """After unplugging the back-end is free; the old QEMU still runs."""
        backend = self.scope.daemon()
        disk = Disk(backend, options=f',bus={HOTPLUG_BUSES[0]}')
        chain = Chain(self.scope, disk)
        source = chain.boot()
        Load(chain.guest).stop()
        dest = chain.transfer(source)
        dest.delete_device(disk.name)
        dest.cmd('chardev-remove', id=f'c-{disk.name}')
        wait_for('the back-end is free',
                 lambda: not connections(backend.pid, backend.path))
        disk.plug(dest)
        Load(chain.guest).stop()
        self.assertEqual(status(source), 'postmigrate')

    def test_unplug(self) -> None:
        """The disk is unplugged, and plugged in again."""
        backend = self.scope.daemon()
        disk = Disk(backend, options=f',bus={HOTPLUG_BUSES[0]}')
        vm = self.set_up(disk)
        vm.delete_device('d')
        self.chain.guest.wait_until('[ ! -e /dev/vda ]')
        vm.cmd('chardev-remove', id='c-d')
        wait_for('the back-end is free', lambda: not connections(
            backend.pid, backend.path))
        disk.plug(vm)
        self.chain.guest.wait_until('[ -b /dev/vda ]')
        self.check_disk(vm)

    def check_memory_hotplug(self, mode: str) -> None:
        """New memory is used for I/O while the old rings run on."""
        backend = self.scope.daemon()
        vm = self.set_up(Disk(backend), mode, '-m', 'slots=1,maxmem=1G')
        load = Load(self.chain.guest, seed=2)
        with Messages(backend.pid, self.scope.path('')) as messages:
            vm.cmd('object-add', {'qom-type': 'memory-backend-memfd',
                                  'id': 'more', 'size': 128 * MEGABYTE})
            vm.cmd('device_add', driver='pc-dimm', id='dimm', memdev='more')
            self.chain.guest.wait_until(
                'for m in /sys/devices/system/memory/memory*/state; do '
                'grep -q offline $m && echo online >$m; done; '
                '[ $(grep MemTotal /proc/meminfo | tr -dc 0-9) -gt 250000 ]')
            load.advance(300)
            # The old memory is full, so that buffers are in the new one.
            self.chain.guest.run(
                'mount -t tmpfs -o size=90% none /tmp && '
                'for n in 1 2 3 4 5 6 7; do cp /dev/vda /tmp/$n; done')
            load.stop()
            self.chain.guest.verify('vda', count=1000, seed=3, depth=256,
                                    block_size=65536)
        self.assertTrue({SET_MEM_TABLE, ADD_MEM_REG} & set(messages.requests))

    def test_memory_hotplug(self) -> None:
        """Memory is plugged in after a live transfer."""
        self.check_memory_hotplug(IGNORE_SHARED)

    def test_memory_hotplug_copied_memory(self) -> None:
        """Memory is plugged in after a transfer that stopped the rings."""
        self.check_memory_hotplug(COPY)

    def check_backend_restart(self, mode: str) -> None:
        """The back-end restarts: only the new QEMU may reconnect."""
        backend = self.scope.sample_backend()
        disk = Disk(backend, chardev=',reconnect-ms=100')
        self.chain = Chain(self.scope, disk, mode=mode)
        source = self.chain.boot()
        load = Load(self.chain.guest, depth=32)
        dest = self.chain.transfer(source)
        load.advance(300)
        for _ in range(3):
            backend.kill()
            backend.start()
            load.advance(300)
        self.assertEqual(status(source), 'postmigrate')
        self.assertNotEqual(source.chardev('c-d').get('state'), 'connected')
        load.stop()
        self.check_disk(dest)

    def test_backend_restart(self) -> None:
        """The back-end restarts after a live transfer."""
        self.check_backend_restart(IGNORE_SHARED)

    def test_backend_restart_cpr(self) -> None:
        """The back-end restarts after cpr-transfer."""
        self.check_backend_restart(CPR)

    def test_backend_restart_copied_memory(self) -> None:
        """The back-end restarts after a transfer that stopped the rings."""
        self.check_backend_restart(COPY)

    def test_backend_gone(self) -> None:
        """While the back-end does not run, a transfer is refused."""
        backend = self.scope.sample_backend()
        disk = Disk(backend, chardev=',reconnect-ms=100')
        vm = self.set_up(disk)
        backend.kill()
        disk.wait_connected(vm, False)
        self.chain.prepare(vm, source=True)
        error = vm.qmp('migrate', {'uri': f'unix:{self.chain.path}'})
        self.assertIn('not connected', str(error.get('error')))
        backend.start()
        writer = self.chain.guest.start(blkverify('vda', count=1000, seed=2))
        summary = Summary.parse(self.chain.guest.wait(writer).output)
        self.assertEqual((summary.verified, summary.errors), (1000, 0))
        self.check_disk(vm)


if __name__ == '__main__':
    main()
