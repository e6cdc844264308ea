# SPDX-License-Identifier: GPL-2.0-or-later
"""
A running guest migrates; the back-end of its disk is older than the series

The back-end is the qemu-storage-daemon of Debian's package qemu-system-common.
Unlike ours it does not wait for requests in flight when a ring is stopped.
"""
from typing import List

from lab.machines.backend import StorageDaemon, make_disk
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain
from lab.machines.disks import Disk, Load
from lab.machines.watch import connections

from .testcase import TestCase, main


class DebianDaemon(StorageDaemon):
    """Debian's qemu-storage-daemon, with the arguments of ours."""

    def arguments(self) -> List[str]:
        return ['/usr/bin/qemu-storage-daemon', *super().arguments()[1:]]


class DebianBackend(TestCase):
    """Transfers of disks of Debian's daemon"""

    def check_transfers(self, mode: str, limit: int = 0) -> None:
        """A guest must migrate twice, and the connection be kept."""
        backend = self.scope.backend(DebianDaemon(
            self.scope.path('disk.sock'),
            make_disk(self.scope.path('disk.img')), limit=limit))
        chain = Chain(self.scope, Disk(backend), mode=mode)
        vm = chain.boot()
        load = Load(chain.guest, first=16)
        before = connections(backend.pid, backend.path)
        self.assertEqual(len(before), 1)
        for _ in range(2):
            dest = chain.transfer(vm)
            vm.shutdown()
            vm = dest
            load.advance(32 if limit else 500)
        load.stop()
        self.assertEqual(connections(backend.pid, backend.path), before)
        self.assertEqual(backend.output(), '')      # no error message

    def test_shared_memory_file(self) -> None:
        """RAM is a file that both QEMUs open."""
        self.check_transfers(IGNORE_SHARED)

    def test_cpr(self) -> None:
        """RAM is a memfd that the new QEMU is given."""
        self.check_transfers(CPR)

    def test_copied_memory(self) -> None:
        """RAM is copied, so that the rings have to be stopped."""
        self.check_transfers(COPY)

    def test_slow_load(self) -> None:
        """A transfer with a full queue of slow requests."""
        self.check_transfers(IGNORE_SHARED, limit=16)

    def test_slow_load_copied_memory(self) -> None:
        """A transfer with a full queue of slow requests; RAM is copied."""
        self.check_transfers(COPY, limit=16)


if __name__ == '__main__':
    main()
