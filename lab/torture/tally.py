# SPDX-License-Identifier: GPL-2.0-or-later
"""
What was done in a campaign, and what came of it
"""
import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

from .choices import ToolFault, Transfer

OUTCOMES = 'moved', 'stayed', 'lost', 'failed'
MEANING = '''moved: the new QEMU runs the VM; stayed: the old one does
lost: the QEMU that had the VM was killed, and it boots again
failed: something was not as it must be'''


class Tally:
    """
    Counts.

    notes: of the present round
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
        """What may help to understand a failure of this round."""
        self.notes.append(text)

    def begin(self, transfer: Transfer) -> None:
        """A transfer is to begin."""
        self._start([fault.kind for fault in transfer.faults] +
                    ([transfer.change] if transfer.change else []) or ['none'])
        self.note(str(transfer))

    def begin_tool(self, fault: ToolFault) -> None:
        """A run of scripts/live-update is to begin."""
        self._start([f'live-update: {fault.kind}'])
        self.note(str(fault))

    def _start(self, kinds: List[str]) -> None:
        self._under_way = kinds
        self.add('transfers')
        for kind in kinds:
            self.table.setdefault(kind, Counter())['injected'] += 1

    def end(self, outcome: str) -> None:
        """The transfer that was under way has ended."""
        for kind in self._under_way:
            self.table[kind][outcome] += 1
        self._under_way = []
        self.note(outcome)

    def fail(self, number: int, reason: str) -> None:
        """A round has failed."""
        if self._under_way:
            self.end('failed')
        self.failures.append({'round': number, 'reason': reason})

    def show(self) -> str:
        """A table for people."""
        lines = [f'{"what was injected":28}' + ''.join(
            f'{name:>10}' for name in ('injected', *OUTCOMES))]
        for kind in sorted(self.table):
            row = self.table[kind]
            lines.append(f'{kind:28}' + ''.join(
                f'{row[name]:>10}' for name in ('injected', *OUTCOMES)))
        return '\n'.join([*lines, MEANING])

    def save(self, path: Path, seed: int, seconds: float) -> None:
        """The same for programs."""
        path.write_text(json.dumps({
            'seed': seed, 'seconds': round(seconds, 1), **self.counts,
            'faults': self.table, 'failures': self.failures}, indent=1) +
            '\n', 'utf-8')
