# SPDX-License-Identifier: GPL-2.0-or-later
"""
A running guest migrates, and its disk's back-end keeps its connection

Every test here fails on a QEMU without backend-transfer, which hangs when it
connects to a back-end that has a client.
"""
import time

from lab.machines.backend import Backend
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain, status
from lab.machines.disks import Disk, Load
from lab.machines.vm import HOTPLUG_BUSES, VM
from lab.machines.watch import Messages, connections, wait_for

from .testcase import TestCase, main

GET_VRING_BASE = 11
SLOW = 'driver=null-co,node-name=disk,size=16777216,latency-ns=3000000000'
# Says "B" on the serial port, then reads the second sector for ever and says
# its first byte, or "E" for an error.
BOOT_SECTOR = bytes.fromhex(
    '31c0 8ed8 8ec0 8ed0 bc007c'    # ds = es = ss = 0, sp = 0x7c00
    'b042 e81b00'                   # al = 'B', call say
    # read:
    'b80102 b90200 b600 bb007e'     # one sector, the second, to bx = 0x7e00
    'c60700 cd13 8a07'              # [bx] = 0, int 0x13, al = [bx]
    '7302 b045'                     # if carry: al = 'E'
    'e80200 ebe5'                   # call say, jump read
    # say:
    '52 50 bafd03 ec a820 74fb'     # wait until the serial port is ready
    'baf803 58 ee 5a c3')           # send al, return


class BackendTransfer(TestCase):
    """Transfers that succeed"""

    def check_transfer(self, backend: Backend, mode: str) -> None:
        """The guest must migrate under load, and the connection be kept."""
        chain = Chain(self.scope, Disk(backend), mode=mode)
        source = chain.boot()
        load = Load(chain.guest)
        before = connections(backend.pid, backend.path)
        with Messages(backend.pid, self.scope.path('')) as messages:
            dest = chain.destination()
            load.advance()      # the waiting QEMU disturbs nobody
            chain.transfer(source, dest)
            load.advance(500)
        if mode == COPY:
            self.assertIn(GET_VRING_BASE, messages.requests)
        else:
            self.assertEqual(messages.requests, [])
        self.assertEqual(len(before), 1)
        self.assertEqual(connections(backend.pid, backend.path), before)

        source.shutdown()
        load.advance()
        load.stop()
        chain.guest.verify('vda', count=1000, seed=2)
        self.assertEqual(connections(backend.pid, backend.path), before)

    def test_shared_memory_file(self) -> None:
        """RAM is a file that both QEMUs open."""
        self.check_transfer(self.scope.daemon(), IGNORE_SHARED)

    def test_cpr(self) -> None:
        """RAM is a memfd that the new QEMU is given."""
        self.check_transfer(self.scope.daemon(), CPR)

    def test_copied_memory(self) -> None:
        """RAM is copied, so that the rings have to be stopped."""
        self.check_transfer(self.scope.daemon(), COPY)

    def test_sample_backend(self) -> None:
        """A back-end that has an inflight region, and one client only."""
        for number, mode in enumerate((IGNORE_SHARED, COPY)):
            backend = self.scope.sample_backend(f'disk{number}')
            self.check_transfer(backend, mode)

    def check_slow_read(self, mode: str) -> None:
        """A read of 3 s must be answered once, by the new QEMU."""
        backend = self.scope.daemon('disk', SLOW)
        chain = Chain(self.scope, Disk(backend), mode=mode)
        source = chain.boot()
        inflight = 'grep -q "^ *%d *0$" /sys/block/vda/inflight'
        chain.guest.wait_until(f'[ -b /dev/vda ] && {inflight % 0}')
        dest = chain.destination()

        started = time.monotonic()
        read = chain.guest.start(
            'dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=99')
        chain.guest.wait_until(inflight % 1)
        chain.transfer(source, dest)
        moved = time.monotonic() - started
        reply = chain.guest.wait(read)
        done = time.monotonic() - started
        self.assertEqual(reply.status, 0, reply.output)
        self.assertLess(moved, 2.5)
        self.assertGreater(done, 2.9)
        self.assertLess(done, 5.5)      # not sent again

        # If a request was completed twice, the guest complains now.
        chain.guest.run('dd if=/dev/vda of=/dev/null bs=4096 count=1 skip=98')
        self.assertNotIn('is not a head', dest.console.read_text('utf-8'))

    def test_slow_read_shared_memory_file(self) -> None:
        """The transfer does not wait for a read; RAM is a file."""
        self.check_slow_read(IGNORE_SHARED)

    def test_slow_read_cpr(self) -> None:
        """The transfer does not wait for a read; RAM is a memfd."""
        self.check_slow_read(CPR)

    def check_slow_load(self, mode: str) -> None:
        """No slow request may be wrong, or lost."""
        backend = self.scope.daemon(limit=16)
        chain = Chain(self.scope, Disk(backend), mode=mode)
        source = chain.boot()
        load = Load(chain.guest, first=16)
        dest = chain.transfer(source)
        load.advance(32)
        chain.transfer(dest)
        load.advance(32)
        load.stop()

    def test_slow_load(self) -> None:
        """A transfer with a full queue of slow requests."""
        self.check_slow_load(IGNORE_SHARED)

    def test_slow_load_copied_memory(self) -> None:
        """A transfer with a full queue of slow requests; RAM is copied."""
        self.check_slow_load(COPY)

    def test_paused(self) -> None:
        """A paused guest stays paused until "cont" in the destination."""
        chain = Chain(self.scope, Disk(self.scope.daemon()))
        source = chain.boot()
        load = Load(chain.guest)
        source.cmd('stop')
        dest = chain.destination()
        chain.send(source, dest)
        chain.settle(source, dest)
        self.assertEqual(status(dest), 'paused')
        dest.take_guest()
        dest.cmd('cont')
        load.advance()
        load.stop()

    def test_start_paused(self) -> None:
        """A destination with -S gets the disk, and waits for "cont"."""
        chain = Chain(self.scope, Disk(self.scope.daemon()))
        source = chain.boot()
        load = Load(chain.guest)
        dest = chain.destination('-S')
        chain.send(source, dest)
        chain.settle(source, dest)
        self.assertEqual(status(dest), 'paused')
        dest.take_guest()
        dest.cmd('cont')
        load.advance()
        load.stop()
        source.shutdown()
        chain.guest.verify('vda', count=1000, seed=2)

    def test_shapes(self) -> None:
        """Disks of several kinds move together."""
        shapes = {
            'plain': '', 'queues': ',num-queues=2,queue-size=64',
            # The daemon does not offer packed rings: they are not used.
            'packed': ',packed=on', 'simple': ',indirect_desc=off,'
                                              'event_idx=off'}
        disks = [
            Disk(self.scope.daemon(name, options=',num-queues=2'), name, shape)
            for name, shape in shapes.items()]
        chain = Chain(self.scope, *disks, args=('-smp', '2'))
        source = chain.boot()
        load = Load(chain.guest, *(f'vd{letter}' for letter in 'abcd'))
        before = [connections(disk.backend.pid, disk.backend.path)
                  for disk in disks]
        dest = chain.transfer(source)
        load.advance(1000)
        chain.transfer(dest)
        load.advance(1000)
        load.stop()
        self.assertEqual([connections(disk.backend.pid, disk.backend.path)
                          for disk in disks], before)

    def test_hotplugged(self) -> None:
        """Disks that were hot-plugged in the source or the destination."""
        disks = [Disk(self.scope.daemon(f'disk{n}'), f'd{n}',
                      f',bus={HOTPLUG_BUSES[n]}') for n in range(2)]
        chain = Chain(self.scope)
        source = chain.boot()
        for disk in disks:
            disk.plug(source)
        load = Load(chain.guest, 'vda', 'vdb')
        dest = chain.destination(disks=disks[:1])
        disks[1].plug(dest)
        chain.transfer(source, dest)
        load.advance(500)
        load.stop()
        for disk in disks:
            dest.delete_device(disk.name)
        chain.guest.wait_until('[ ! -e /dev/vda -a ! -e /dev/vdb ]')

    def check_boot_disk(self, mode: str) -> None:
        """A guest that boots from the disk must be able to boot again."""
        backend = self.scope.daemon()
        with open(backend.disk, 'r+b') as disk:
            disk.write(BOOT_SECTOR.ljust(510, b'\0') + b'\x55\xaa.')
        chain = Chain(self.scope, Disk(backend, options=',bootindex=1'),
                      mode=mode, kernel=False)
        vm = chain.vm()
        vm.launch()
        self.wait_said(vm, 'B...')
        for _ in range(3):
            vm = chain.transfer(vm)
            self.wait_said(vm, '.' * 100)
        vm.cmd('set-action', reboot='reset')
        vm.cmd('system_reset')
        self.wait_said(vm, 'B...')

    def test_without_iommu(self) -> None:
        """virtio-mmio without an IOMMU, though iommu_platform is on."""
        backend = self.scope.daemon()
        chain = Chain(self.scope, mode=COPY, kernel=False, args=(
            '-machine', 'microvm,pcie=on',
            '-chardev', f'socket,id=c-d,path={backend.path}',
            '-device', 'vhost-user-blk,id=d,chardev=c-d,iommu_platform=on'))
        source = chain.vm('-S')
        source.launch()
        dest = chain.destination()
        chain.send(source, dest)
        chain.settle(source, dest)

    def wait_said(self, vm: VM, text: str) -> None:
        """Wait until the boot sector has printed a text, and no error."""
        wait_for(f'the guest says {text}',
                 lambda: text in vm.console.read_text('ascii'))
        self.assertNotIn('E', vm.console.read_text('ascii'))

    def test_boot_disk(self) -> None:
        """The firmware reads from the disk during transfers."""
        self.check_boot_disk(IGNORE_SHARED)

    def test_boot_disk_copied_memory(self) -> None:
        """The firmware reads from the disk during transfers; RAM is copied."""
        self.check_boot_disk(COPY)


if __name__ == '__main__':
    main()
