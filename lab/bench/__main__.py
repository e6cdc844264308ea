# SPDX-License-Identifier: GPL-2.0-or-later
"""
Measure QEMU with the series side by side with stock QEMU

usage: ./run bench [--record] [PART...]

The parts are chardev, transfer, scale and lines; by default all are measured,
which takes 25 minutes.  Prints a table and updates the measured parts in
build/bench.json; with --record, also in docs/results.md.  The exit status is 1
if a figure is not as required, or could not be measured.

Both programs are measured in turn, and stock twice: the column stock/stock
shows how far the ratio of equal programs is from 1 on this machine at this
time.  The number after "±" is half of the 95 % confidence interval of a ratio.
A guest with a vhost-user disk is compared with a guest with a plain disk.
"""
import os
import signal
import statistics
import sys
from typing import Callable, Dict, List

from lab import OBJ, ROOT, STOCK_OBJ

from lab.results import record

from .latency import BLOCKED, measure_answered, measure_silent, measure_starts
from .lines import count_files, count_lines
from .process import BenchError
from .report import Figure, Report, compared, spread
from .scale_figures import add_scale
from .throughput import measure, receiving, sending
from .transfer_figures import (busy_figures, idle_figures, today_figures,
                               traffic_figures)

OBJS = {'stock': STOCK_OBJ, 'again': STOCK_OBJ, 'ours': OBJ}
SAME_MS = 1.0       # a socket's chardev-add may be so much slower than null's
SAME_RATE = 0.98    # the least ratio of our throughput and stock's


def additions() -> List[Figure]:
    """Figures of chardev-add."""
    null, answered = measure_answered(OBJS)
    return [compared('null chardev', null, 2),
            compared('client, server answers', answered, 2),
            silent_addition()]


def silent_addition() -> Figure:
    """The figure of chardev-add with a server that does not accept."""
    blocked = f'> {BLOCKED:.0f} s, QMP blocked'
    values: Dict[str, List[float]] = {}
    texts: Dict[str, str] = {}
    for arm in ('stock', 'ours'):
        null, silent = measure_silent(OBJS[arm])
        values |= {arm: silent, f'{arm} null': null}
        texts[arm] = spread(silent, 2) if silent else blocked
    ratio, passed = '', False
    if values['ours']:
        more = (statistics.median(values['ours'])
                - statistics.median(values['ours null']))
        ratio, passed = f'null {more:+.2f} ms', more <= SAME_MS
    return Figure('client, server does not answer', texts['stock'],
                  texts['ours'], ratio, '',
                  f'at most {SAME_MS:.0f} ms more than null', passed, values)


def starts() -> List[Figure]:
    """Figures of start-up."""
    return [compared(name, comparison, 0)
            for name, comparison in measure_starts(OBJS).items()]


def rates() -> List[Figure]:
    """Figures of throughput."""
    figures = []
    for name, launch in (('receive', receiving), ('send', sending)):
        cpu, wall = measure(launch, OBJS)
        figures += [compared(f'{name}, per s', wall, 0, SAME_RATE),
                    compared(f'{name}, per s of CPU time', cpu, 0)]
    return figures


def sizes() -> List[Figure]:
    """Figures of the patches."""
    return [Figure(kind, '', f'+{lines.added} -{lines.removed}',
                   f'{lines.files} files', values=lines._asdict())
            for kind, lines in count_lines(OBJ.parent / 'src').items()]


def files() -> List[Figure]:
    """Figures of the patches by file."""
    return [Figure(path, '', f'+{lines.added} -{lines.removed}',
                   values=lines._asdict())
            for path, lines in count_files(OBJ.parent / 'src').items()]


def add_chardev(report: Report) -> None:
    """Figures of deferred connect."""
    report.add('chardev-add until QMP returns, ms', additions())
    report.add('exec until QMP answers, ms', starts())
    report.add('throughput of a socket chardev, MB', rates())


def add_transfer(report: Report) -> None:
    """Figures of backend-transfer."""
    columns = ('plain virtio-blk-pci', 'vhost-user-blk-pci', 'vhost/plain',
               'plain/plain', 'remark')
    idle, parts = idle_figures()
    report.add('pause of a guest that moves, ms', idle, columns)
    report.add('what that is made of, ms', parts, columns)
    busy, gaps, ours = busy_figures()
    report.add('pause of a guest with I/O, ms', busy, columns)
    report.add('longest gap in its I/O, ms', gaps, columns)
    report.add('the guest is without its disk, s', today_figures(ours),
               ('stock', 'backend-transfer', 'ours/stock', '', ''))
    report.add('a disk that moves', traffic_figures(), columns)


def add_lines(report: Report) -> None:
    """Figures of the series."""
    report.add("lines changed in QEMU's files", sizes())
    report.add('by file', files())


PARTS: Dict[str, Callable[[Report], None]] = {
    'chardev': add_chardev, 'transfer': add_transfer, 'scale': add_scale,
    'lines': add_lines}


def main() -> None:
    """Measure the parts that are given, or all"""
    words = sys.argv[1:]
    names = [word for word in words if word != '--record'] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        sys.exit(f'error: there is no part "{unknown.pop()}"; there are '
                 f'{", ".join(PARTS)}')
    print(f'load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs\n')
    report = Report()
    for name in names:
        part = Report()
        PARTS[name](part)
        if '--record' in words:
            record(f'./run bench {name}', part.markdown())
        report.update(part)
    report.save(ROOT / 'build/bench.json', keep=len(names) < len(PARTS))
    print('\nbuild/bench.json has every single measurement.')
    if missed := report.missed():
        sys.exit(f'FAILED: {"; ".join(missed)}')


def guarded_main() -> None:
    """The measurements, with one line for an error"""
    try:
        main()
    except (BenchError, OSError) as error:
        sys.exit(f'FAILED: {error}')
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    guarded_main()
