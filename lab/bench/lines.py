# SPDX-License-Identifier: GPL-2.0-or-later
"""
How much the series changes in QEMU's own files
"""
from pathlib import Path
from typing import Dict, NamedTuple, Tuple

from tooling.series import BASE, COMPOSED, Git, SeriesError

from .process import BenchError

CODE = 'existing files: code'


class Lines(NamedTuple):
    """Lines of some files."""
    files: int = 0
    added: int = 0
    removed: int = 0


def kind_of(path: str, existing: bool) -> str:
    """The heading for the lines of a file."""
    if not existing:
        return 'new files'
    if path.startswith(('tests/', 'docs/')) or path == 'MAINTAINERS':
        return 'existing files: tests, docs, MAINTAINERS'
    return CODE


def changes(tree: Path) -> Dict[str, Tuple[str, Lines]]:
    """Return the kind and the changed lines of each file of the series."""
    git = Git(tree)
    try:
        released = git.paths(BASE)
        numbers = git('diff', '--numstat', '--no-renames', BASE, COMPOSED)
    except SeriesError as error:
        raise BenchError(str(error)) from error
    found: Dict[str, Tuple[str, Lines]] = {}
    for line in numbers.splitlines():
        added, removed, path = line.split('\t')
        found[path] = (kind_of(path, path in released),
                       Lines(1, int(added), int(removed)))
    return found


def count_lines(tree: Path) -> Dict[str, Lines]:
    """Count the lines that the series changes in QEMU, by heading."""
    counts: Dict[str, Lines] = {}
    for kind, lines in changes(tree).values():
        sum_ = counts.get(kind, Lines())
        counts[kind] = Lines(*(a + b for a, b in zip(sum_, lines)))
    return dict(sorted(counts.items()))


def count_files(tree: Path) -> Dict[str, Lines]:
    """Count changed lines of code by existing file, most lines first."""
    code = {path: lines for path, (kind, lines) in changes(tree).items()
            if kind == CODE}
    return dict(sorted(code.items(), key=lambda item:
                       -item[1].added - item[1].removed))
