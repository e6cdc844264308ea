# SPDX-License-Identifier: GPL-2.0-or-later
"""
An update: the new QEMU is started, gets the VM, and takes the old one's place

At any moment one QEMU runs the VM, or may be told to.  Which one it is after
a failure is not guessed: with backend-transfer, "cont" on the old QEMU works
if, and only if, the new one has never run the VM.
"""
import asyncio
import contextlib
import os
import subprocess
import traceback
from typing import Any, Dict, Optional

from qemu.qmp import EventListener

from .blocks import images, other_image
from .devices import devices, difference
from .error import Failed, NeedsPerson, Refused, UpdateError
from .interruption import Interruption
from .memory import CPR, IGNORE_SHARED
from .monitor import Monitor, MonitorError
from .names import Old
from .output import Output
from .plan import PARAMETER, Plan
from .process import end_all, find, is_listening
from .record import Record
from .succession import (AWAY, ENDS, PATIENCE, check_alive, has_failed,
                         has_got, restore, restore_new, settings, take_back,
                         take_place)
from .threads import treat_alike

POLL = 0.01             # seconds
# Parameters of the sender.
SENDER: Dict[str, object] = {
    'mode': 'normal', 'max-bandwidth': 10 ** 12, 'tls-creds': ''}


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

    facts: what is known when it has been done, for the user

    @param plan: what to do; it was found to be possible
    @param record: is told when the VM has arrived
    """
    # pylint: disable=too-many-instance-attributes

    def __init__(self, plan: Plan, interruption: Interruption,
                 record: Optional[Record], output: Output) -> None:
        self.facts: Dict[str, Any] = {
            'mode': plan.mode.name, 'old-pid': plan.process.pid}
        self._plan = plan
        self._interruption = interruption
        self._record = record
        self._output = output
        self._old = plan.monitor
        self._new = Monitor('the new QEMU', plan.new_monitor, begins=True)
        self._child: Optional['subprocess.Popen[bytes]'] = None
        self._printed = b''
        self._sent = False
        self._prepared = False
        self._status = plan.status      # that the VM has, or is to have
        self._left = plan.status        # that it had in the old QEMU
        self._before: Dict[str, Any] = {}
        self._stopped = EventListener(('STOP',))
        self._resumed = EventListener(('RESUME',))

    async def run(self) -> None:
        """Do it; raises UpdateError unless the VM is in the new QEMU."""
        plan = self._plan
        self._before = await settings(self._old, PARAMETER, *SENDER)
        plan.names.create(Old(plan.process.identity, plan.status,
                              self._before))
        try:
            try:
                await self._interruption.guard(self._move())
            except Exception as error:  # pylint: disable=broad-except
                await self._take_back(describe(error))
            if self._record:
                self._record.arrived(self._new)
            await self._note_pause()
            await restore_new(self._new, self._before, self._output)
            await self._take_place()
        except (Refused, Failed):
            await self._end_new()
            plan.names.remove()
            raise

    async def close(self) -> None:
        """Let go of the new QEMU."""
        await self._new.close()

    async def check_alive(self) -> None:
        """Is the new QEMU there?"""
        await check_alive(self._new)

    async def _move(self) -> None:
        await self._start()
        await self._migrate()
        await self._wait_arrived()

    async def _take_place(self) -> None:
        while True:
            try:
                await take_place(self._plan.process, self._plan.names,
                                 self._new, self._output)
                return
            except MonitorError as error:
                # It returns if the new QEMU just did not answer.
                await self._take_back(str(error))

    # The new QEMU starts

    async def _start(self) -> None:
        plan = self._plan
        self._child = plan.process.start_like(plan.command(),
                                              not plan.drops_privileges)
        if self._child.stderr:
            pipe = self._child.stderr.fileno()
            os.set_blocking(pipe, False)
            asyncio.get_running_loop().add_reader(pipe, self._read, pipe)
        if plan.mode.name == CPR:
            # Its monitor does not answer before it has got the memory.
            await self._wait_listening(plan.channel('cpr'))
        else:
            await self._connect()
        self._output.step('start', 'the new QEMU waits for the VM')

    def _read(self, pipe: int) -> None:
        """Take what the new QEMU has printed."""
        data = os.read(pipe, 65536)
        self._printed = (self._printed + data)[-4000:]
        if not data:
            asyncio.get_running_loop().remove_reader(pipe)

    async def _wait_listening(self, path: str) -> None:
        """Wait until the new QEMU listens on a socket."""
        while not is_listening(path):
            self._check_child()
            await asyncio.sleep(POLL)
        self._plan.names.protect()

    def _check_child(self) -> None:
        """Raises why the new QEMU has ended, if it has."""
        assert self._child
        # One that daemonizes leaves the work to another process.
        if self._child.poll() or self._child.returncode == 0 and \
                not find(self._plan.names.token):
            said = self._printed.decode(errors='replace').strip()
            raise Refused('the new QEMU does not start: ' + (
                said or f'it ends with status {self._child.returncode}; its '
                'messages are where those of the old one are'))

    async def _connect(self) -> None:
        """Connect to the new QEMU; it must have the VM's devices."""
        await self._wait_listening(self._new.path)
        try:
            await self._new.connect()
        except MonitorError:
            for _ in range(int(1 / POLL)):
                await asyncio.sleep(POLL)
                self._check_child()
            raise
        self.facts['pid'] = self._new.pid
        if self._record:
            await self._record.expect(self._new)
        problem = \
            difference(self._plan.devices, await devices(self._new)) or \
            other_image(await images(self._old), await images(self._new))
        if problem:
            raise Refused(f'the new QEMU {problem}; give the command line '
                          'anew after "--"')
        await treat_alike(self._old, self._new)

    # The VM moves

    async def _migrate(self) -> None:
        plan, old, new = self._plan, self._old, self._new
        uri = f'unix:{plan.channel("migration")}'
        old.qmp.register_listener(self._stopped)
        new.qmp.register_listener(self._resumed)
        await self._prepare_old()
        if plan.mode.name == CPR:
            self._sent = True
            await old.ask('migrate', channels=[
                self._channel_to('main', 'migration'),
                self._channel_to('cpr', 'cpr')])
            await self._connect()
            await self._receive(uri)
        else:
            await self._receive(uri)
            self._sent = True
            await old.ask('migrate', uri=uri)
        while True:
            # Somebody may stop the VM meanwhile.
            status = await old.status()
            if status not in AWAY:
                self._status = self._left = status
            state = await old.migration()
            if state.get('status') == 'completed':
                break
            if state.get('status') in ENDS:
                raise Failed('the migration has failed: ' +
                             await self._reason(state))
            await asyncio.sleep(POLL)
        self._output.step('migrate', 'the VM was moved, with a downtime of '
                          f'{state["downtime"]} ms')

    async def _receive(self, uri: str) -> None:
        """Have the new QEMU wait for the VM."""
        await self._prepare(self._new)
        await self._new.ask('migrate-incoming', uri=uri, exit_on_error=False)
        self._plan.names.protect()

    def _channel_to(self, kind: str, name: str) -> Dict[str, object]:
        return {'channel-type': kind, 'addr': {
            'transport': 'socket', 'type': 'unix',
            'path': self._plan.channel(name)}}

    async def _prepare(self, monitor: Monitor) -> None:
        """Set capabilities and parameters of migration."""
        wanted = {'return-path', 'events'}
        if self._plan.mode.name == IGNORE_SHARED:
            wanted.add('x-ignore-shared')
        await monitor.set_capabilities(**{
            name: name in wanted
            for name, state in (await monitor.capabilities()).items()
            if state != (name in wanted)})
        if self._plan.transfer:
            await monitor.ask('migrate-set-parameters',
                              **{PARAMETER: True})

    async def _prepare_old(self) -> None:
        """The same, and what only the sender needs."""
        wanted = dict(SENDER)
        if self._plan.mode.name == CPR:
            wanted['mode'] = 'cpr-transfer'
        self._prepared = True
        await self._prepare(self._old)
        await self._old.ask('migrate-set-parameters', **{
            name: wanted[name]
            for name, value in self._before['parameters'].items()
            if wanted.get(name, value) != value})

    async def _reason(self, state: Dict[str, Any]) -> str:
        """Why a migration failed; the new QEMU knows best."""
        with contextlib.suppress(MonitorError):
            theirs = await self._new.migration()
            if theirs.get('error-desc'):
                return str(theirs['error-desc'])
        return str(state.get('error-desc', 'no reason was given'))

    async def _wait_arrived(self) -> None:
        """Wait until the new QEMU has the VM, in whatever state it is."""
        while not await has_got(self._new):
            if await has_failed(self._new):
                raise Failed(
                    'the new QEMU has got the VM and cannot start it: ' +
                    await self._reason({'error-desc': 'is an image locked by '
                                        'another program?'}))
            await asyncio.sleep(POLL)
        self._status = await self._new.status()
        self._output.step('verify', f'the VM is {self._status} in the new '
                          'QEMU')

    # It does not work

    async def _take_back(self, why: str) -> None:
        """
        Have the VM run on in the old QEMU; raises what has become of it.

        Returns if it is too late: then the new QEMU runs it.
        """
        if not self._sent:
            await self._restore_old()
            raise Refused(why)
        with contextlib.suppress(MonitorError):
            await self._old.ask('migrate_cancel')
        state = await self._settled()
        if not state:
            # It writes to a QEMU that does not read.
            await self._end_new()
            state = await self._settled()
        if state == 'completed' and not await self._soon_has(self._old, 0) \
                and await self._soon_has(self._new):
            return
        if await self._old_has(state):
            await self._restore_old()
            raise Failed(f'{why}; the VM ' + (
                'runs on' if self._status == 'running' else
                f'is {self._status}, as before,') + ' in the old QEMU')
        if await self._soon_has(self._new):
            return
        raise NeedsPerson(
            f'{why}; neither QEMU runs the VM now: look at both, at '
            f"'{self._old.path}' and '{self._new.path}'")

    async def _settled(self) -> str:
        """Wait until the migration has ended; '' if it does not."""
        for _ in range(int(PATIENCE / POLL)):
            with contextlib.suppress(MonitorError):
                state = (await self._old.migration()).get('status')
                if state in ENDS or state is None:
                    return str(state)
            await asyncio.sleep(POLL)
        return ''

    async def _old_has(self, state: str) -> bool:
        """Has the old QEMU the VM?  Have it take the VM back if it may."""
        # It goes on by itself, a moment after the migration has failed.  One
        # that was refused has not stopped it; then the state is of an
        # earlier one, by which the VM came to this QEMU.
        if await self._soon_has(self._old, 0.1 if state == 'completed' else 1):
            return True
        with contextlib.suppress(MonitorError):
            if await self._has_not_run():
                # It may keep the old one from images.
                await self._end_new()
            elif state == 'completed' and not self._plan.transfer:
                return False
            await take_back(self._old, self._status)
            return await self._soon_has(self._old)
        return False

    async def _has_not_run(self) -> bool:
        """Is it certain that the new QEMU has not run the VM?"""
        if self._left != 'running':
            return True
        try:
            return await has_failed(self._new)
        except MonitorError:
            return False

    async def _soon_has(self, monitor: Monitor,
                        timeout: float = PATIENCE) -> bool:
        """Wait for what should be so in a moment: that it has the VM."""
        for _ in range(int(timeout / POLL) + 1):
            try:
                if await has_got(monitor):
                    return True
                if monitor is self._new and await has_failed(monitor):
                    return False
            except MonitorError:
                if monitor is self._new and not find(self._plan.names.token):
                    return False        # it has ended
            await asyncio.sleep(POLL)
        return False

    async def _restore_old(self) -> None:
        """Set the old QEMU's settings to what they were."""
        if self._prepared:
            with contextlib.suppress(MonitorError):
                await restore(self._old, self._before)

    async def _end_new(self) -> None:
        """End the new QEMU, which does not run the VM."""
        if self._child:
            # It may be a script that runs something else.
            self._child.kill()
            self._child.wait()
        await end_all(self._plan.names.token)

    async def _note_pause(self) -> None:
        """When did the VM stop, and when did it go on?"""
        with contextlib.suppress(MonitorError, KeyError):
            state = await self._old.migration()
            self.facts['downtime'] = state['downtime'] / 1000
        times = []
        for listener in self._stopped, self._resumed:
            events = listener.clear()
            if events:
                stamp: Any = events[-1]['timestamp']
                times.append(stamp['seconds'] + stamp['microseconds'] / 1e6)
        if len(times) == 2:
            self.facts['paused'] = times
