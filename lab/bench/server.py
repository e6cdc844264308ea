# SPDX-License-Identifier: GPL-2.0-or-later
"""
Servers for the chardevs to be measured, on UNIX sockets
"""
import os
import socket
from types import TracebackType
from typing import List, Optional, Self, Type

from .process import TIMEOUT, BenchError


class Server:
    """
    A server that answers: clients can connect, accept() takes them.

    @param path: where it listens until the end of the "with" block
    @param backlog: how many clients need not wait for accept()
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
        """Disconnect the clients that wait for accept()."""
        self._listener.settimeout(0)
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            self._listener.settimeout(TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self._listener.close()
        os.unlink(self.path)


class SilentServer(Server):
    """A server that does not answer: whoever connects to it waits."""

    def __init__(self, path: str) -> None:
        super().__init__(path, backlog=0)
        self._clients: List[socket.socket] = []
        while self._is_connectable():
            if len(self._clients) > 16:
                raise BenchError('this kernel has no limit for clients that '
                                 'wait: run the benchmark on Linux')

    def check(self) -> None:
        """Make sure that it still does not answer."""
        if self._is_connectable():
            raise BenchError('the server that must not answer has answered')

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
