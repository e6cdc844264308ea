# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the process of a VM has around it that the new QEMU cannot have, too

These are its root folder, files that its user may not open again, and a
recording of the VM (record/replay).
"""
import os
from pathlib import Path
from typing import Dict

from . import blocks
from ..error import Refused
from ..host.access import denied
from ..host.process import Process
from ..monitor import Monitor, MonitorError
from .cmdline import CommandLine, is_on


def check_root(process: Process) -> None:
    """Refuse a QEMU whose paths are not those of live-update."""
    if process.root != '/':
        raise Refused(
            f'process {process.pid} has changed its root folder to '
            f"'{process.root}' (chroot), so that it cannot reach the sockets "
            'of a new QEMU; the VM can be updated if it is started without '
            'chroot')


async def check_replay(monitor: Monitor) -> None:
    """Refuse a VM that QEMU records or replays."""
    try:
        mode = (await monitor.ask('query-replay'))['mode']
    except MonitorError:
        return              # this QEMU cannot record
    if mode != 'none':
        raise Refused(
            f'QEMU is in the mode "{mode}" of record/replay (-icount rr=): a '
            'new QEMU would begin the recording anew, in the same file; '
            'start the VM without it')


async def check_access(monitor: Monitor, process: Process,
                       options: CommandLine, folder: Path) -> None:
    """
    Refuse an update if the user of the VM cannot open what both QEMUs need.

    @param options: of the new QEMU
    @param folder: with the sockets by which the two QEMUs talk
    """
    for path in denied(process, {str(folder): os.X_OK}):
        raise Refused(
            f"the user of the VM, {process.users['Uid'][1]}, cannot enter "
            f"'{path}', where the two QEMUs have sockets to talk to each "
            'other: let that user enter it')
    for path in denied(process, await _reopened(monitor, process, options)):
        raise Refused(
            f"the user of the VM, {process.users['Uid'][1]}, cannot open the "
            f"image '{path}', which QEMU opens again when a VM is moved; let "
            'that user open it and enter its folders')


async def _reopened(monitor: Monitor, process: Process, options: CommandLine
                    ) -> Dict[str, int]:
    """
    The image files that QEMU opens again in an update, and for what.

    If a file may be used read-only, too, QEMU opens it for writing only while
    a device writes to it.  That is so with -drive, and with -blockdev if it
    has auto-read-only=on.
    """
    kept = set()
    for option in options.named('blockdev'):
        keys = [(key.rpartition('.')[2], value)
                for key, value in option.keys().items()]
        if not any(key == 'auto-read-only' and is_on(value)
                   for key, value in keys):
            kept |= {os.path.join(process.folder, str(value))
                     for key, value in keys if key == 'filename'}
    files = [os.path.join(process.folder, node['file'])
             for node in (await blocks.nodes(monitor)).values()
             if node['drv'] in blocks.FILES and not node['ro']]
    return {file: os.R_OK | os.W_OK for file in files if file not in kept}
