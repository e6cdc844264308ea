# SPDX-License-Identifier: GPL-2.0-or-later
"""
The figures of scale: many disks, many VMs, much memory

Ratios and growth are made of lower quartiles, like those of backend-transfer.
"""
from typing import Callable, Dict, List, Optional, Tuple

from .report import Figure, Report, spread
from .scale_disks import (ARMS, COUNTS, FEW, MANY, Cost, Costs, count_maps,
                          growth, measure_costs, measure_sizes)
from .scale_ram import LARGE, SMALL, Moves, measure_rams
from .scale_vms import MEMORY, VMS, Updates, measure_updates
from .stats import Ratio, lower_quartile
from .transfer_downtime import AGAIN, PLAIN, VHOST
from .transfer_figures import sections

DISK_COLUMNS = ('plain virtio-blk-pci', 'vhost-user-blk-pci', 'vhost/plain',
                'plain/plain', 'remark')
END = VMS // 4          # the first and the last so many VMs are compared


def loading(cost: Cost) -> float:
    """The ms that the new QEMU took to load the disks."""
    return sections([cost.move], 'loaded')['disks loaded']


# What may grow with the number of disks, and how many digits are printed.
QUANTITIES: Dict[str, Tuple[Callable[[Cost], float], int]] = {
    'pause, ms': (lambda cost: cost.move.pause, 1),
    'of which loading disks, ms': (loading, 1),
    'whole transfer, ms': (lambda cost: cost.move.total, 0),
    'start of the new QEMU, ms': (lambda cost: cost.move.start, 0),
    "new QEMU's own memory, MiB": (lambda cost: cost.own, 0),
    'most that it had with shared, MiB': (lambda cost: cost.peak, 0),
    'files that it has open': (lambda cost: cost.held, 0)}


def name_of(count: int) -> str:
    """The name of a line of the table."""
    return f'{count} disk{"s" if count > 1 else ""}'


def number(value: Optional[float]) -> str:
    """A number with three digits, or without a fraction."""
    if value is None:
        return ''
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def count_figure(count: int, costs: Costs, what: Callable[[Cost], float],
                 digits: int) -> Figure:
    """Compare the cost of so many disks."""
    values = {arm: [what(cost) for cost in costs[arm]] for arm in ARMS}
    return Figure(
        name_of(count),
        spread(values[PLAIN], digits), spread(values[VHOST], digits),
        str(Ratio.of(values[VHOST], values[PLAIN], lower_quartile)),
        str(Ratio.of(values[AGAIN], values[PLAIN], lower_quartile)),
        values=values)


def growth_figures(costs: Dict[str, Dict[int, float]]) -> List[Figure]:
    """
    Figures of the growth of a cost.

    @param costs: by kind of disk, and by number of disks
    """
    found = {arm: growth(values) for arm, values in costs.items()}
    figures = []
    for name, field, remark in (
            ('each disk adds, straight line', 'slope', ''),
            (f'each adds, up to {FEW}', 'few', ''),
            (f'each adds, up to {MANY}', 'many', ''),
            ('power of the growth', 'power', '1 is linear, 2 quadratic')):
        values = {arm: getattr(found[arm], field) for arm in found}
        figures.append(Figure(name, number(values[PLAIN]),
                              number(values[VHOST]), '', '', remark,
                              values=values))
    return figures


def quantity_figures(costs: Dict[int, Costs], what: Callable[[Cost], float],
                     digits: int) -> List[Figure]:
    """Figures of a cost, by the number of disks."""
    figures = [count_figure(count, found, what, digits)
               for count, found in costs.items()]
    return figures + growth_figures({
        arm: {count: lower_quartile([what(cost) for cost in found[arm]])
              for count, found in costs.items()} for arm in (PLAIN, VHOST)})


def traced_figures(counts: Dict[int, Dict[str, int]]) -> List[Figure]:
    """Figures of a cost that is the same in each migration."""
    figures = [Figure(name_of(count), number(found[PLAIN]),
                      number(found[VHOST]), values=found)
               for count, found in counts.items()]
    return figures + growth_figures({
        arm: {count: found[arm] for count, found in counts.items()}
        for arm in (PLAIN, VHOST)})


def add_disks(report: Report) -> None:
    """Figures of a VM with many disks."""
    costs = {count: measure_costs(count) for count in COUNTS}
    for name, (what, digits) in QUANTITIES.items():
        report.add(f'number of disks: {name}',
                   quantity_figures(costs, what, digits), DISK_COLUMNS)
    streams = {count: measure_sizes(count) for count in COUNTS}
    for name, field in (('bytes in the stream', 'size'),
                        ('files in the stream', 'fds')):
        report.add(f'number of disks: {name}', traced_figures(
            {count: {arm: getattr(stream, field)
                     for arm, stream in found.items()}
             for count, found in streams.items()}), DISK_COLUMNS)
    report.add('number of disks: memory maps that the new QEMU makes',
               traced_figures({count: count_maps(count) for count in COUNTS}),
               DISK_COLUMNS)


def vm_figures(updates: Updates) -> List[Figure]:
    """Figures of many VMs."""
    figures = []
    for name, field, digits in (('live-update, s', 'seconds', 2),
                                ('pause, ms', 'pause', 1)):
        alone, among = ([getattr(update, field) for update in found]
                        for found in (updates.alone, updates.among))
        first, last = (lower_quartile(part)
                       for part in (among[:END], among[-END:]))
        figures.append(Figure(
            name, spread(alone, digits), spread(among, digits),
            f'{lower_quartile(among) / lower_quartile(alone):.2f}',
            f'{last / first:.2f}', f'longest {max(among):.{digits}f}',
            values={'alone': alone, 'among': among}))
    return figures


def host_figures(updates: Updates) -> List[Figure]:
    """Figures of the host with many VMs."""
    before, after = updates.before, updates.after
    figures = [
        Figure(name, f'{old:.0f}', f'{new:.0f}', f'{new / old:.3f}',
               values={'before': old, 'after': new})
        for name, old, new in (
            ('memory of the host, MiB', before.used, after.used),
            ("all QEMUs' own memory, MiB", before.own, after.own))]
    return figures + [Figure('blocks verified, none wrong', '',
                             str(updates.verified),
                             values={'verified': updates.verified})]


def add_vms(report: Report) -> None:
    """Figures of many VMs."""
    updates = measure_updates()
    report.add(f'{VMS} VMs of {MEMORY}, updated one after the other',
               vm_figures(updates),
               ('alone', f'among {VMS}', 'among/alone', 'last/first',
                f'first, last: {END} VMs'))
    report.add(f'the host with {VMS} VMs', host_figures(updates),
               ('before the updates', 'after them', 'after/before', '', ''))


def ram_figures(rams: Dict[str, Moves], what: str) -> List[Figure]:
    """Figures of a time of a migration, in ms."""
    figures = []
    for mode, moves in rams.items():
        small, large = ([getattr(move, what) for move in moves[size]]
                        for size in (SMALL, LARGE))
        figures.append(Figure(
            mode, spread(small, 1), spread(large, 1),
            str(Ratio.of(large, small, lower_quartile)),
            values={SMALL: small, LARGE: large}))
    return figures


def add_scale(report: Report) -> None:
    """All figures of scale."""
    add_disks(report)
    add_vms(report)
    rams = measure_rams()
    for name, what in (('pause', 'pause'), ('whole transfer', 'total')):
        report.add(f'size of the memory: {name}, ms', ram_figures(rams, what),
                   (SMALL, LARGE, f'{LARGE}/{SMALL}', '', ''))
