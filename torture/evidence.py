# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is kept of a round that has failed
"""
import os
import subprocess
from pathlib import Path
from typing import List

from guest import OBJ


def children() -> List[int]:
    """All processes that we have started and have not seen the end of."""
    found = []
    for entry in Path('/proc').iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / 'stat').read_text('utf-8', 'replace')
        except OSError:
            continue            # it has ended
        if int(stat.rpartition(')')[2].split()[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def _gdb(file: Path, *words: str) -> None:
    with open(file, 'wb') as output:
        subprocess.run(
            ['gdb', '-batch', *words, '-ex', 'thread apply all bt'],
            stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, check=False, timeout=120)


def keep_backtraces(folder: Path) -> None:
    """Where our processes are, and where those were that dumped core here."""
    folder.mkdir(parents=True, exist_ok=True)
    for pid in children():
        _gdb(folder / f'backtrace-{pid}', '-p', str(pid))
    for core in Path.cwd().glob('core*'):
        _gdb(folder / f'backtrace-{core.name}',
             str(OBJ / 'qemu-system-x86_64'), str(core))
        core.unlink()
