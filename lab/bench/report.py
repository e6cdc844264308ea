# SPDX-License-Identifier: GPL-2.0-or-later
"""
The figures as a table, and as JSON
"""
import json
import statistics
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from lab.results import table

from .stats import Comparison

COLUMN = '{:<38} {:<24} {:<24} {:<13} {:<13} {}'
COLUMNS = 'stock', 'ours', 'ours/stock', 'stock/stock', 'required'


class Figure(NamedTuple):
    """
    A line of the table

    beside: the figure of what ours is compared with, which is stock unless the
            section names other columns
    noise: the ratio of two equal programs
    required: the requirement, or a remark
    passed: is the requirement met?  None if there is none.
    values: all single measurements
    """
    name: str
    beside: str
    ours: str
    ratio: str = ''
    noise: str = ''
    required: str = ''
    passed: Optional[bool] = None
    values: Dict[str, Any] = {}

    def __str__(self) -> str:
        verdict = {None: '', True: 'pass: ', False: 'FAIL: '}[self.passed]
        return COLUMN.format(self.name, self.beside, self.ours, self.ratio,
                             self.noise, verdict + self.required).rstrip()


def spread(values: Sequence[float], digits: int) -> str:
    """The median and, in brackets, the quartiles."""
    # pylint: disable=unbalanced-tuple-unpacking
    low, middle, high = statistics.quantiles(values, n=4)
    return f'{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]'


def compared(name: str, comparison: Comparison, digits: int,
             at_least: float = 0) -> Figure:
    """
    Make a figure.

    @param at_least: the ratio ours / stock that is required; 0 for none
    """
    ratio = comparison.ratio()
    required, passed = '', None
    if at_least:
        passed = ratio.low >= at_least
        required = f'at least {at_least} of stock'
        if ratio.low < at_least <= ratio.high:
            required += ' (too noisy to tell: run it on a quiet machine)'
    return Figure(name, spread(comparison.values['stock'], digits),
                  spread(comparison.values['ours'], digits),
                  str(ratio), str(comparison.noise()), required, passed,
                  comparison.values)


class Report:
    """All figures, under headings."""

    def __init__(self) -> None:
        self._sections: Dict[str, List[Figure]] = {}
        self._columns: Sequence[str] = ()
        self._tables: Dict[str, str] = {}

    def add(self, heading: str, figures: Sequence[Figure],
            columns: Sequence[str] = COLUMNS) -> None:
        """
        Add a section and print it.

        @param columns: heads of all columns except the first
        """
        if columns != self._columns:
            if self._columns:
                print()
            print(COLUMN.format('median [quartiles]', *columns).rstrip())
            self._columns = columns
        self._sections[heading] = list(figures)
        self._tables[heading] = table(
            [heading, *columns],
            [[f.name, f.beside, f.ours, f.ratio, f.noise, f.required]
             for f in figures])
        print(f'\n{heading}')
        for figure in figures:
            print(f' {figure}', flush=True)

    def update(self, other: 'Report') -> None:
        """Add all sections of another report."""
        # pylint: disable=protected-access
        self._sections |= other._sections
        self._tables |= other._tables

    def markdown(self) -> str:
        """All figures as tables; figures are medians [quartiles]."""
        return '\n\n'.join(self._tables.values())

    def missed(self) -> List[str]:
        """Names of the figures that do not meet their requirement."""
        return [f'{heading}: {figure.name}'
                for heading, figures in self._sections.items()
                for figure in figures if figure.passed is False]

    def save(self, path: Path, keep: bool) -> None:
        """
        Write all figures with their single measurements as JSON.

        @param keep: keep other sections of an existing file?
        """
        sections = (json.loads(path.read_text('utf-8'))
                    if keep and path.exists() else {})
        sections |= {heading: [figure._asdict() for figure in figures]
                     for heading, figures in self._sections.items()}
        path.write_text(json.dumps(sections, indent=1) + '\n', 'utf-8')
