# SPDX-License-Identifier: GPL-2.0-or-later
"""
UNIX socket servers, whose clients are the chardevs that are measured
"""
import os
import socket
from types import TracebackType
from typing import List, Optional, Type, TypeVar

from .process import TIMEOUT, BenchError

S = TypeVar('S', bound='Server')


class Server:
    """
    A server that accepts clients.

    @param path: of its socket until the end of the "with" block
    @param backlog: how many clients can connect before accept()
    """

    def __init__(self, path: str, backlog: int = 1) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(backlog)
        self._listener.settimeout(TIMEOUT)

    def accept(self) -> socket.socket:
        """Wait for a client."""
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT)
        return sock

    def drop_clients(self) -> None:
        """Disconnect clients that were not accepted yet."""
        self._listener.settimeout(0)
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            self._listener.settimeout(TIMEOUT)

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self._listener.close()
        os.unlink(self.path)


class SilentServer(Server):
    """A server with a full backlog: clients block in connect()."""

    def __init__(self, path: str) -> None:
        super().__init__(path, backlog=0)
        self._clients: List[socket.socket] = []
        while self._is_connectable():
            if len(self._clients) > 16:
                raise BenchError('this kernel does not limit the backlog of a '
                                 'socket: run the benchmark on Linux')

    def check(self) -> None:
        """Make sure that the backlog is still full."""
        if self._is_connectable():
            raise BenchError('the backlog of the silent server is not full')

    def _is_connectable(self) -> bool:
        """Would connect() return at once?"""
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        self._clients.append(client)
        try:
            client.connect(self.path)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        for client in self._clients:
            client.close()
        super().__exit__(exc_type, exc, traceback)
