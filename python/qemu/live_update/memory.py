# SPDX-License-Identifier: GPL-2.0-or-later
"""
How the guest's memory gets to the new QEMU
"""
import os
import stat
from pathlib import Path
from typing import NamedTuple

from .error import Refused
from .monitor import Monitor
from .process import Process

IGNORE_SHARED, CPR, COPY = 'x-ignore-shared', 'cpr-transfer', 'copy'


class Mode(NamedTuple):
    """A way for memory to get to the new QEMU."""
    name: str
    reason: str


async def choose_mode(monitor: Monitor, process: Process) -> Mode:
    """Find the best way that the VM's memory allows."""
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
        # A copy would go from the file to itself, under the running guest.
        return Mode(IGNORE_SHARED, "files stay where they are, '"
                    f"{(shared + others)[0]}' is copied")
    if others:
        return Mode(COPY, f"'{others[0]}' is not shared (share=on)")
    if not await monitor.get('/machine', 'aux-ram-share'):
        return Mode(COPY, 'it has no name in the file system, and the '
                    'machine is without aux-ram-share=on')
    return Mode(CPR, 'shared, and handed over by its file descriptors')


async def _check_file(monitor: Monitor, process: Process, name: str,
                      file: str) -> None:
    """The new QEMU must find the memory that the guest uses."""
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
