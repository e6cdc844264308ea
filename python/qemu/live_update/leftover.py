# SPDX-License-Identifier: GPL-2.0-or-later
"""
What an update that was killed has left

The VM runs in the old QEMU, or in the new one, or it is on its way, since
QEMUs need no help for that.  The next update completes the earlier one, or
removes what is left of it.
"""
import asyncio
import contextlib
from pathlib import Path
from typing import List, Optional

from .error import NeedsPerson, Refused
from .monitor import UNDER_WAY, Monitor, MonitorError
from .names import OLD, PREFIX, Names
from .output import Output
from .process import Process, end_all, find
from .succession import PATIENCE, take_place

SENT = 'finish-migrate', 'postmigrate'


async def clear_up(qmp: str, output: Output) -> bool:
    """
    Clear up; true: the VM is in the new QEMU of the earlier update.

    @param qmp: the path of the VM's monitor
    """
    path = Path(qmp).absolute()
    for folder in path.parent.glob(f'{PREFIX}*'):
        try:
            Names.lock(folder)
        except OSError as error:
            raise Refused(f"another update of the VM at '{qmp}' is under way: "
                          'wait for its end') from error
        if await _clear_up(path, folder, output):
            return True
    return False


async def _connect(name: str, path: Path) -> Optional[Monitor]:
    """Connect to a monitor; None: nobody listens there."""
    monitor = Monitor(name, str(path))
    try:
        await monitor.connect()
    except MonitorError as error:
        if isinstance(error.__cause__, (FileNotFoundError,
                                        ConnectionRefusedError)):
            return None
        raise               # it may run the VM
    return monitor


async def _clear_up(path: Path, folder: Path, output: Output) -> bool:
    """The same, for the update that has made a folder."""
    pids = find(folder.name)
    names = Names.of(folder, Process(pids[0]).arguments if pids else [])
    # The monitor's name is that of either QEMU.
    first = await _connect('the running QEMU', path)
    second = await _connect('the new QEMU of an earlier update',
                            folder / path.name)
    try:
        new = first if first and first.pid in pids else second
        old = None if first is new else first
        if new and await _has_moved(old, new):
            output.step('earlier', 'an earlier update has brought the VM to '
                        'a new QEMU')
            process = Process.again((folder / OLD).read_text('ascii'))
            if process:
                await take_place(process, names, output)
            else:
                names.publish()
                names.remove()
            output.result('updated', 'the VM runs in the new QEMU '
                          f'{new.pid}', pid=new.pid)
            return True
        # In this order: it fails if the new QEMU has run the VM.
        await _run_on(old, pids)
        await end_all(folder.name)
        names.remove()
        output.step('earlier', 'what an earlier update has left was removed')
        return False
    finally:
        for monitor in first, second:
            if monitor:
                await monitor.close()


async def _has_moved(old: Optional[Monitor], new: Monitor) -> bool:
    """Is the VM in the new QEMU?  It may be on its way."""
    state: Optional[str] = UNDER_WAY[0]
    for _ in range(PATIENCE * 100):
        with contextlib.suppress(MonitorError):
            state = (await old.migration()).get('status') if old else None
            if state not in UNDER_WAY:
                if await new.status() != 'inmigrate':
                    return True
                # If all was sent, the VM begins to run in a moment.
                if not old or await old.status() not in SENT:
                    return False
        await asyncio.sleep(0.01)
    if state not in UNDER_WAY:
        return False
    raise NeedsPerson('an earlier update has begun a migration that does not '
                      'come to its end: use "migrate_cancel"')


async def _run_on(old: Optional[Monitor], pids: List[int]) -> None:
    """
    Have the old QEMU run a VM that was about to be moved.

    @param pids: the new QEMU, which may have ended
    """
    if not old or await old.status() != 'postmigrate':
        return
    try:
        await old.ask('cont')
    except MonitorError as error:
        raise NeedsPerson('an earlier update has moved the VM to a new QEMU, '
                          f'process {pids[0]}, which does not answer: '
                          f'{error}' if pids else
                          'an earlier update has moved the VM to a new QEMU, '
                          f'which has ended: {error}') from error
