# SPDX-License-Identifier: GPL-2.0-or-later
"""
The report of lab/demo/live_update.py: build/demo/live-update.html and .png
"""
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path
from typing import List, Sequence, Tuple

from qemu.live_update.report.html import Report, Step, Table, Text, write
from qemu.live_update.report.picture import Mark, Panel, draw, png, svg

from lab import OBJ, ROOT, STOCK_OBJ

from .load import LEAD, of_disk
from .stock_update import IS_BUILT, StockUpdate
from .updated_guest import Update, UpdatedGuest

OUT = ROOT / 'build/demo'
STOCK = 'stock QEMU' if IS_BUILT else 'QEMU without live-update'
HEADS = ('update', 'QEMU process, old -> new', 'downtime',
         'longest gap in I/O', 'requests in flight', 'messages to back-ends')


def milliseconds(seconds: float) -> str:
    """A duration in ms."""
    return f'{1000 * seconds:.0f} ms'


def typed(command: Sequence[str]) -> str:
    """A command as typed at the top of the repository."""
    words = [shlex.quote(word.replace(f'{ROOT}/', '')) for word in command]
    lines = words[:1]
    # An option and its value stay together.
    for part in re.split(r' (?=-)', ' '.join(words[1:])):
        if len(lines[-1]) + len(part) > 76:
            lines.append('   ')
        lines[-1] += f' {part}'
    return ' \\\n'.join(lines)


def cells(number: int, update: Update) -> List[object]:
    """The figures of an update, in the order of HEADS."""
    old, new = update.pids
    return [number, f'{old} -> {new}',
            milliseconds(update.downtime), milliseconds(update.gap),
            update.in_flight,
            '?' if update.messages is None else update.messages]


def verdict(guest: UpdatedGuest) -> str:
    """The result in a sentence."""
    return (f'{len(guest.updates)} updates; fio wrote {guest.verdict.written} '
            f'blocks and verified {guest.verdict.verified}: 0 errors')


def _longest_gap(guest: UpdatedGuest) -> float:
    return max(update.gap for update in guest.updates)


def _panels(guest: UpdatedGuest, stock: StockUpdate) -> List[Panel]:
    requests = guest.watch.requests
    return [
        Panel(f'{len(guest.updates)} updates with scripts/live-update',
              'Longest time in which no request of "data" completed: '
              + milliseconds(_longest_gap(guest)), requests,
              [Mark(*update.paused, f'update {number}')
               for number, update in enumerate(guest.updates, 1)],
              guest.updates[0].begin - LEAD, guest.ended),
        # Dots of the root disk would hide the gap of the data disk.
        Panel(f'{"stock QEMU" if IS_BUILT else "by hand"}: unplug, migrate, '
              'plug', 'fio must close "data" for the update.',
              of_disk(stock.requests, 'data'),
              [Mark(*stock.paused, 'update')],
              stock.steps[0].time - LEAD, stock.ended)]


def _version(obj: Path) -> str:
    program = obj / 'qemu-system-x86_64'
    said = subprocess.run([program, '--version'], check=True, text=True,
                          capture_output=True).stdout
    return said.splitlines()[0].replace('QEMU emulator version ', '')


def _field(path: str, name: str) -> str:
    """A field of a file in /proc."""
    found = re.search(rf'^{name}\s*: *(.*)', Path(path).read_text('utf-8'),
                      re.M)
    return found[1] if found else 'unknown'


def _facts(guest: UpdatedGuest) -> List[Tuple[str, str]]:
    memory = int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2 ** 20
    facts = [('QEMU, before and after', _version(OBJ) + ' with the series')]
    if IS_BUILT:
        facts.append(('QEMU without it', _version(STOCK_OBJ)))
    return facts + [
        ('guest', f'Linux {guest.kernel}, 1 CPU (TCG), {guest.fio}'),
        ('host', f'Linux {platform.release()}, {os.cpu_count()} x '
                 f'{_field("/proc/cpuinfo", "model name")}, '
                 f'{memory:.0f} GiB'),
        ('latency', 'from the moment when the guest submits a request until '
                    'it has seen the completion, by the clock of the host')]


def write_report(guest: UpdatedGuest, stock: StockUpdate,
                 steps: Sequence[Step]) -> List[Path]:
    """Write the report; returns the paths of its files."""
    OUT.mkdir(exist_ok=True)
    files = [OUT / 'live-update.html', OUT / 'live-update.png']
    figure = draw(_panels(guest, stock))
    png(figure, str(files[1]))
    write(str(files[0]), Report(
        'QEMU updated under a running VM', verdict(guest), True, _facts(guest),
        svg(figure), 'Latency of each request over time. With '
        'scripts/live-update, the longest time in which no request of the '
        f'data disk completed is {milliseconds(_longest_gap(guest))}; with '
        f'unplugging, it is {milliseconds(stock.gap)}.',
        [Table('Updates by scripts/live-update', HEADS,
               [cells(number, update)
                for number, update in enumerate(guest.updates, 1)]),
         Table(f'{STOCK}: unplug, migrate, plug', HEADS[2:5],
               [[milliseconds(stock.downtime), milliseconds(stock.gap), 0]])],
        [Text('Back-ends', '\n'.join(map(typed, guest.backends))),
         Text('VM', typed(guest.vm.command)),
         Text('In the guest: fio, with these jobs',
              '\n'.join(guest.jobs).replace(' ', '\n')),
         Text('Each update', typed(guest.command))],
        [*steps, *stock.steps]))
    return files
