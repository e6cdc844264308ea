# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU's monitor (QMP), and what an update asks it
"""
import asyncio
import contextlib
import logging
import socket
from typing import Any, Dict, List, Optional, Set

from qemu.qmp import ExecuteError, QMPClient, QMPError

from .process import listener

ANSWER = 10             # seconds within which a monitor must answer
BEGIN = 60              # the same for a QEMU that begins, on a busy host
ATTEMPTS = 3
# The states of a migration that has begun and not ended.
UNDER_WAY = ('setup', 'active', 'device', 'cancelling', 'wait-unplug',
             'pre-switchover')


class MonitorError(Exception):
    """A monitor did not do as it was told; says why."""


def _may_pass(error: Optional[BaseException]) -> bool:
    """
    Could it be otherwise the next time?

    QEMU may end the connection of a client that comes in the moment in which
    another one leaves, or send an event before its first answer, which the
    library takes for an answer (AssertionError).
    """
    while error and not isinstance(error, (
            EOFError, BrokenPipeError, ConnectionResetError, AssertionError)):
        error = error.__cause__
    return error is not None


class Monitor:
    """
    A connection to a QEMU's monitor.

    @param name: which QEMU, for messages
    @param path: of the UNIX socket
    @param begins: is it a QEMU of ours, to whose monitor nobody else comes?
    """
    def __init__(self, name: str, path: str, begins: bool = False) -> None:
        self.name = name
        self.path = path
        self._begins = begins
        self.pid = 0
        self.qmp = self._client()

    def _client(self) -> QMPClient:
        client = QMPClient(self.name)
        # Errors reach the user as messages of ours.
        client.logger.setLevel(logging.CRITICAL)
        return client

    async def connect(self) -> None:
        """Connect; pid is then the process that listens there."""
        for _ in range(ATTEMPTS - 1):
            try:
                await self._connect()
                return
            except MonitorError as error:
                if not _may_pass(error):
                    raise
                self.qmp = self._client()
        await self._connect()

    async def _connect(self) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            await self._reach(client)
        except BaseException as error:
            client.close()
            if not isinstance(error, OSError):
                raise
            raise MonitorError(f"cannot connect to the monitor '{self.path}' "
                               f'of {self.name}: {error}') from error
        self.pid = listener(client)
        await self.use(client)

    async def _reach(self, client: socket.socket) -> None:
        """Connect a socket; a queue that is full may be so for a moment."""
        for _ in range(ANSWER * 100):
            with contextlib.suppress(BlockingIOError):
                client.connect(self.path)
                return
            await asyncio.sleep(0.01)
        client.connect(self.path)

    async def use(self, client: socket.socket) -> None:
        """Talk to a monitor over a socket that is connected to it."""
        client.setblocking(False)
        patience = BEGIN if self._begins else ANSWER
        try:
            await asyncio.wait_for(self.qmp.connect(client), patience)
        except asyncio.TimeoutError:
            raise MonitorError(
                f'the monitor of {self.name} does not answer within '
                f'{patience} s' + (
                    '; it serves one client at a time: end the other one, or '
                    'name a monitor that is free'
                    if self.path and not self._begins else '')) from None
        except (OSError, EOFError, QMPError) as error:
            raise MonitorError(f'the monitor of {self.name} does not speak '
                               f'QMP: {error}') from error

    async def close(self) -> None:
        """Let go of the monitor."""
        try:
            await self.qmp.disconnect()
        except (QMPError, EOFError, OSError):
            pass                # it has ended

    async def ask(self, command: str, **arguments: object) -> Any:
        """Have a command executed; '_' in names of arguments is '-'."""
        try:
            return await asyncio.wait_for(
                self.qmp.execute(command, {
                    name.replace('_', '-'): value
                    for name, value in arguments.items()}), ANSWER)
        except asyncio.TimeoutError:
            raise MonitorError(f"{self.name} does not answer '{command}' "
                               f'within {ANSWER} s') from None
        except ExecuteError as error:
            raise MonitorError(f'{error}') from error
        except (QMPError, EOFError, OSError) as error:
            raise MonitorError(f'{self.name} has ended') from error

    # What it is

    async def version(self) -> str:
        """The version of QEMU."""
        number = (await self.ask('query-version'))['qemu']
        return f'{number["major"]}.{number["minor"]}.{number["micro"]}'

    async def status(self) -> str:
        """The run state of the VM."""
        return str((await self.ask('query-status'))['status'])

    async def migration(self) -> Dict[str, Any]:
        """How migration stands."""
        answer: Dict[str, Any] = await self.ask('query-migrate')
        return answer

    async def capabilities(self) -> Dict[str, bool]:
        """The capabilities of migration that it knows, and their states."""
        return {item['capability']: item['state']
                for item in await self.ask('query-migrate-capabilities')}

    async def set_capabilities(self, **states: bool) -> None:
        """Set capabilities of migration."""
        await self.ask('migrate-set-capabilities', capabilities=[
            {'capability': name.replace('_', '-'), 'state': state}
            for name, state in states.items()])

    async def parameters(self) -> Dict[str, Any]:
        """The parameters of migration."""
        answer: Dict[str, Any] = await self.ask('query-migrate-parameters')
        return answer

    # The tree of its objects

    async def children(self, path: str) -> Dict[str, str]:
        """The types of an object's children, by their names."""
        return {item['name']: item['type'][len('child<'):-1]
                for item in await self.ask('qom-list', path=path)
                if item['type'].startswith('child<')}

    async def get(self, path: str, name: str) -> Any:
        """The value of an object's property; None: it cannot be read."""
        try:
            return await self.ask('qom-get', path=path, property=name)
        except MonitorError:
            return None

    async def properties(self, driver: str) -> Optional[Dict[str, Any]]:
        """The properties of a device type, with defaults; None: not known."""
        try:
            answer: List[Dict[str, Any]] = await self.ask(
                'device-list-properties', typename=driver)
        except MonitorError:
            return None
        return {item['name']: item for item in answer}

    async def chardevs(self) -> Dict[str, Dict[str, Any]]:
        """What is known of each chardev."""
        return {item['label']: item
                for item in await self.ask('query-chardev')}

    async def machine(self) -> str:
        """The type of the VM's machine."""
        name = str(await self.get('/machine', 'type'))
        return name[:-len('-machine')]

    async def machines(self) -> Set[str]:
        """The types of machines that it knows."""
        return {item['name'] for item in await self.ask('query-machines')}
