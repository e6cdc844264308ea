# SPDX-License-Identifier: GPL-2.0-or-later
"""
Record what the fuzz targets begin with from real transfers

usage: python3 -m lab.fuzz.record_corpus DIR

Moves guests with disks of several kinds, and writes what passed, as it was,
to a folder for each target in DIR, which must not exist yet.
"""
import sys
import unittest
from pathlib import Path
from typing import Dict, List

from lab.machines.backend import Backend
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Line, plug
from lab.machines.disks import Disk, Load
from lab.machines.vm import HOTPLUG_BUSES
from lab.tests.transfer_case import TransferTest

from .inputs import Input
from .messages import MessageRelay
from .stream import StreamRelay, transfers

TRANSFERS = 2


class Recorded:
    """Inputs for all targets."""

    def __init__(self) -> None:
        self._inputs: Dict[str, List[bytes]] = {
            'char-transfer': [], 'vhost-user-session': [],
            'vhost-user-messages': []}

    def add(self, target: str, new: Input) -> None:
        """Add an input, unless there is the same already."""
        if new.to_bytes() not in self._inputs[target]:
            self._inputs[target].append(new.to_bytes())

    def write(self, folder: Path) -> None:
        """Write all; the folder comes into being when all is there."""
        unfinished = folder.with_suffix('.new')
        for target, inputs in self._inputs.items():
            (unfinished / target).mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(inputs):
                (unfinished / target / f'{number:03}').write_bytes(data)
            print(f'{target}: {len(inputs)} inputs')
        unfinished.rename(folder)


RECORDED = Recorded()


class Recording(TransferTest):
    """Transfers of which all is recorded."""

    def tap(self, backend: Backend) -> Backend:
        """The same back-end at another path, where its messages are seen."""
        relay = MessageRelay(f'{backend.path}.tap', backend.path)
        self.addCleanup(self.keep_messages, relay)
        return Backend(relay.path, backend.disk)

    @staticmethod
    def keep_messages(relay: MessageRelay) -> None:
        """The connection has ended."""
        relay.close()
        RECORDED.add('vhost-user-messages', relay.input())

    def disk(self, name: str, options: str = '') -> Disk:
        """A disk that a qemu-storage-daemon serves."""
        return Disk(self.tap(self.daemon(name, options=',num-queues=4')),
                    name, options)

    def record(self, line: Line, plugged: int = 0) -> None:
        """Move a guest, all of whose disks have load."""
        source = line.boot(disks=line.disks[plugged:])
        for disk in line.disks[:plugged]:
            plug(source, disk)
        load = Load(line.guest,
                    *(f'vd{"abcd"[n]}' for n in range(len(line.disks))))
        for number in range(TRANSFERS):
            relay = StreamRelay(self.path(f'relay{number}'), line.path)
            self.addCleanup(relay.close)
            dest = line.destination()
            line.send(source, dest, relay.path)
            line.arrive(source, dest)
            load.advance()
            found = list(transfers(relay))
            self.assertEqual(len(found), len(line.disks))
            for transfer in found:
                RECORDED.add('char-transfer', transfer.connection)
                RECORDED.add('vhost-user-session', transfer.session)
            source.shutdown()
            source = dest
        load.stop()
        source.shutdown()

    def test_shapes(self) -> None:
        """Disks of several kinds, RAM is a file."""
        self.record(Line(
            self, self.disk('plain'), self.disk('queues', ',num-queues=4'),
            self.disk('simple', ',indirect_desc=off,event_idx=off'),
            mode=IGNORE_SHARED, args=('-smp', '4')))

    def test_modes(self) -> None:
        """RAM is copied, or a memfd."""
        for mode in COPY, CPR:
            self.record(Line(self, self.disk(mode, ',num-queues=2'),
                             mode=mode, args=('-smp', '2')))

    def test_plugged(self) -> None:
        """A disk that was plugged in."""
        self.record(Line(self, self.disk('d', f',bus={HOTPLUG_BUSES[0]}')),
                    plugged=1)

    def test_sample_backend(self) -> None:
        """A back-end with an inflight region."""
        for mode in IGNORE_SHARED, COPY:
            backend = self.sample_backend(mode)
            backend.start()
            self.record(Line(self, Disk(self.tap(backend), 'd'), mode=mode))


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Recording)
    if not unittest.TextTestRunner().run(suite).wasSuccessful():
        return 1
    RECORDED.write(Path(sys.argv[1]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
