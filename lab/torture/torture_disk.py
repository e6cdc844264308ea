# SPDX-License-Identifier: GPL-2.0-or-later
"""
A disk in a round, and the rules for its back-end
"""
import os
from collections import Counter
from typing import Optional, Set

from lab.machines.backend import (MEGABYTE, Backend, SampleBackend,
                                  StorageDaemon, make_disk)
from lab.machines.disks import Disk
from lab.machines.scope import Scope
from lab.machines.watch import connections, wait_for

from .choices import DELAYED, SAMPLE, SLOW, THROTTLED, DiskChoice
from .mortal_vm import BAD
from .open_files import assert_no_more_files, open_files

RATE = {THROTTLED: 500, SLOW: 40}       # requests a second


class Sample(SampleBackend):
    """The sample back-end, which ends when its client disconnects."""

    def status(self) -> Optional[int]:
        """The exit status; None: the process runs."""
        return self._process.poll() if self._process else None


class TortureDisk(Disk):
    """
    A disk of the VM, and its back-end, which runs.

    connection: inodes of the connections that the back-end must keep
    files: the files that the back-end has open, beside those

    @param number: of the disk; it determines the size, too, so that each disk
                   has another size
    @param bus: the PCI bus of a disk that is hot-plugged
    """
    def __init__(self, scope: Scope, number: int, choice: DiskChoice,
                 bus: str = '') -> None:
        name = f'd{number}'
        size = 17 + number
        path = scope.path(f'{name}.sock')
        image = make_disk(scope.path(f'{name}.img'), size)
        if choice.backend == SAMPLE:
            backend: Backend = Sample(path, image)
        else:
            filters = [f'driver=null-co,node-name=disk,size={size * MEGABYTE},'
                       'read-zeroes=on,latency-ns=150000000'] \
                if choice.backend == DELAYED else []
            backend = StorageDaemon(
                path, image, *filters, options=f',num-queues={choice.queues}',
                limit=RATE.get(choice.backend, 0))
        super().__init__(scope.backend(backend), name,
                         choice.options + (f',bus={bus}' if bus else ''),
                         ',reconnect-ms=50' if choice.reconnect else '')
        self.choice = choice
        self.sectors = size * MEGABYTE // 512
        self.connection: Set[int] = set()
        self.files: 'Counter[str]' = Counter()

    def look(self) -> Set[int]:
        """The inodes of the connections of the back-end."""
        return connections(self.backend.pid, self.backend.path)

    def remember(self) -> None:
        """Remember connection and files, for check()."""
        wait_for(f'{self.name} has one connection',
                 lambda: len(self.look()) == 1)
        self.connection = self.look()
        self.files = open_files(self.backend.pid)

    def signal(self, number: int) -> None:
        """Send the back-end a signal, if it runs."""
        if self.backend.is_running():
            os.kill(self.backend.pid, number)

    def wait_free(self) -> None:
        """Wait until the connection has ended; restart a sample back-end."""
        wait_for('the back-end is free', lambda: not
                 self.backend.is_running() or not self.look())
        if isinstance(self.backend, Sample):
            self.judge()
            self.backend.kill()     # it may have been restarted already
            self.backend.start()

    def restart_if_ended(self) -> None:
        """Start a sample back-end that has ended with its client."""
        if not self.backend.is_running():
            self.judge()
            self.backend.start()

    def check(self) -> None:
        """The back-end must have kept its connection, and its files."""
        if not self.connection:
            self.remember()
        assert self.look() == self.connection, \
            f'{self.name}: {self.look()} instead of {self.connection}'
        assert_no_more_files(self.backend.pid, self.files)

    def judge(self) -> None:
        """The output and the exit status of the back-end must be good."""
        text = self.backend.output()
        found = BAD.search(text)
        assert not found, f'the back-end of {self.name} printed {text[:2000]}'
        if isinstance(self.backend, Sample):
            code = self.backend.status()
            assert code in (None, 0, 1), \
                f'the back-end of {self.name} ended with {code}: {text}'
        else:
            assert self.backend.is_running(), \
                f'the back-end of {self.name} has ended: {text}'
