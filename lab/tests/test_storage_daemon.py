# SPDX-License-Identifier: GPL-2.0-or-later
"""
qemu-storage-daemon completes requests in flight when a VM stops

A slow disk has requests in flight whenever the VM stops or is reset.  Every
test here fails with a daemon that stops a ring before its requests have
completed.
"""
from typing import Any, List

from lab.machines.agent import Summary, blkverify
from lab.machines.backend import StorageDaemon, make_disk
from lab.machines.vm import VM

from .testcase import TestCase, main

# A request takes a second.
SLOW = ('driver=null-co,node-name=disk,size=16777216,read-zeroes=on,'
        'latency-ns=1000000000')
# So few requests a second that a guest that writes always has some in flight.
BUSY = 100
IN_FLIGHT = "! grep -q '^ *0 *0$' /sys/block/vda/inflight"
QUEUES = 2


class Daemon(StorageDaemon):
    """A daemon with an iothread, which an export may use."""

    def arguments(self) -> List[str]:
        program, *rest = super().arguments()
        return [program, '--object', 'iothread,id=iothread', *rest]


class StorageDaemonTest(TestCase):
    """A guest with a slow disk that qemu-storage-daemon serves"""

    def boot(self, *filters: str, options: str = '', limit: int = 0) -> VM:
        """Boot a guest whose /dev/vda a daemon serves."""
        backend = self.scope.backend(Daemon(
            self.scope.path('disk.sock'),
            make_disk(self.scope.path('disk.img')), *filters,
            options=f',num-queues={QUEUES}{options}', limit=limit))
        vm = self.scope.vm(
            '-smp', '2', '-chardev', f'socket,id=c,path={backend.path}',
            '-device',
            f'vhost-user-blk-pci,id=d,chardev=c,num-queues={QUEUES}')
        vm.boot()
        vm.guest.wait_until('[ -b /dev/vda ]')
        return vm

    def start_writer(self, vm: VM) -> int:
        """Start blkverify in the guest."""
        writer = vm.guest.start(blkverify('vda'))
        vm.guest.wait_records(50)
        return writer

    def stop_and_continue(self, vm: VM) -> None:
        """Stop the VM: then the daemon must have completed its requests."""
        vm.cmd('stop')
        for number in range(QUEUES):
            queue: Any = vm.cmd('x-query-virtio-queue-status',
                                path='/machine/peripheral/d/virtio-backend',
                                queue=number)
            self.assertEqual(queue['used-idx'], queue['last-avail-idx'])
        vm.cmd('cont')

    def test_stop(self) -> None:
        """A read that is in flight during stop and cont succeeds."""
        vm = self.boot(SLOW)
        for _ in range(2):
            read = vm.guest.start('dd if=/dev/vda of=/dev/null bs=4k count=1 '
                                  'iflag=direct')
            vm.guest.wait_until(IN_FLIGHT)
            self.stop_and_continue(vm)
            reply = vm.guest.wait(read)
            self.assertEqual(reply.status, 0, reply.output)

    def check_stop_under_load(self, options: str) -> None:
        """Stop and cont must not disturb a guest that writes."""
        vm = self.boot(options=options, limit=BUSY)
        writer = self.start_writer(vm)
        for _ in range(5):
            self.stop_and_continue(vm)
            vm.guest.wait_records(50)
        vm.guest.run('killall blkverify')
        summary = Summary.parse(vm.guest.wait(writer).output)
        self.assertEqual((summary.verified, summary.errors),
                         (summary.written, 0))

    def test_stop_under_load(self) -> None:
        """Several queues, served by the daemon's main loop."""
        self.check_stop_under_load('')

    def test_stop_under_load_iothread(self) -> None:
        """Several queues, served by an iothread."""
        self.check_stop_under_load(',iothread=iothread')

    def test_reset_under_load(self) -> None:
        """A guest finds its disk again after a reset."""
        vm = self.boot(limit=BUSY)
        vm.cmd('set-action', reboot='reset')
        for _ in range(2):
            self.start_writer(vm)
            vm.cmd('system_reset')
            vm.wait_booted()
            vm.guest.wait_until('[ -b /dev/vda ]')
            summary = vm.guest.verify('vda', count=100)
            self.assertEqual((summary.verified, summary.errors), (100, 0))


if __name__ == '__main__':
    main()
