# SPDX-License-Identifier: GPL-2.0-or-later
"""
Show a VM whose QEMU is updated again and again while its guest does I/O

scripts/live-update updates it; what stock QEMU offers is shown beside it.
The guest's requests are watched from the host: build/demo/live-update.html
has a picture of them.  Exits with a status other than 0 if anything does not
go as told.
"""
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from typing import Dict, List, Tuple

from qemu.live_update.process import find
from qemu.live_update.report import Step
from qemu.live_update.rings import NotWatchable
from qemu.qmp import QMPError

from lab import IMAGE, ROOT, existing
from lab.machines.agent import GuestError
from lab.machines.backend import Backend, StorageDaemon
from lab.tests.transfer_case import TransferTest

from .live_report import (STOCK, cells, milliseconds, typed, verdict,
                          write_report)
from .live_updates import LiveUpdates, Said, UpdateFailed
from .load import Options
from .stock_update import Stage, StockUpdate

UPDATES = 5
LIMIT = 200                     # requests a second that the data disk does
DEPTH = 8                       # of them in flight
LOAD: Dict[str, Options] = {
    'data': {'filename': '/dev/vdb', 'iodepth': DEPTH},
    'root': {'filename': '/var/data', 'size': '8M', 'iodepth': 2,
             'fsync': 8, 'rate_iops': 40}}
ROW = '{:6} {:>16} {:>9} {:>9} {:>10} {:>12}'
HEADER = (('', 'QEMU process', '', 'longest', 'requests', 'messages to'),
          ('update', 'old -> new', 'downtime', 'I/O gap', 'in flight',
           'back-ends'))


class Scene(TransferTest):
    """Where processes and files live that go away together."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self._end_processes)

    def _end_processes(self) -> None:
        """Whoever is left has a file of ours on its command line."""
        for pid in find(self.path('')):
            os.kill(pid, signal.SIGKILL)

    def ram(self, name: str) -> str:
        """The path of a guest's memory, which is a file."""
        path = Path(f'/dev/shm/qemu-live-update-{os.getpid()}-{name}')
        self.addCleanup(path.unlink, missing_ok=True)
        return str(path)

    def root_image(self, name: str) -> str:
        """A copy of the guest's root disk."""
        image = existing(IMAGE / 'root.img', 'run lab/guest/build-image.sh')
        return shutil.copyfile(image, self.path(f'{name}.img'))

    def root_daemon(self, name: str) -> Backend:
        """A qemu-storage-daemon that serves a copy of the root disk."""
        daemon = self._backend(StorageDaemon(
            self.path(f'{name}.sock'), self.root_image(name)))
        daemon.start()
        return daemon


def say(text: str = '', style: str = '', indent: int = 0) -> None:
    """Print a line, or more if it is too long; a terminal shows its style."""
    text = textwrap.fill(text, 80, subsequent_indent=' ' * indent,
                         break_long_words=False, break_on_hyphens=False)
    if style and sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        text = f'\033[{style}m{text}\033[0m'
    print(text, flush=True)


def row(*words: object, style: str = '') -> None:
    """Print a row of the table."""
    say(ROW.format(*words).rstrip(), style)


def say_step(step: Step, begin: float) -> None:
    """Print what was done or found, with the time since the begin."""
    say(f'{step.time - begin:6.2f} s  {step.name:8} {step.message}',
        indent=19)


def update_live(scene: Scene) -> Tuple[LiveUpdates, List[Step]]:
    """Update a VM again and again; returns what was said of the first."""
    live = LiveUpdates(Path(scene.path('demo')), scene.ram('live'), {
        'root': scene.root_daemon('root'),
        'data': scene.daemon('data', limit=LIMIT)}, LOAD)
    say('A guest boots from its root disk. That and its data disk are '
        'vhost-user-blk: each is served by a qemu-storage-daemon.')
    live.start()
    say('In the guest, fio writes and verifies blocks from now on: '
        f'{DEPTH} at a time on the data disk, 2 on the root disk.')
    say()
    print('$ ' + typed(live.command), flush=True)
    steps: List[Step] = []

    def progress(said: Said) -> None:
        step = Step(said['time'], said.get('name', said['event']),
                    said['message'])
        steps.append(step)
        say_step(step, steps[0].time)

    live.update(progress)
    say()
    for words in HEADER:
        row(*words, style='1')
    row(*cells(1, live.updates[0]))
    while len(live.updates) < UPDATES:
        live.update(lambda said: None)
        row(*cells(len(live.updates), live.updates[-1]))
    live.finish()
    if live.updates[0].messages is None:
        say('?: this user may not attach strace to the back-ends.')
    say()
    say(f'The gap is in the I/O of the data disk. That does {LIMIT} requests '
        f'a second, {DEPTH} at a time, so that each takes '
        f'{1000 * DEPTH // LIMIT} ms when nothing happens. A new QEMU also '
        'has to translate the code of the guest again (TCG).')
    return live, steps


def update_stock(scene: Scene) -> StockUpdate:
    """Do what is needed without live-update."""
    say()
    say(f'What {STOCK} offers', '1')
    say('The root disk is a plain virtio-blk now, since it cannot be '
        'unplugged. fio has to let go of the data disk for a while.')
    say()
    stock = Stage(
        Path(scene.path('stock')), scene.ram('stock'),
        scene.root_image('stock-root'),
        scene.daemon('stock-data', limit=LIMIT), LOAD).play()
    for step in stock.steps:
        say_step(step, stock.steps[0].time)
    say()
    say('The longest gap in the I/O of the data disk: '
        f'{milliseconds(stock.gap)}, with a downtime of '
        f'{milliseconds(stock.downtime)}.')
    return stock


def main(scene: Scene) -> None:
    """The demo from begin to end"""
    say('QEMU is updated under a running VM', '1')
    live, steps = update_live(scene)
    stock = update_stock(scene)
    say()
    for file in write_report(live, stock, steps):
        say(f'See {file.relative_to(ROOT)}')
    say()
    say(f'OK: {verdict(live)}', '1;32')


def guarded_main() -> None:
    """The demo, with one line for what may go wrong"""
    scene = Scene()
    try:
        scene.setUp()
        main(scene)
    except (UpdateFailed, NotWatchable, GuestError, QMPError, RuntimeError,
            TimeoutError) as error:
        sys.exit(f'FAILED: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Nothing is to be left behind, however often this is asked for.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        scene.doCleanups()


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    guarded_main()
