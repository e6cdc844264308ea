# SPDX-License-Identifier: GPL-2.0-or-later
"""
Record real transfers as inputs of the fuzz targets

usage: python3 -m lab.fuzz.record_corpus DIR

Migrates guests with disks of several kinds.  What QEMU sent and received is
written to a folder for each target in DIR, which must not exist yet.
"""
import sys
from pathlib import Path
from typing import Callable, Dict, List

from lab.machines.backend import Backend
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain
from lab.machines.disks import Disk, Load
from lab.machines.scope import Scope, end_on_signals
from lab.machines.vm import HOTPLUG_BUSES

from .inputs import Input
from .messages import MessageRelay
from .stream import StreamRelay, transfers

TRANSFERS = 2


class Corpus:
    """The inputs of all targets."""

    def __init__(self) -> None:
        self._inputs: Dict[str, List[bytes]] = {
            'char-transfer': [], 'vhost-user-session': [],
            'vhost-user-messages': []}

    def add(self, target: str, new: Input) -> None:
        """Add an input, unless there is an equal one."""
        if new.to_bytes() not in self._inputs[target]:
            self._inputs[target].append(new.to_bytes())

    def write(self, folder: Path) -> None:
        """Write all inputs; the folder appears when it is complete."""
        unfinished = folder.with_suffix('.new')
        for target, inputs in self._inputs.items():
            (unfinished / target).mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(inputs):
                (unfinished / target / f'{number:03}').write_bytes(data)
            print(f'{target}: {len(inputs)} inputs')
        unfinished.rename(folder)


class Recording:
    """Transfers that are recorded in a corpus."""

    def __init__(self, scope: Scope, corpus: Corpus) -> None:
        self._scope = scope
        self._corpus = corpus

    def tap(self, backend: Backend) -> Backend:
        """The back-end at another path, where its messages are recorded."""
        relay = MessageRelay(f'{backend.path}.tap', backend.path)
        self._scope.callback(self.keep_messages, relay)
        return Backend(relay.path, backend.disk)

    def keep_messages(self, relay: MessageRelay) -> None:
        """Add the messages of a connection that has ended."""
        relay.close()
        self._corpus.add('vhost-user-messages', relay.input())

    def disk(self, name: str, options: str = '') -> Disk:
        """A disk that a qemu-storage-daemon serves."""
        return Disk(self.tap(self._scope.daemon(
            name, options=',num-queues=4')), name, options)

    def record(self, chain: Chain, plugged: int = 0) -> None:
        """
        Migrate a guest, with load on all disks.

        @param plugged: so many of the disks are hot-plugged
        """
        source = chain.boot(disks=chain.disks[plugged:])
        for disk in chain.disks[:plugged]:
            disk.plug(source)
        load = Load(chain.guest,
                    *(f'vd{"abcd"[n]}' for n in range(len(chain.disks))))
        for number in range(TRANSFERS):
            relay = StreamRelay(self._scope.path(f'relay{number}'), chain.path)
            self._scope.callback(relay.close)
            dest = chain.destination()
            chain.send(source, dest, relay.path)
            chain.arrive(source, dest)
            load.advance()
            found = list(transfers(relay))
            assert len(found) == len(chain.disks), found
            for transfer in found:
                self._corpus.add('char-transfer', transfer.connection)
                self._corpus.add('vhost-user-session', transfer.session)
            source.shutdown()
            source = dest
        load.stop()
        source.shutdown()

    def record_shapes(self) -> None:
        """Disks with several options; both QEMUs open the file with RAM."""
        self.record(Chain(
            self._scope, self.disk('plain'),
            self.disk('queues', ',num-queues=4'),
            self.disk('simple', ',indirect_desc=off,event_idx=off'),
            mode=IGNORE_SHARED, args=('-smp', '4')))

    def record_modes(self) -> None:
        """RAM is copied, or the new QEMU gets its memfd."""
        for mode in COPY, CPR:
            self.record(Chain(self._scope, self.disk(mode, ',num-queues=2'),
                              mode=mode, args=('-smp', '2')))

    def record_plugged(self) -> None:
        """A disk that was hot-plugged."""
        disk = self.disk('d', f',bus={HOTPLUG_BUSES[0]}')
        self.record(Chain(self._scope, disk), plugged=1)

    def record_sample_backend(self) -> None:
        """A back-end with an inflight region."""
        for mode in IGNORE_SHARED, COPY:
            backend = self._scope.sample_backend(mode)
            self.record(Chain(self._scope, Disk(self.tap(backend), 'd'),
                              mode=mode))


def run(record: Callable[[Recording], None], corpus: Corpus) -> None:
    """Record in a scope; if that fails, print evidence."""
    with Scope() as scope:
        try:
            record(Recording(scope, corpus))
        except Exception:
            print(scope.evidence(), file=sys.stderr)
            raise


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    end_on_signals()
    corpus = Corpus()
    for record in (Recording.record_shapes, Recording.record_modes,
                   Recording.record_plugged, Recording.record_sample_backend):
        run(record, corpus)
    corpus.write(Path(sys.argv[1]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
