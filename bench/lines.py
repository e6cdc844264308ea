# SPDX-License-Identifier: GPL-2.0-or-later
"""
How much the series changes in QEMU's own files
"""
import sys
from pathlib import Path
from typing import Dict, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'scripts'))

# pylint: disable=wrong-import-position
from process import BenchError                              # noqa: E402
from series import BASE, COMPOSED, Git, SeriesError         # noqa: E402


class Lines(NamedTuple):
    """Lines of some files."""
    files: int = 0
    added: int = 0
    removed: int = 0


def kind_of(path: str, existing: bool) -> str:
    """The heading under which the lines of a file are counted."""
    if not existing:
        return 'new files'
    if path.startswith(('tests/', 'docs/')) or path == 'MAINTAINERS':
        return 'existing files: tests, docs, MAINTAINERS'
    return 'existing files: code'


def count_lines(tree: Path) -> Dict[str, Lines]:
    """Compare QEMU as released with the series as it was composed last."""
    git = Git(tree)
    try:
        released = git.paths(BASE)
        numbers = git('diff', '--numstat', '--no-renames', BASE, COMPOSED)
    except SeriesError as error:
        raise BenchError(str(error)) from error
    counts: Dict[str, Lines] = {}
    for line in numbers.splitlines():
        added, removed, path = line.split('\t')
        kind = kind_of(path, path in released)
        sum_ = counts.get(kind, Lines())
        counts[kind] = Lines(sum_.files + 1, sum_.added + int(added),
                             sum_.removed + int(removed))
    return dict(sorted(counts.items()))
