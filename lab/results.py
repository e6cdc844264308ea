# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tables that programs write into docs/results.md
"""
import re
from pathlib import Path
from typing import Sequence

from lab import ROOT

RESULTS = ROOT / 'docs/results.md'


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [heads, ['---'] * len(heads), *rows]
    return '\n'.join(
        '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in line) +
        ' |' for line in lines)


def record(command: str, text: str, path: Path = RESULTS) -> None:
    """
    Put what a command has measured into docs/results.md.

    It replaces what the same command has written before.  Text that people
    have written stays.

    @param command: such as "./run bench chardev"
    @param text: in Markdown
    """
    begin, end = f'<!-- written by {command} -->', f'<!-- end of {command} -->'
    block = f'{begin}\n\n{text}\n\n{end}'
    old = path.read_text('utf-8')
    found = re.search(f'{re.escape(begin)}.*?{re.escape(end)}', old, re.S)
    if found:
        new = old[:found.start()] + block + old[found.end():]
    else:
        new = f'{old.rstrip()}\n\n## All figures of `{command}`\n\n{block}\n'
    path.write_text(new, 'utf-8')
