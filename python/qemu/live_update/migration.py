# SPDX-License-Identifier: GPL-2.0-or-later
"""
The migration of a VM from the old QEMU to the new one
"""
import contextlib
from typing import Any, Dict

from qemu.qmp import EventListener

from .error import Failed
from .monitor import Monitor, MonitorError
from .vm.memory import CPR, IGNORE_SHARED
from .waiting import until


PARAMETER = 'backend-transfer'
PATIENCE = 10           # seconds for what normally takes milliseconds
# States of a migration that is under way, and of one that has ended.
UNDER_WAY = ('setup', 'active', 'device', 'cancelling', 'wait-unplug',
             'pre-switchover')
ENDS = 'completed', 'failed', 'cancelled'
# Run states of a QEMU that does not have the VM yet, or not any more.
AWAY = 'inmigrate', 'finish-migrate', 'postmigrate'
# Parameters that only the old QEMU gets, which sends the VM.
SENDER: Dict[str, object] = {
    'mode': 'normal', 'max-bandwidth': 10 ** 12, 'tls-creds': ''}


async def has_vm(monitor: Monitor) -> bool:
    """Does a QEMU have the VM, running or not?"""
    return await monitor.status() not in AWAY


async def failed_to_start(new: Monitor) -> bool:
    """
    Has the new QEMU received the VM, but could not start it?

    Then the VM has never run there.
    """
    # In this order: QEMU starts a VM before the migration is completed.
    state = (await new.migration()).get('status')
    return state in ENDS and not await has_vm(new)


async def restore_settings(monitor: Monitor, settings: Dict[str, Any]
                           ) -> None:
    """
    Set capabilities and parameters of migration to earlier values.

    Those that this QEMU does not know are left out.  The values matter to
    later migrations and to snapshots: with x-ignore-shared, a snapshot has no
    memory.
    """
    known = await monitor.capabilities()
    await monitor.set_capabilities(**{
        name: state for name, state in settings['capabilities'].items()
        if known.get(name, state) != state})
    known = await monitor.parameters()
    await monitor.ask('migrate-set-parameters', **{
        name: value for name, value in settings['parameters'].items()
        if known.get(name, value) != value})


async def take_back(old: Monitor, status: str) -> None:
    """
    Have the old QEMU run the VM that it has sent.

    @param status: the run state that the VM is to have
    """
    await old.ask('cont')
    if status != 'running':
        await old.ask('stop')


class Migration:
    """
    The migration of an update.

    settings: capabilities and parameters of the old QEMU before the update
    is_begun: was the old QEMU told to send the VM?
    status: the latest known run state of the VM, which a QEMU that takes it
            back must restore
    status_in_old: the last run state that the VM had in the old QEMU

    @param old: the QEMU that sends the VM
    @param new: the QEMU that receives it
    @param mode: how guest memory gets there, the name of a memory.Mode
    @param transfer: do both QEMUs have backend-transfer?
    @param status: the run state of the VM now
    """
    def __init__(self, old: Monitor, new: Monitor, mode: str, transfer: bool,
                 status: str) -> None:
        self.settings: Dict[str, Any] = {}
        self.is_begun = False
        self.status = self.status_in_old = status
        self._old = old
        self._new = new
        self._mode = mode
        self._transfer = transfer
        self._is_prepared = False       # has prepare_old() changed settings?
        self._stopped = EventListener(('STOP',))
        self._resumed = EventListener(('RESUME',))

    # Settings

    async def read_settings(self) -> None:
        """Read the settings of the old QEMU that prepare_old() changes."""
        known = await self._old.parameters()
        self.settings = {
            'capabilities': await self._old.capabilities(),
            'parameters': {name: known[name] for name in (PARAMETER, *SENDER)
                           if name in known}}

    async def _prepare(self, monitor: Monitor) -> None:
        """Set the capabilities and parameters that both QEMUs need."""
        wanted = {'return-path', 'events'}
        if self._mode == IGNORE_SHARED:
            wanted.add('x-ignore-shared')
        await monitor.set_capabilities(**{
            name: name in wanted
            for name, state in (await monitor.capabilities()).items()
            if state != (name in wanted)})
        if self._transfer:
            await monitor.ask('migrate-set-parameters',
                              **{PARAMETER: True})

    async def prepare_old(self) -> None:
        """Prepare the old QEMU to send the VM."""
        self._old.qmp.register_listener(self._stopped)
        wanted = dict(SENDER)
        if self._mode == CPR:
            wanted['mode'] = 'cpr-transfer'
        self._is_prepared = True
        await self._prepare(self._old)
        await self._old.ask('migrate-set-parameters', **{
            name: wanted[name]
            for name, value in self.settings['parameters'].items()
            if wanted.get(name, value) != value})

    async def restore_old(self) -> None:
        """Restore the settings of the old QEMU, if they were changed."""
        if self._is_prepared:
            with contextlib.suppress(MonitorError):
                await restore_settings(self._old, self.settings)

    # The VM moves

    async def receive(self, uri: str) -> None:
        """Have the new QEMU, which is connected, wait for the VM."""
        self._new.qmp.register_listener(self._resumed)
        await self._prepare(self._new)
        arguments: Dict[str, object] = {'uri': uri}
        if 'exit-on-error' in await self._new.arguments('migrate-incoming'):
            # A QEMU older than 9.1 ends if it cannot receive the VM.
            arguments['exit-on-error'] = False
        await self._new.ask('migrate-incoming', **arguments)

    async def send(self, **destination: object) -> None:
        """
        Have the old QEMU send the VM.

        @param destination: arguments of "migrate"
        """
        self.is_begun = True
        await self._old.ask('migrate', **destination)

    async def wait_sent(self) -> int:
        """Wait until all was sent; returns the downtime in milliseconds."""
        state: Dict[str, Any] = {}

        async def has_ended() -> bool:
            nonlocal state
            # The user may stop or continue the VM at any time.
            status = await self._old.status()
            if status not in AWAY:
                self.status = self.status_in_old = status
            state = await self._old.migration()
            return state.get('status') in ENDS

        await until(has_ended)
        if state['status'] != 'completed':
            raise Failed('the migration has failed: ' + await self._reason(
                str(state.get('error-desc', 'no reason was given'))))
        return int(state['downtime'])

    async def wait_received(self) -> None:
        """Wait until the new QEMU has the VM, in any run state."""
        async def is_received() -> bool:
            if await has_vm(self._new):
                return True
            if await failed_to_start(self._new):
                raise Failed(
                    'the new QEMU has got the VM and cannot start it: ' +
                    await self._reason('is an image locked by another '
                                       'program?'))
            return False

        await until(is_received)
        self.status = await self._new.status()

    async def _reason(self, default: str) -> str:
        """The reason of the new QEMU for a failure, or else a default."""
        with contextlib.suppress(MonitorError):
            state = await self._new.migration()
            return str(state.get('error-desc') or default)
        return default

    async def pause(self) -> Dict[str, Any]:
        """The downtime, and the times of STOP and RESUME, if known."""
        facts: Dict[str, Any] = {}
        with contextlib.suppress(MonitorError, KeyError):
            state = await self._old.migration()
            facts['downtime'] = state['downtime'] / 1000
        times = []
        for listener in self._stopped, self._resumed:
            events = listener.clear()
            if events:
                stamp: Any = events[-1]['timestamp']
                times.append(stamp['seconds'] + stamp['microseconds'] / 1e6)
        if len(times) == 2:
            facts['paused'] = times
        return facts

    # The VM is taken back

    async def cancel(self) -> str:
        """Cancel the migration, and wait until it has ended."""
        with contextlib.suppress(MonitorError):
            await self._old.ask('migrate_cancel')
        return await self.wait_ended()

    async def wait_ended(self) -> str:
        """Wait until the migration has ended; '': it does not end."""
        async def end() -> str:
            with contextlib.suppress(MonitorError):
                state = (await self._old.migration()).get('status')
                if state in ENDS or state is None:
                    return str(state)
            return ''

        return await until(end, PATIENCE)

    async def old_gets_vm(self, timeout: float = PATIENCE) -> bool:
        """Wait until the old QEMU has the VM; false: it has not got it."""
        async def old_has_vm() -> bool:
            with contextlib.suppress(MonitorError):
                return await has_vm(self._old)
            return False

        return await until(old_has_vm, timeout)
