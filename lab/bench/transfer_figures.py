# SPDX-License-Identifier: GPL-2.0-or-later
"""
The figures of backend-transfer

For comparison the same run measures guests with plain virtio-blk-pci disks on
a file, guests without a disk, and updates as stock QEMU allows them.  Ratios
are made of lower quartiles, like those of start-up.
"""
from statistics import median
from typing import Dict, List, Tuple

from lab.machines.chain import MODES

from .moving_guest import Move
from .report import Figure, spread
from .stats import Ratio, lower_quartile
from .transfer_downtime import (AGAIN, BUSY, IDLE, NONE, PLAIN, SLOW, VHOST,
                                Sample, measure_moves)
from .transfer_stream import measure_messages, measure_streams
from .transfer_today import measure_today

Samples = Dict[str, List[Sample]]


def pauses(samples: List[Sample]) -> List[float]:
    """The pauses of some migrations, in ms."""
    return [sample.move.pause for sample in samples]


def pause_figure(name: str, samples: Samples) -> Figure:
    """Compare the pauses of a setup."""
    values = {arm: pauses(taken) for arm, taken in samples.items()}
    noise = (str(Ratio.of(values[AGAIN], values[PLAIN], lower_quartile))
             if AGAIN in values else '')
    return Figure(name, spread(values[PLAIN], 1), spread(values[VHOST], 1),
                  str(Ratio.of(values[VHOST], values[PLAIN], lower_quartile)),
                  noise, f'without a disk {spread(values[NONE], 1)}'
                  if NONE in values else '', values=values)


def sections(moves: List[Move], what: str) -> Dict[str, float]:
    """The ms in which disks and other devices are "saved" or "loaded"."""
    spent = {kind: median(getattr(move, what).get(kind, 0) for move in moves)
             for kind in getattr(moves[0], what)}
    disks = spent.pop('virtio-blk', 0) + spent.pop('vhost-user-blk', 0)
    others = sum(spent.values())
    return {f'disks {what}': disks, f'others {what}': others}


def part_figures(name: str, samples: Samples) -> List[Figure]:
    """Figures of the parts of the pauses of a setup."""
    arms = {}
    for arm in (NONE, PLAIN, VHOST):
        moves = [sample.move for sample in samples[arm]]
        arms[arm] = {part: median(move.parts[part] for move in moves)
                     for part in moves[0].parts}
        arms[arm] |= sections(moves, 'saved') | sections(moves, 'loaded')
    return [Figure(f'{name}: {part}', f'{arms[PLAIN][part]:.2f}',
                   f'{arms[VHOST][part]:.2f}', '', '',
                   f'without a disk {time:.2f}',
                   values={arm: found[part] for arm, found in arms.items()})
            for part, time in arms[NONE].items()]


def idle_figures() -> Tuple[List[Figure], List[Figure]]:
    """Figures of guests without I/O: the pauses, and their parts."""
    figures, parts = [], []
    for setup in IDLE:
        samples = measure_moves(setup)
        figures.append(pause_figure(str(setup), samples))
        parts += part_figures(str(setup), samples)
    return figures, parts


def gap_figures(name: str, samples: Samples) -> List[Figure]:
    """Compare the longest gaps between completions."""
    figures = []
    for what in ('gap', 'quiet'):
        values = {arm: [getattr(sample, what) for sample in taken]
                  for arm, taken in samples.items()}
        beside = (f'without a disk {spread(values[NONE], 1)}'
                  if NONE in values else '')
        figures.append(Figure(
            name if what == 'gap' else f'{name}: no move',
            spread(values[PLAIN], 1), spread(values[VHOST], 1),
            str(Ratio.of(values[VHOST], values[PLAIN], lower_quartile)),
            str(Ratio.of(values[AGAIN], values[PLAIN], lower_quartile))
            if AGAIN in values else '', beside, values=values))
    return figures


def busy_figures() -> Tuple[List[Figure], List[Figure], List[float]]:
    """Figures of guests with I/O: the pauses, the gaps, and our gaps in s."""
    figures, gaps = [], []
    ours: List[float] = []
    for setup in (BUSY, SLOW):
        samples = measure_moves(setup)
        figures.append(pause_figure(str(setup), samples))
        gaps += gap_figures(str(setup), samples)
        if setup is BUSY:
            ours = [sample.gap / 1000 for sample in samples[VHOST]
                    if sample.gap]
    return figures, gaps, ours


def today_figures(ours: List[float]) -> List[Figure]:
    """
    Compare the time without a disk with that of stock QEMU.

    @param ours: the longest gaps between completions in seconds
    """
    return [Figure(name, spread(times, 2), spread(ours, 3),
                   f'{median(ours) / median(times):.3f}', '',
                   values={'stock': times, VHOST: ours})
            for name, times in measure_today().items()]


def traffic_figures() -> List[Figure]:
    """Figures of messages to the back-end, and of the stream."""
    figures = []
    for mode in MODES:
        requests = measure_messages(mode)
        figures.append(Figure(f'messages, {mode}', '', str(len(requests)),
                              values={VHOST: requests}))
    streams = measure_streams()
    plain, first, more = streams.values()
    for what, field in (('bytes in the stream', 'size'),
                        ('fds in the stream', 'fds'),
                        ('fds that QEMU has open', 'held')):
        figures.append(Figure(
            what, f'{getattr(plain, field)}', f'{getattr(first, field)}', '',
            '', f'a second one {getattr(more, field)}',
            values={name: getattr(stream, field)
                    for name, stream in streams.items()}))
    return figures
