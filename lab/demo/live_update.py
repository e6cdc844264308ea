# SPDX-License-Identifier: GPL-2.0-or-later
"""
Show a VM whose QEMU is updated several times while its guest does I/O

scripts/live-update updates it.  For comparison, another VM is updated as stock
QEMU allows it.  A picture in build/demo/live-update.html shows the latency of
each request, seen from the host.  The exit status is not 0 if an update fails
or disturbs the guest.
"""
import os
import shutil
import signal
import sys
import textwrap
from typing import Dict, List, Tuple

from qemu.live_update.report.html import Step
from qemu.live_update.report.rings import NotWatchable
from qemu.qmp import QMPError

from lab import IMAGE, ROOT, existing
from lab.machines.agent import GuestError
from lab.machines.backend import StorageDaemon
from lab.machines.scope import Scope

from .live_report import (STOCK, cells, milliseconds, typed, verdict,
                          write_report)
from .load import Options
from .stock_update import StockUpdate, StockVM
from .updated_guest import Said, UpdateFailed, UpdatedGuest

UPDATES = 5
LIMIT = 200                     # requests a second of the data disk
DEPTH = 8                       # requests that fio keeps in flight there
LOAD: Dict[str, Options] = {
    'data': {'filename': '/dev/vdb', 'iodepth': DEPTH},
    'root': {'filename': '/var/data', 'size': '8M', 'iodepth': 2,
             'fsync': 8, 'rate_iops': 40}}
ROW = '{:6} {:>16} {:>9} {:>9} {:>10} {:>12}'
HEADER = (('', 'QEMU process', '', 'longest', 'requests', 'messages to'),
          ('update', 'old -> new', 'downtime', 'I/O gap', 'in flight',
           'back-ends'))


def root_image(scope: Scope, name: str) -> str:
    """A copy of the guest's root disk."""
    image = existing(IMAGE / 'root.img', 'run lab/guest/build-image.sh')
    return shutil.copyfile(image, scope.path(f'{name}.img'))


def say(text: str = '', style: str = '', indent: int = 0) -> None:
    """Print a paragraph; the style is an escape code for terminals."""
    text = textwrap.fill(text, 80, subsequent_indent=' ' * indent,
                         break_long_words=False, break_on_hyphens=False)
    if style and sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        text = f'\033[{style}m{text}\033[0m'
    print(text, flush=True)


def row(*words: object, style: str = '') -> None:
    """Print a row of the table."""
    say(ROW.format(*words).rstrip(), style)


def say_step(step: Step, begin: float) -> None:
    """Print a step with the time since the begin."""
    say(f'{step.time - begin:6.2f} s  {step.name:8} {step.message}',
        indent=19)


def update_live(scope: Scope) -> Tuple[UpdatedGuest, List[Step]]:
    """Update a VM several times; returns the steps of the first update."""
    root = scope.backend(StorageDaemon(scope.path('root.sock'),
                                       root_image(scope, 'root')))
    guest = UpdatedGuest(
        scope.folder / 'demo', str(scope.memory()),
        {'root': root, 'data': scope.daemon('data', limit=LIMIT)}, LOAD)
    say('A guest boots from its root disk. It has a data disk, too. Both are '
        'vhost-user-blk, and a qemu-storage-daemon serves each of them.')
    guest.start()
    say('In the guest, fio writes and verifies blocks from now on, with '
        f'{DEPTH} requests in flight on the data disk and 2 on the root disk.')
    say()
    print('$ ' + typed(guest.command), flush=True)
    steps: List[Step] = []

    def progress(said: Said) -> None:
        step = Step(said['time'], said.get('name', said['event']),
                    said['message'])
        steps.append(step)
        say_step(step, steps[0].time)

    guest.update(progress)
    say()
    for words in HEADER:
        row(*words, style='1')
    row(*cells(1, guest.updates[0]))
    while len(guest.updates) < UPDATES:
        guest.update(lambda said: None)
        row(*cells(len(guest.updates), guest.updates[-1]))
    guest.finish()
    if guest.updates[0].messages is None:
        say('?: this user may not attach strace to the back-ends.')
    say()
    say('The longest I/O gap is the longest time in which no request of the '
        f'data disk completed. That disk is throttled to {LIMIT} requests a '
        f'second: with {DEPTH} in flight, each takes {1000 * DEPTH // LIMIT} '
        'ms without an update, too. The rest is the downtime of the VM, and '
        'the time that the new QEMU needs to translate the code of the guest '
        'again, which runs under TCG.')
    return guest, steps


def update_stock(scope: Scope) -> StockUpdate:
    """Update the QEMU of a VM without live-update."""
    say()
    say(f'The same update with {STOCK}: unplug, migrate, plug', '1')
    say('A root disk cannot be unplugged: it is a plain virtio-blk disk here. '
        'fio must close the data disk before that is unplugged.')
    say()
    stock = StockVM(
        scope.folder / 'stock', str(scope.memory()),
        root_image(scope, 'stock-root'),
        scope.daemon('stock-data', limit=LIMIT), LOAD).update()
    for step in stock.steps:
        say_step(step, stock.steps[0].time)
    say()
    say('No request of the data disk completed for '
        f'{milliseconds(stock.gap)}; the downtime of the VM was '
        f'{milliseconds(stock.downtime)}.')
    return stock


def demonstrate(scope: Scope) -> None:
    """The demo from begin to end"""
    say('QEMU is updated under a running VM', '1')
    guest, steps = update_live(scope)
    stock = update_stock(scope)
    say()
    for file in write_report(guest, stock, steps):
        say(f'See {file.relative_to(ROOT)}')
    say()
    say(f'OK: {verdict(guest)}', '1;32')


def main() -> None:
    """The demo, with one line for an error"""
    try:
        with Scope() as scope:
            try:
                demonstrate(scope)
            finally:
                # A second Ctrl-C must not interrupt the clean-up.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except (UpdateFailed, NotWatchable, GuestError, QMPError, RuntimeError,
            TimeoutError) as error:
        sys.exit(f'FAILED: {error}')
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
