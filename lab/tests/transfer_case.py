# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tests of transfers share: back-ends, relays, and a source under load
"""
from typing import Any

from lab.machines.backend import make_disk
from lab.machines.chain import IGNORE_SHARED, Line, status, wait_end
from lab.machines.disks import Daemon, Disk, Load
from lab.machines.relay import Relay
from lab.machines.vm import VM
from lab.machines.watch import connections, wait_for

from .testcase import TestCase


class TransferTest(TestCase):
    """A test with disks that stay with their back-ends"""

    def daemon(self, name: str = 'disk', *filters: str, disk: str = '',
               **options: Any) -> Daemon:
        """A qemu-storage-daemon that serves a disk, or somebody else's."""
        daemon = Daemon(self.path(f'{name}.sock'),
                        make_disk(self.path(f'{disk or name}.img')), *filters,
                        **options)
        self._backend(daemon)
        daemon.start()
        return daemon

    def relay(self, line: Line, **options: Any) -> Relay:
        """A relay between the next source and the next destination."""
        relay = Relay(self.path('relay'), line.path, **options)
        self.addCleanup(relay.close)
        return relay


class SourceTest(TransferTest):
    """A source, with its guest under load, that must survive failures"""

    source: VM

    def set_up(self, mode: str = IGNORE_SHARED, options: str = '',
               queues: int = 1) -> None:
        """Boot a guest with a disk and put load on it."""
        self.backend = self.daemon(options=f',num-queues={queues}')
        self.disk = Disk(self.backend, options=options)
        self.line = Line(self, self.disk, mode=mode,
                         args=('-smp', str(queues)))
        self.source = self.line.boot()
        self.load = Load(self.line.guest)
        self.connection = connections(self.backend.pid, self.backend.path)
        self.assertEqual(len(self.connection), 1)

    def assert_undisturbed(self) -> None:
        """The source must run, with its disk."""
        wait_for('the source runs', lambda: status(self.source) == 'running')
        self.load.advance(300)
        self.assertEqual(connections(self.backend.pid, self.backend.path),
                         self.connection)

    def assert_transfers(self) -> None:
        """The next transfer must succeed, and no I/O have gone wrong."""
        self.line.transfer(self.source)
        self.load.advance(300)
        self.load.stop()
        self.assertEqual(connections(self.backend.pid, self.backend.path),
                         self.connection)

    def wait_failed(self) -> None:
        """Wait until the source says that migration has failed."""
        wait_end(self.source, 'failed')
