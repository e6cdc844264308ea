# SPDX-License-Identifier: GPL-2.0-or-later
"""
Complete or undo an earlier update that was killed

A migration does not need live-update once it has begun.  So the VM is in the
old QEMU, in the new QEMU, or on its way between the two.  If it is in the new
QEMU, the update is completed, else it is undone.
"""
import contextlib
import os
from pathlib import Path
from typing import Optional

from .error import NeedsPerson, Refused
from .host.private_files import PREFIX, PrivateFiles, RecoveryNote
from .host.process import Process
from .interruption import Interruption
from .migration import (
    AWAY,
    PARAMETER,
    PATIENCE,
    UNDER_WAY,
    failed_to_start,
    has_vm,
    restore_settings,
    take_back,
)
from .monitor import Monitor, MonitorError
from .new_qemu import NewQemu
from .output import Output
from .waiting import until


# Seconds to wait for a lock.  If live-update was killed between fork() and
# exec() of the new QEMU, the child holds the lock until exec().
LOCK = 2


async def recover(qmp: str, interruption: Interruption, output: Output
                  ) -> bool:
    """
    Complete or undo earlier updates; true: one was completed.

    @param qmp: the path of the VM's monitor
    """
    path = Path(qmp).absolute()
    for folder in sorted(path.parent.glob(f'{PREFIX}*')):
        files = await interruption.may_end(_lock(path, folder))
        if not files or not files.note:
            continue
        recovery = Recovery(path, files, files.note, output)
        try:
            await interruption.may_end(recovery.find_vm())
            if await recovery.complete_or_undo():
                return True
        finally:
            await recovery.close()
    return False


async def _lock(path: Path, folder: Path) -> Optional[PrivateFiles]:
    """
    Lock the private files of an earlier update.

    None: the folder is not of this VM, or of an update that has ended.
    """
    files: Optional[PrivateFiles] = None

    async def is_decided() -> bool:
        nonlocal files
        lock = None
        try:
            lock = PrivateFiles.lock(folder)
        except BlockingIOError:
            pass
        except (FileNotFoundError, PermissionError):
            return True         # the update has ended, or is of another user
        found = PrivateFiles.of_earlier(folder)
        if found.note and found.has_public(path):
            if lock is None:
                return False
            files = found
        elif lock is not None:
            if not found.note:      # then no QEMU was started
                found.remove()
            os.close(lock)
        return True

    if not await until(is_decided, LOCK):
        raise Refused(f"another update of the VM at '{path}' is under way: "
                      'wait for its end')
    return files


async def _connect(monitor: Monitor) -> bool:
    """Connect to a monitor; false: no process listens there."""
    try:
        await monitor.connect()
    except MonitorError as error:
        if isinstance(error.__cause__, (FileNotFoundError,
                                        ConnectionRefusedError)):
            return False
        raise               # the process may run the VM
    return True


class Recovery:
    """
    Completes or undoes one earlier update.

    @param path: of the VM's monitor
    @param files: of the new QEMU, locked
    @param note: of the earlier update
    """
    def __init__(self, path: Path, files: PrivateFiles, note: RecoveryNote,
                 output: Output) -> None:
        self._path = path
        self._files = files
        self._note = note
        self._output = output
        self._process = Process.from_identity(note.process)
        # The monitors at the public and at the private name.  The public name
        # may be that of the old QEMU, of the new one, or of a third one, which
        # the user has started since.
        self._public = Monitor('the running QEMU', str(path))
        self._private = Monitor('the new QEMU of an earlier update',
                                files.private(str(path)))
        self._old: Optional[Monitor] = None
        self._new = NewQemu(files, self._private, output)
        self._new_answers = False
        self._new_has_vm = False
        self._is_third = False      # is the public name that of a third QEMU?

    async def find_vm(self) -> None:
        """Find out which QEMU has the VM."""
        pids = self._new.pids()
        if self._process and not pids:
            self._files.withdraw()
        is_public = await _connect(self._public)
        self._new_answers = await _connect(self._private)
        if is_public and self._public.pid in pids:
            self._new.monitor = self._public
            self._new_answers = True
        elif is_public and self._process and \
                self._public.pid == self._process.pid:
            self._old = self._public
        else:
            self._is_third = is_public
        self._new_has_vm = self._new_answers and await self._is_vm_in_new()

    async def _is_vm_in_new(self) -> bool:
        """Does the new QEMU have the VM?  Waits for a migration to end."""
        old, new = self._old, self._new.monitor
        state: Optional[str] = UNDER_WAY[0]

        async def place() -> str:
            """Returns the QEMU that has the VM; '': that is not decided."""
            nonlocal state
            with contextlib.suppress(MonitorError):
                state = (await old.migration()).get('status') if old else None
                if state in UNDER_WAY:
                    return ''
                if await has_vm(new):
                    return 'new'
                # If all was sent, the new QEMU starts the VM in a moment.
                if not old or await old.status() not in AWAY or \
                        await failed_to_start(new):
                    return 'old'
            return ''

        found = await until(place, PATIENCE)
        if not found and state in UNDER_WAY:
            raise NeedsPerson('an earlier update has begun a migration that '
                              'does not end: use "migrate_cancel"')
        return found == 'new'

    async def close(self) -> None:
        """Disconnect from the monitors."""
        await self._public.close()
        await self._private.close()

    async def complete_or_undo(self) -> bool:
        """Do what find_vm() has found; true: the update was completed."""
        if self._new_has_vm:
            if self._is_third:
                raise NeedsPerson(
                    f"'{self._path}' is the monitor of a QEMU that was "
                    'started since an earlier update brought the VM to '
                    f'process {self._new.monitor.pid}: end one of the two')
            self._output.step('earlier', 'an earlier update has brought the '
                              'VM to a new QEMU')
            with contextlib.suppress(MonitorError):
                await self._complete()
                return True
        await self._take_back()
        await self._new.end()
        self._files.remove()
        self._output.step('earlier', 'what an earlier update has left was '
                          'removed')
        return False

    async def _complete(self) -> None:
        """Complete the update; MonitorError: the new QEMU has ended."""
        await self._new.restore_settings(self._note.settings)
        if self._process:
            await self._new.replace(self._process)
        else:
            self._files.publish()
            self._files.remove()
        await self._new.check_alive()
        pid = self._new.monitor.pid
        self._output.result('updated', f'the VM runs in the new QEMU {pid}',
                            pid=pid)

    async def _take_back(self) -> None:
        """Have the old QEMU run the VM, if it has sent it already."""
        old, note = self._old, self._note
        if not old:
            return
        if await old.status() == 'postmigrate':
            try:
                if self._new_answers and not self._new_has_vm:
                    # The new QEMU has never run the VM.  It may have locked
                    # images that the old QEMU needs.
                    await self._new.end()
                elif note.status == 'running' and \
                        not (await old.parameters()).get(PARAMETER):
                    raise MonitorError('without backend-transfer, it is not '
                                       'known whether it has run the VM')
                await take_back(old, note.status)
            except MonitorError as error:
                raise NeedsPerson(
                    'an earlier update has moved the VM to a new QEMU, '
                    f'{self._describe_new()}: {error}') from error
        with contextlib.suppress(MonitorError):
            await restore_settings(old, note.settings)

    def _describe_new(self) -> str:
        """The state of the new QEMU, in words."""
        pids = self._new.pids()
        return f'process {pids[0]}, which does not answer' if pids \
            else 'which has ended'
