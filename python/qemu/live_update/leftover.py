# SPDX-License-Identifier: GPL-2.0-or-later
"""
What an update that was killed has left

The VM runs in the old QEMU, or in the new one, or it is on its way, since
QEMUs need no help for that.  The next update completes the earlier one, or
removes what is left of it.
"""
import asyncio
import contextlib
import os
from pathlib import Path
from typing import List, Optional

from .error import NeedsPerson, Refused
from .interruption import Interruption
from .monitor import UNDER_WAY, Monitor, MonitorError
from .names import PREFIX, Names, Old
from .output import Output
from .plan import PARAMETER
from .process import Process, end_all, find
from .succession import (AWAY, PATIENCE, check_alive, has_failed, has_got,
                         restore, restore_new, take_back, take_place)

# Seconds for a lock: a child that a killed update has just made has it until
# it becomes the new QEMU.
CHILD = 2


async def clear_up(qmp: str, interruption: Interruption,
                   output: Output) -> bool:
    """
    Clear up; true: the VM is in the new QEMU of the earlier update.

    @param qmp: the path of the VM's monitor
    """
    path = Path(qmp).absolute()
    for folder in sorted(path.parent.glob(f'{PREFIX}*')):
        names = await interruption.guard(_lock(path, folder))
        if not names or not names.old:
            continue
        leftover = Leftover(path, names, names.old, output)
        try:
            await interruption.guard(leftover.look())
            if await leftover.clear_up():
                return True
        finally:
            await leftover.close()
    return False


async def _lock(path: Path, folder: Path) -> Optional[Names]:
    """The names of an earlier update, locked; None: nothing is to be done."""
    for _ in range(CHILD * 100):
        lock = None
        try:
            lock = Names.lock(folder)
        except BlockingIOError:
            pass
        except (FileNotFoundError, PermissionError):
            return None         # it has come to its end, or is not ours
        names = Names.of(folder)
        ours = names.old and names.has(path)
        if ours and lock is not None:
            return names
        if not ours:
            if lock is not None:
                if not names.old:       # then no QEMU was started
                    names.remove()
                os.close(lock)
            return None
        await asyncio.sleep(0.01)
    raise Refused(f"another update of the VM at '{path}' is under way: wait "
                  'for its end')


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


class Leftover:
    """
    What one update has left.

    @param path: the VM's monitor
    @param names: of the new QEMU, locked
    @param before: what that update knew
    """
    def __init__(self, path: Path, names: Names, before: Old,
                 output: Output) -> None:
        self._path = path
        self._names = names
        self._before = before
        self._output = output
        self._pids: List[int] = []      # the new QEMU
        self._process = Process.again(before.process)
        self._first: Optional[Monitor] = None
        self._second: Optional[Monitor] = None
        self._old: Optional[Monitor] = None
        self._new: Optional[Monitor] = None
        self._moved = False

    async def look(self) -> None:
        """Find out where the VM is."""
        self._pids = find(self._names.token)
        if self._process and not self._pids:
            self._names.withdraw()
        # The monitor's name is that of either QEMU.
        self._first = await _connect('the running QEMU', self._path)
        self._second = await _connect(
            'the new QEMU of an earlier update',
            Path(self._names.private(str(self._path))))
        if self._first and self._first.pid in self._pids:
            self._new = self._first
        else:
            self._new = self._second
            if self._first and self._process and \
                    self._first.pid == self._process.pid:
                self._old = self._first
        self._moved = bool(self._new) and await self._has_moved()

    async def close(self) -> None:
        """Let go of the monitors."""
        for monitor in self._first, self._second:
            if monitor:
                await monitor.close()

    async def clear_up(self) -> bool:
        """Clear up; true: the VM is in the new QEMU."""
        if self._new and self._moved:
            if self._first not in (None, self._old, self._new):
                raise NeedsPerson(
                    f"'{self._path}' is the monitor of a QEMU that was "
                    'started since an earlier update brought the VM to '
                    f'process {self._new.pid}: end one of the two')
            self._output.step('earlier', 'an earlier update has brought the '
                              'VM to a new QEMU')
            with contextlib.suppress(MonitorError):
                await self._complete(self._new)
                return True
        await self._run_on()
        await end_all(self._names.token)
        self._names.remove()
        self._output.step('earlier', 'what an earlier update has left was '
                          'removed')
        return False

    async def _complete(self, new: Monitor) -> None:
        """Complete the update; MonitorError: the new QEMU has ended."""
        await restore_new(new, self._before.settings, self._output)
        if self._process:
            await take_place(self._process, self._names, new, self._output)
        else:
            self._names.publish()
            self._names.remove()
        await check_alive(new)
        self._output.result('updated', f'the VM runs in the new QEMU '
                            f'{new.pid}', pid=new.pid)

    async def _has_moved(self) -> bool:
        """Is the VM in the new QEMU?  It may be on its way."""
        assert self._new
        old = self._old
        state: Optional[str] = UNDER_WAY[0]
        for _ in range(PATIENCE * 100):
            with contextlib.suppress(MonitorError):
                state = (await old.migration()).get('status') if old else None
                if state not in UNDER_WAY:
                    if await has_got(self._new):
                        return True
                    # If all was sent, the VM begins to run in a moment.
                    if not old or await old.status() not in AWAY or \
                            await has_failed(self._new):
                        return False
            await asyncio.sleep(0.01)
        if state not in UNDER_WAY:
            return False
        raise NeedsPerson('an earlier update has begun a migration that does '
                          'not come to its end: use "migrate_cancel"')

    async def _run_on(self) -> None:
        """Have the old QEMU run a VM that was about to be moved."""
        old, before = self._old, self._before
        if not old:
            return
        if await old.status() == 'postmigrate':
            try:
                if self._new and not self._moved:
                    # It has not run the VM, and may keep it from images.
                    await end_all(self._names.token)
                elif before.status == 'running' and \
                        not (await old.parameters()).get(PARAMETER):
                    raise MonitorError('whether it has run the VM is not '
                                       'known')
                await take_back(old, before.status)
            except MonitorError as error:
                raise NeedsPerson(
                    'an earlier update has moved the VM to a new QEMU, '
                    f'{self._what_new()}: {error}') from error
        with contextlib.suppress(MonitorError):
            await restore(old, before.settings)

    def _what_new(self) -> str:
        """What is to be said of the new QEMU."""
        pids = find(self._names.token)
        return f'process {pids[0]}, which does not answer' if pids \
            else 'which has ended'
