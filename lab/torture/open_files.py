# SPDX-License-Identifier: GPL-2.0-or-later
"""
The open files of a process, which a transfer must not increase
"""
import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from lab.machines.watch import wait_for


def open_files(pid: int) -> 'Counter[str]':
    """Count the open files of a process by kind or name."""
    files: 'Counter[str]' = Counter()
    for name in os.listdir(f'/proc/{pid}/fd'):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f'/proc/{pid}/fd/{name}')
            # Without inodes and random names, which differ between QEMUs.
            files[re.sub(r'\d{3,}|/.*qemu-(machine|torture)-[^.]*', '',
                         target)] += 1
    return files


def assert_no_more_files(pid: int, wanted: 'Counter[str]') -> None:
    """A process must not have more files open than before."""
    more = wanted

    def is_so() -> bool:
        nonlocal more
        more = open_files(pid) - wanted
        return not more

    try:
        wait_for('no more files', is_so, 10)
    except TimeoutError:
        name = Path(f'/proc/{pid}/comm').read_text('utf-8').strip()
        raise AssertionError(f'too many files in {name}: {more}, '
                             f'on top of {wanted}') from None
