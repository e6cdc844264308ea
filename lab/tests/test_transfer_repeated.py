# SPDX-License-Identifier: GPL-2.0-or-later
"""
Many transfers, many disks, and migration from and to stock QEMU

The environment variable TRANSFERS is the number of transfers (default: 10).
"""
import os
import unittest

from lab import OBJ, STOCK_OBJ
from lab.machines.backend import MEGABYTE
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain
from lab.machines.disks import Disk, Load
from lab.machines.watch import connections, count_fds, memory

from .testcase import TestCase, main

TRANSFERS = int(os.environ.get('TRANSFERS', '10'))
STOCK = STOCK_OBJ / 'qemu-system-x86_64'


class Repeated(TestCase):
    """Memory and files must not grow from transfer to transfer"""

    def check_repeated(self, disks: int, queues: int, mode: str,
                       transfers: int) -> None:
        """Migrate a guest several times under load."""
        options = f',num-queues={queues}'
        moved = [Disk(self.scope.daemon(f'disk{n}', options=options), f'd{n}',
                      options) for n in range(disks)]
        pids = [disk.backend.pid for disk in moved]
        chain = Chain(self.scope, *moved, mode=mode,
                      args=('-smp', str(queues)))
        vm = chain.boot()
        names = [f'vd{letter}' for letter in 'abcdefghijklmnop'[:disks]]
        load = Load(chain.guest, *names, depth=32 // disks + 2)
        before = [connections(disk.backend.pid, disk.backend.path)
                  for disk in moved]
        held, used, qemu = [], [], []
        for _ in range(transfers):
            dest = chain.transfer(vm)
            vm.shutdown()
            vm = dest
            load.advance(10 * disks)
            held.append([count_fds(pid) for pid in pids])
            used.append(sum(memory(pid) for pid in pids))
            pid = vm.get_pid() or 0
            qemu.append((count_fds(pid), memory(pid)))
        load.stop()
        self.assertEqual([connections(disk.backend.pid, disk.backend.path)
                          for disk in moved], before)
        self.assertEqual(held[-1], held[0])
        self.assertLess(used[-1], used[0] + disks * MEGABYTE)
        self.assertEqual(qemu[-1][0], qemu[0][0])
        self.assertLess(qemu[-1][1], qemu[0][1] + 64 * MEGABYTE)

    def test_one_disk(self) -> None:
        """One disk with one queue."""
        self.check_repeated(1, 1, IGNORE_SHARED, TRANSFERS)

    def test_one_disk_cpr(self) -> None:
        """One disk, by cpr-transfer."""
        self.check_repeated(1, 1, CPR, TRANSFERS // 2)

    def test_one_disk_copied_memory(self) -> None:
        """One disk, RAM is copied."""
        self.check_repeated(1, 1, COPY, TRANSFERS // 4)

    def test_four_queues(self) -> None:
        """Four disks with four queues each."""
        self.check_repeated(4, 4, IGNORE_SHARED, TRANSFERS // 2)

    def test_sixteen_disks(self) -> None:
        """16 disks with four queues each."""
        self.check_repeated(16, 4, IGNORE_SHARED, TRANSFERS // 4)

    def test_fio(self) -> None:
        """fio finds no error on four disks in many transfers."""
        moved = [Disk(self.scope.daemon(f'disk{n}', options=',num-queues=2'),
                      f'd{n}', ',num-queues=2') for n in range(4)]
        chain = Chain(self.scope, *moved, args=('-smp', '2'), fio=True)
        vm = chain.boot()
        jobs = ' '.join(f'--name={name} --filename=/dev/{name}'
                        for name in ('vda', 'vdb', 'vdc', 'vdd'))
        stop = 'test ! -e /tmp/stop'
        run = chain.guest.start(
            f'while {stop}; do fio --rw=randwrite --bs=4k --size=8M '
            '--direct=1 --ioengine=libaio --iodepth=32 --verify=crc32c '
            f'--verify_fatal=1 {jobs} || exit 1; done')
        chain.guest.wait_until(
            'read -r _ _ _ _ n _ </sys/block/vdd/stat; [ $n -gt 100 ]')
        for _ in range(TRANSFERS):
            dest = chain.transfer(vm)
            vm.shutdown()
            vm = dest
        chain.guest.run('touch /tmp/stop')
        reply = chain.guest.wait(run, 120)
        self.assertEqual(reply.status, 0, reply.output)


@unittest.skipUnless(STOCK.exists(), 'type "./run stock" first')
class Compatibility(TestCase):
    """Without backend-transfer, migration from and to stock QEMU"""

    def check_migration(self, source_obj: object, dest_obj: object) -> None:
        """Migrate between QEMUs with a back-end each, of the same file."""
        disks = [Disk(self.scope.daemon('disk', share=True))]
        other = self.scope.daemon('other', share=True, disk='disk')
        chain = Chain(self.scope, *disks, mode=COPY)
        source = chain.boot(obj=source_obj)
        load = Load(chain.guest)
        dest = chain.destination(obj=dest_obj, disks=[Disk(other)])
        chain.send(source, dest, transfer=(False, False))
        chain.arrive(source, dest)
        load.advance(300)
        load.stop()

    def test_from_stock(self) -> None:
        """From stock QEMU to ours."""
        self.check_migration(STOCK_OBJ, OBJ)

    def test_to_stock(self) -> None:
        """From our QEMU to stock."""
        self.check_migration(OBJ, STOCK_OBJ)

    def test_without_the_parameter(self) -> None:
        """From our QEMU to our QEMU."""
        self.check_migration(OBJ, OBJ)


if __name__ == '__main__':
    main()
