# SPDX-License-Identifier: GPL-2.0-or-later
"""
A connection to the QMP monitor of a process
"""
import asyncio
import contextlib
from typing import Any, Awaitable, Callable, TypeVar

from qemu.qmp import EventListener, QMPClient, QMPError

PATIENCE = 30                   # seconds until a command counts as hanging
T = TypeVar('T')


class Monitor:
    """
    A connection to a monitor, for a "with" block.

    @param path: of the UNIX socket on which the monitor listens
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._qmp = QMPClient()
        self._events = EventListener()
        self._qmp.register_listener(self._events)
        self._loop = asyncio.new_event_loop()

    def do(self, work: Callable[[QMPClient], Awaitable[T]]) -> T:
        """Run a coroutine function that takes a QMPClient."""
        return self._loop.run_until_complete(
            asyncio.wait_for(work(self._qmp), PATIENCE))

    def cmd(self, name: str, **arguments: object) -> Any:
        """Execute a command; "_" in names of arguments stands for "-"."""
        return self.do(lambda qmp: qmp.execute(
            name, {k.replace('_', '-'): v for k, v in arguments.items()}))

    def wait(self, event: str) -> float:
        """Wait for an event and return its timestamp in seconds."""
        async def find() -> float:
            async for message in self._events:
                if message['event'] == event:
                    stamp: Any = message['timestamp']
                    break
            return float(stamp['seconds'] + stamp['microseconds'] / 1e6)

        return self.do(lambda _: find())

    def __enter__(self) -> 'Monitor':
        try:
            self.do(lambda qmp: qmp.connect(self._path))
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The process may have ended.
        with contextlib.suppress(QMPError, EOFError, OSError):
            self.do(lambda qmp: qmp.disconnect())
        self._loop.close()
