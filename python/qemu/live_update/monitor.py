# SPDX-License-Identifier: GPL-2.0-or-later
"""
A connection to the monitor (QMP) of a QEMU, and the commands of an update
"""
import asyncio
import contextlib
import logging
import socket
from typing import (
    Any,
    Dict,
    List,
    Optional,
    Set,
)

from qemu.qmp import ExecuteError, QMPClient, QMPError

from .host.process import pid_of_server
from .waiting import until


ANSWER = 10             # seconds within which a monitor must answer
BEGIN = 60              # for the first answer of a QEMU that has just started
ATTEMPTS = 3            # to connect


class MonitorError(Exception):
    """A command of a monitor failed; the text says why."""


def _is_transient(error: Optional[BaseException]) -> bool:
    """
    May another attempt to connect succeed?

    QEMU may close the connection of a client that connects while another
    client disconnects.  It may also send an event before its first answer;
    then qemu.qmp raises AssertionError, since it expects an answer.
    """
    while error and not isinstance(error, (
            EOFError, BrokenPipeError, ConnectionResetError, AssertionError)):
        error = error.__cause__
    return error is not None


class Monitor:
    """
    A connection to the monitor of a QEMU.

    pid: the QEMU process; 0 before connect()

    @param name: which QEMU, for messages
    @param path: of the UNIX socket
    @param is_new: has live-update just started that QEMU?  It may take longer
                   to answer, and has no other client.
    """
    def __init__(self, name: str, path: str, is_new: bool = False) -> None:
        self.name = name
        self.path = path
        self._is_new = is_new
        self.pid = 0
        self.qmp = self._client()

    def _client(self) -> QMPClient:
        client = QMPClient(self.name)
        # The user sees errors as messages of live-update.
        client.logger.setLevel(logging.CRITICAL)
        return client

    async def connect(self) -> None:
        """Connect, and find out the pid."""
        for _ in range(ATTEMPTS - 1):
            try:
                await self._connect()
                return
            except MonitorError as error:
                if not _is_transient(error):
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
        self.pid = pid_of_server(client)
        await self.use(client)

    async def _reach(self, client: socket.socket) -> None:
        """Connect a socket, when the queue of the server has room for it."""
        async def is_connected() -> bool:
            with contextlib.suppress(BlockingIOError):
                client.connect(self.path)
                return True
            return False

        if not await until(is_connected, ANSWER):
            client.connect(self.path)

    async def use(self, client: socket.socket) -> None:
        """Begin a QMP session on a socket that is connected to a monitor."""
        client.setblocking(False)
        timeout = BEGIN if self._is_new else ANSWER
        try:
            await asyncio.wait_for(self.qmp.connect(client), timeout)
        except asyncio.TimeoutError:
            raise MonitorError(
                f'the monitor of {self.name} does not answer within '
                f'{timeout} s' + (
                    '; it serves one client at a time: end the other client, '
                    'or name another monitor'
                    if self.path and not self._is_new else '')) from None
        except (OSError, EOFError, QMPError) as error:
            raise MonitorError(f'the monitor of {self.name} does not speak '
                               f'QMP: {error}') from error

    async def close(self) -> None:
        """Disconnect."""
        try:
            await self.qmp.disconnect()
        except (QMPError, EOFError, OSError):
            pass                # QEMU has ended

    async def ask(self, command: str, **arguments: object) -> Any:
        """Execute a command; "_" in the names of arguments means "-"."""
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

    async def arguments(self, command: str) -> Set[str]:
        """The names of the arguments of a command, by QEMU's schema."""
        types = {item['name']: item
                 for item in await self.ask('query-qmp-schema')}
        members = types[types[command]['arg-type']].get('members', [])
        return {member['name'] for member in members}

    # The VM and its migration

    async def version(self) -> str:
        """The version of QEMU."""
        number = (await self.ask('query-version'))['qemu']
        return f'{number["major"]}.{number["minor"]}.{number["micro"]}'

    async def status(self) -> str:
        """The run state of the VM."""
        return str((await self.ask('query-status'))['status'])

    async def migration(self) -> Dict[str, Any]:
        """The state of migration (query-migrate)."""
        answer: Dict[str, Any] = await self.ask('query-migrate')
        return answer

    async def capabilities(self) -> Dict[str, bool]:
        """The capabilities of migration, and whether they are on."""
        return {item['capability']: item['state']
                for item in await self.ask('query-migrate-capabilities')}

    async def set_capabilities(self, **states: bool) -> None:
        """Switch capabilities of migration on or off."""
        await self.ask('migrate-set-capabilities', capabilities=[
            {'capability': name.replace('_', '-'), 'state': state}
            for name, state in states.items()])

    async def parameters(self) -> Dict[str, Any]:
        """The parameters of migration."""
        answer: Dict[str, Any] = await self.ask('query-migrate-parameters')
        return answer

    # The tree of QOM objects

    async def children(self, path: str) -> Dict[str, str]:
        """The types of the children of an object, by their names."""
        return {item['name']: item['type'][len('child<'):-1]
                for item in await self.ask('qom-list', path=path)
                if item['type'].startswith('child<')}

    async def get(self, path: str, name: str) -> Any:
        """The value of a property of an object; None: it cannot be read."""
        try:
            return await self.ask('qom-get', path=path, property=name)
        except MonitorError:
            return None

    async def properties(self, driver: str) -> Optional[Dict[str, Any]]:
        """The properties of a device type; None: QEMU lacks the type."""
        try:
            answer: List[Dict[str, Any]] = await self.ask(
                'device-list-properties', typename=driver)
        except MonitorError:
            return None
        return {item['name']: item for item in answer}

    async def chardevs(self) -> Dict[str, Dict[str, Any]]:
        """The state of each chardev (query-chardev), by its name."""
        return {item['label']: item
                for item in await self.ask('query-chardev')}

    async def machine(self) -> str:
        """The machine type of the VM, with its version."""
        name = str(await self.get('/machine', 'type'))
        return name[:-len('-machine')]

    async def machines(self) -> Set[str]:
        """The machine types that QEMU knows."""
        return {item['name'] for item in await self.ask('query-machines')}
