# SPDX-License-Identifier: GPL-2.0-or-later
"""
How the guest's memory gets to the new QEMU
"""
import contextlib
import math
import os
from pathlib import Path
import re
import stat
from typing import NamedTuple

from ..error import Refused
from ..host.process import Process
from ..monitor import Monitor


# The root of the control groups (v2)
GROUPS = Path('/sys/fs/cgroup')
IGNORE_SHARED, CPR, COPY = 'x-ignore-shared', 'cpr-transfer', 'copy'


class Mode(NamedTuple):
    """
    A way for memory to get to the new QEMU.

    reason: why this way is taken, for the user
    """
    name: str
    reason: str


async def choose_mode(monitor: Monitor, process: Process) -> Mode:
    """Choose the best way that the VM's memory backends allow."""
    files, shared, others = [], [], []
    for name, kind in (await monitor.children('/objects')).items():
        if not kind.startswith('memory-backend-'):
            continue
        path = f'/objects/{name}'
        is_shared = await monitor.get(path, 'share')
        file = await monitor.get(path, 'mem-path')
        if is_shared and file and not Path(process.folder, file).is_dir():
            await _check_file(monitor, process, name, file)
            files.append(name)
        elif is_shared:
            shared.append(name)
        else:
            others.append(name)
    if files and not shared + others:
        return Mode(IGNORE_SHARED, 'a shared file, which stays where it is')
    if files:
        # COPY is no choice: it would write the new QEMU's copy to the file,
        # which the running guest uses.
        return Mode(IGNORE_SHARED, "files stay where they are, '"
                    f"{(shared + others)[0]}' is copied")
    if others:
        return await choose_copy(monitor, process,
                                 f"'{others[0]}' is not shared (share=on)")
    if not await monitor.get('/machine', 'aux-ram-share'):
        return await choose_copy(
            monitor, process, 'guest memory is no named file, and the '
            'machine lacks aux-ram-share=on')
    return Mode(CPR, 'shared, and handed over by its file descriptors')


async def choose_copy(monitor: Monitor, process: Process, reason: str
                      ) -> Mode:
    """Choose to copy the memory; Refused: there is no room for a copy."""
    size = await monitor.ask('query-memory-size-summary')
    whole = size['base-memory'] + size.get('plugged-memory', 0)
    in_use = min(whole, process.memory)
    free = free_memory(Path('/proc/meminfo').read_text('ascii'))
    group = process.cgroup()
    if group:
        free = int(min(free, group_room(group.parent)))
    room = (f'room for up to {_mebibytes(whole)}, of which '
            f'{_mebibytes(in_use)} are in use; the VM can get '
            f'{_mebibytes(free)} more')
    if in_use > free:
        raise Refused(f'memory has to be copied ({reason}), which takes '
                      f'{room}: free some, or start the VM with shared memory')
    return Mode(COPY, f'{reason}; this takes {room}')


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


async def _check_file(monitor: Monitor, process: Process, name: str,
                      file: str) -> None:
    """Check that the new QEMU can open the file that is guest memory."""
    try:
        status = os.stat(Path(process.folder, file))
    except OSError as error:
        raise Refused(f"the file '{file}' of the memory '{name}' is not "
                      f'there any more ({error.strerror}), so that no other '
                      'QEMU can open it') from error
    if not stat.S_ISREG(status.st_mode) or not process.maps(status):
        raise Refused(f"the file '{file}' is not what the VM has as its "
                      f"memory '{name}'; it was replaced since the VM started")
    if await monitor.get(f'/objects/{name}', 'discard-data'):
        raise Refused(f"the memory '{name}' has discard-data=on: the old "
                      'QEMU would delete the memory of the VM when it ends')
