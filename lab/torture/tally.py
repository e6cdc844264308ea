# SPDX-License-Identifier: GPL-2.0-or-later
"""
The counts of faults and their outcomes
"""
import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

from lab.results import table

from .choices import ToolFault, Transfer

OUTCOMES = 'moved', 'stayed', 'lost', 'failed'
MEANING = '''moved: the new QEMU runs the VM; stayed: the old one does
lost: the QEMU that had the VM was killed, and it boots again
failed: a check has failed'''


class Tally:
    """
    Counts.

    notes: of the round that runs
    """

    def __init__(self) -> None:
        self.counts: 'Counter[str]' = Counter()
        self.table: 'Dict[str, Counter[str]]' = {}
        self.failures: List[Dict[str, Any]] = []
        self.notes: List[str] = []
        self._under_way: List[str] = []

    def add(self, what: str, count: int = 1) -> None:
        """Count something."""
        self.counts[what] += count

    def note(self, text: str) -> None:
        """Add a line for the report, if this round fails."""
        self.notes.append(text)

    def begin(self, transfer: Transfer) -> None:
        """Count a transfer that begins."""
        self._start([fault.kind for fault in transfer.faults] +
                    ([transfer.change] if transfer.change else []) or ['none'])
        self.note(str(transfer))

    def begin_tool(self, fault: ToolFault) -> None:
        """Count a run of live-update that begins."""
        self._start([f'live-update: {fault.kind}'])
        self.note(str(fault))

    def _start(self, kinds: List[str]) -> None:
        self._under_way = kinds
        self.add('transfers')
        for kind in kinds:
            self.table.setdefault(kind, Counter())['injected'] += 1

    def end(self, outcome: str) -> None:
        """Count the outcome of the transfer or run."""
        for kind in self._under_way:
            self.table[kind][outcome] += 1
        self._under_way = []
        self.note(outcome)

    def fail(self, number: int, reason: str) -> None:
        """Count a round that has failed."""
        if self._under_way:
            self.end('failed')
        self.failures.append({'round': number, 'reason': reason})

    def markdown(self) -> str:
        """The counts, as a table."""
        return table(['what was injected', 'injected', *OUTCOMES],
                     [[kind, *(self.table[kind][name]
                               for name in ('injected', *OUTCOMES))]
                      for kind in sorted(self.table)])

    def show(self) -> str:
        """The table to print."""
        lines = [f'{"what was injected":28}' + ''.join(
            f'{name:>10}' for name in ('injected', *OUTCOMES))]
        for kind in sorted(self.table):
            row = self.table[kind]
            lines.append(f'{kind:28}' + ''.join(
                f'{row[name]:>10}' for name in ('injected', *OUTCOMES)))
        return '\n'.join([*lines, MEANING])

    def save(self, path: Path, seed: int, seconds: float) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps({
            'seed': seed, 'seconds': round(seconds, 1), **self.counts,
            'faults': self.table, 'failures': self.failures}, indent=1) +
            '\n', 'utf-8')
