# SPDX-License-Identifier: GPL-2.0-or-later
"""
An update: start the new QEMU, move the VM to it, and end the old QEMU

At any time at most one of the two QEMUs runs the VM.  After an error, QEMU
tells which one that may be: with backend-transfer, "cont" succeeds in the old
QEMU if, and only if, the new QEMU has never run the VM.
"""
import contextlib
import traceback
from typing import Any, Dict, Optional

from .error import (
    Failed,
    NeedsPerson,
    Refused,
    UpdateError,
)
from .host.private_files import RecoveryNote
from .interruption import Interruption
from .migration import Migration, failed_to_start, take_back
from .monitor import Monitor, MonitorError
from .new_qemu import NewQemu
from .output import Output
from .plan import Plan
from .report.record import Record
from .vm.blocks import images, other_image
from .vm.devices import devices, difference
from .vm.memory import CPR, lost
from .vm.ram import ram_blocks


def describe(error: Exception) -> str:
    """An error as a sentence."""
    if isinstance(error, (UpdateError, MonitorError)):
        return str(error)
    with contextlib.suppress(OSError):
        traceback.print_exception(type(error), error, error.__traceback__)
    return f'a fault of live-update ({type(error).__name__}: {error})'


class Update:
    """
    One update.

    facts: what the user is told of the update when it has succeeded

    @param plan: of the update, which is possible
    @param record: for the report
    """
    def __init__(self, plan: Plan, interruption: Interruption,
                 record: Optional[Record], output: Output) -> None:
        self.facts: Dict[str, Any] = {
            'mode': plan.mode.name, 'old-pid': plan.process.pid}
        self._plan = plan
        self._interruption = interruption
        self._record = record
        self._output = output
        self._old = plan.monitor
        self._new = NewQemu(plan.files, Monitor(
            'the new QEMU', plan.new_monitor, is_new=True), output)
        self._migration = Migration(self._old, self._new.monitor,
                                    plan.mode.name, plan.transfer,
                                    plan.status)

    async def run(self) -> None:
        """Do it; raises UpdateError unless the VM is in the new QEMU."""
        migration, files = self._migration, self._plan.files
        await migration.read_settings()
        files.create(RecoveryNote(self._plan.process.identity,
                                  self._plan.status, migration.settings))
        try:
            try:
                await self._interruption.may_end(self._move())
            except Exception as error:  # pylint: disable=broad-except
                await self._take_back(describe(error))
            if self._record:
                self._record.arrived(self._new.monitor)
            self.facts.update(await migration.pause())
            await self._new.restore_settings(migration.settings)
            await self._check_moved()
            await self._replace_old()
        except (Refused, Failed):
            await self._new.end()
            files.remove()
            raise

    async def close(self) -> None:
        """Disconnect from the new QEMU."""
        await self._new.monitor.close()

    async def check_alive(self) -> None:
        """Raise NeedsPerson if the new QEMU has ended."""
        await self._new.check_alive()

    async def _replace_old(self) -> None:
        """End the old QEMU, when it is certain that the new one has the VM."""
        while True:
            try:
                await self._new.replace(self._plan.process)
                return
            except MonitorError as error:
                # Returns if the new QEMU has not ended, but answers late.
                await self._take_back(str(error))

    async def _check_moved(self) -> None:
        """Raise NeedsPerson if the new QEMU has not all memory of the VM."""
        try:
            problem = await self._lost_memory()
        except (MonitorError, OSError) as error:
            # One of the two has ended: _replace_old() finds out which.
            self._output.check('memory', 'warning', 'it cannot be compared '
                               f'after the move: {error}')
            return
        if problem:
            raise NeedsPerson(
                f'the VM was moved, but the new QEMU {problem}; both QEMUs '
                f'are left as they are: process {self._plan.process.pid} is '
                f'the old one, process {self._new.monitor.pid} the new one, '
                f"with the monitor '{self._new.monitor.path}'; look at the "
                'guest, and type the same command again to keep the new one')

    async def _lost_memory(self) -> Optional[str]:
        """How the new QEMU has not the memory of the VM; None: it has."""
        return lost(self._plan.mode.name,
                    await ram_blocks(self._old, self._plan.process),
                    await self._new.ram_blocks())

    # The VM moves

    async def _move(self) -> None:
        """Start the new QEMU, and move the VM to it."""
        plan, migration = self._plan, self._migration
        uri = f'unix:{plan.channel("migration")}'
        self._new.start(plan.process, plan.command(),
                        not plan.drops_privileges)
        if plan.mode.name == CPR:
            # The monitor of the new QEMU does not answer before that has
            # received the memory.
            await self._new.wait_listening(plan.channel('cpr'))
            self._note_started()
            await migration.prepare_old()
            await migration.send(channels=[self._channel('main', 'migration'),
                                           self._channel('cpr', 'cpr')])
            await self._connect()
            await self._receive(uri)
        else:
            await self._connect()
            self._note_started()
            await migration.prepare_old()
            await self._receive(uri)
            await migration.send(uri=uri)
        downtime = await migration.wait_sent()
        self._output.step('migrate', 'the VM was moved, with a downtime of '
                          f'{downtime} ms')
        await migration.wait_received()
        self._output.step('verify', f'the VM is {migration.status} in the new '
                          'QEMU')

    def _note_started(self) -> None:
        self._output.step('start', 'the new QEMU waits for the VM')

    def _channel(self, kind: str, name: str) -> Dict[str, object]:
        """An item of the argument "channels" of "migrate"."""
        return {'channel-type': kind, 'addr': {
            'transport': 'socket', 'type': 'unix',
            'path': self._plan.channel(name)}}

    async def _connect(self) -> None:
        """Connect to the new QEMU; it must have the devices of the VM."""
        new = self._new.monitor
        await self._new.connect()
        self.facts['pid'] = new.pid
        if self._record:
            await self._record.expect(new)
        problem = \
            difference(self._plan.devices, await devices(new)) or \
            other_image(await images(self._old), await images(new)) or \
            await self._lost_memory()
        if problem:
            raise Refused(f'the new QEMU {problem}; give the command line '
                          'after "--"')
        await self._new.copy_scheduling(self._old)

    async def _receive(self, uri: str) -> None:
        """Have the new QEMU wait for the VM."""
        await self._migration.receive(uri)
        self._plan.files.protect_sockets()

    # The VM is taken back

    async def _take_back(self, why: str) -> None:
        """
        Have the old QEMU run the VM again.

        Raises Refused or Failed if it does, NeedsPerson if neither QEMU does.
        Returns if it is too late, since the new QEMU runs the VM.

        @param why: a sentence for the user
        """
        migration = self._migration
        if not migration.is_begun:
            await migration.restore_old()
            raise Refused(why)
        state = await migration.cancel()
        if not state:
            # The old QEMU is blocked: the new one does not read the stream.
            await self._new.end()
            state = await migration.wait_ended()
        if state == 'completed' and not await migration.old_gets_vm(0) \
                and await self._new.gets_vm():
            return
        if await self._old_gets_vm(state):
            await migration.restore_old()
            raise Failed(f'{why}; the VM ' + (
                'runs on' if migration.status == 'running' else
                f'is {migration.status}, as before,') + ' in the old QEMU')
        if await self._new.gets_vm():
            return
        raise NeedsPerson(
            f'{why}; neither QEMU runs the VM now: look at both, at '
            f"'{self._old.path}' and '{self._new.monitor.path}'")

    async def _old_gets_vm(self, state: str) -> bool:
        """
        Have the old QEMU take the VM back, if it may.

        @param state: in which the migration has ended
        """
        migration = self._migration
        # A moment after a migration has failed, the old QEMU has the VM again.
        # If it has refused the command "migrate", it has the VM all the time,
        # and the state is that of the migration that brought the VM to it.
        if await migration.old_gets_vm(0.1 if state == 'completed' else 1):
            return True
        with contextlib.suppress(MonitorError):
            if await self._new_has_not_run():
                # It may have locked images that the old QEMU needs.
                await self._new.end()
            elif state == 'completed' and not self._plan.transfer:
                return False
            await take_back(self._old, migration.status)
            return await migration.old_gets_vm()
        return False

    async def _new_has_not_run(self) -> bool:
        """Is it certain that the new QEMU has never run the VM?"""
        if self._migration.status_in_old != 'running':
            return True
        try:
            return await failed_to_start(self._new.monitor)
        except MonitorError:
            return False
