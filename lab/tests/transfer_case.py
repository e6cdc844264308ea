# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tests of failed transfers share: a source under load
"""
from lab.machines.chain import IGNORE_SHARED, Chain, status, wait_end
from lab.machines.disks import Disk, Load
from lab.machines.vm import VM
from lab.machines.watch import connections, wait_for

from .testcase import TestCase


class SourceTest(TestCase):
    """A source, with its guest under load, that must survive failures"""

    source: VM

    def set_up(self, mode: str = IGNORE_SHARED, options: str = '',
               queues: int = 1) -> None:
        """Boot a guest with a disk and put load on it."""
        self.backend = self.scope.daemon(options=f',num-queues={queues}')
        self.disk = Disk(self.backend, options=options)
        self.chain = Chain(self.scope, self.disk, mode=mode,
                           args=('-smp', str(queues)))
        self.source = self.chain.boot()
        self.load = Load(self.chain.guest)
        self.connection = connections(self.backend.pid, self.backend.path)
        self.assertEqual(len(self.connection), 1)

    def assert_undisturbed(self) -> None:
        """The source must run and use its disk through the same connection."""
        wait_for('the source runs', lambda: status(self.source) == 'running')
        self.load.advance(300)
        self.assertEqual(connections(self.backend.pid, self.backend.path),
                         self.connection)

    def assert_transfers(self) -> None:
        """The next transfer must succeed, and no I/O have failed."""
        self.chain.transfer(self.source)
        self.load.advance(300)
        self.load.stop()
        self.assertEqual(connections(self.backend.pid, self.backend.path),
                         self.connection)

    def wait_failed(self) -> None:
        """Wait until the migration has failed in the source."""
        wait_end(self.source, 'failed')
