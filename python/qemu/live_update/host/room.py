# SPDX-License-Identifier: GPL-2.0-or-later
"""
How much memory a second QEMU can get on this host
"""
import contextlib
import math
from pathlib import Path
import re

from ..error import Refused
from .process import Process


# The root of the control groups (v2)
GROUPS = Path('/sys/fs/cgroup')
HUGE_PAGES = Path('/sys/kernel/mm/hugepages')


def check_room(process: Process, size: int, reason: str) -> str:
    """
    Check that there is room for a copy; returns how much there is, in words.

    @param process: the QEMU that runs the VM
    @param size: of what is copied
    @param reason: why it is copied
    """
    in_use = min(size, process.memory)
    free = free_memory(Path('/proc/meminfo').read_text('ascii'))
    group = process.cgroup()
    if group:
        free = int(min(free, group_room(group.parent)))
    room = (f'room for up to {_mebibytes(size)}, of which '
            f'{_mebibytes(in_use)} are in use; the VM can get '
            f'{_mebibytes(free)} more')
    if in_use > free:
        raise Refused(f'memory has to be copied ({reason}), which takes '
                      f'{room}: free some, or start the VM with shared memory')
    return room


def check_huge_pages(page_size: int, size: int, name: str,
                     top: Path = HUGE_PAGES) -> None:
    """
    Check that there are huge pages for a copy.

    @param page_size: of the memory that is copied
    @param size: of all memory with such pages
    @param name: of that memory
    """
    folder = top / f'hugepages-{page_size >> 10}kB'
    if not folder.exists():
        return              # these are no huge pages

    def number(name: str) -> int:
        return int((folder / name).read_text('ascii'))

    free = number('free_hugepages') - number('resv_hugepages') + max(
        number('nr_overcommit_hugepages') - number('surplus_hugepages'), 0)
    if free * page_size < size:
        raise Refused(
            f"the memory '{name}' has to be copied, which takes "
            f'{-(-size // page_size)} huge pages of {_mebibytes(page_size)}; '
            f'{max(free, 0)} are free: reserve more '
            f'({folder}/nr_hugepages)')


def _mebibytes(size: int) -> str:
    return f'{size >> 20} MiB'


def free_memory(meminfo: str) -> int:
    """How much memory is available, from the text of /proc/meminfo."""
    return sum(int(size) for size in re.findall(
        r'(?m)^(?:MemAvailable|SwapFree): *(\d+) kB', meminfo)) << 10


def group_room(folder: Path, top: Path = GROUPS) -> float:
    """
    How much more memory a control group and those above it allow.

    @param folder: of the control group
    """
    room = math.inf
    while folder != top and top in folder.parents:
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / 'memory.max').read_text('ascii'))
            used = sum(int(size) for size in re.findall(
                r'(?m)^(?:anon|shmem) (\d+)',
                (folder / 'memory.stat').read_text('ascii')))
            room = min(room, limit - used)
        folder = folder.parent
    return max(room, 0)
