# SPDX-License-Identifier: GPL-2.0-or-later
"""
A relay between two QEMUs, which can stop a migration stream at any byte
"""
import contextlib
import os
import socket
import threading
from pathlib import Path
from select import select
from typing import Callable, List, Optional

Send = Callable[[socket.socket, bytes, List[int]], None]


def send(end: socket.socket, data: bytes, fds: List[int]) -> None:
    """Send data with file descriptors, and close those."""
    try:
        sent = socket.send_fds(end, [data], fds)
        end.sendall(data[sent:])
    finally:
        for number in fds:
            os.close(number)


class Relay:
    """
    A relay for one connection.

    path: of the socket to which the source connects
    stream: the last bytes that were sent to the destination
    passed: how many bytes were sent to the destination
    reached: is set when the stream has been stopped

    @param path: of the socket to which the source connects
    @param target: path of the socket of the destination
    @param limit: stop the stream after so many bytes
    @param swallow: read and drop the rest, so that the source does not block
    @param mute: do not pass on the answers of the destination
    """

    def __init__(self, path: str, target: str, limit: Optional[int] = None,
                 swallow: bool = False, mute: bool = False) -> None:
        self.path = path
        self.passed = 0
        self.stream = b''
        self.reached = threading.Event()
        self._target = target
        self._limit = limit
        self._swallow = swallow
        self._mute = mute
        self._listener = socket.socket(socket.AF_UNIX)
        Path(path).unlink(missing_ok=True)
        self._listener.bind(path)
        self._listener.listen(1)
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ready, _, _ = select([self._listener, self._woken], [], [])
        if self._woken in ready:
            return
        source, _ = self._listener.accept()
        with source, socket.socket(socket.AF_UNIX) as dest:
            dest.connect(self._target)
            open_ends = [source] if self._mute else [source, dest]
            while open_ends:
                ready, _, _ = select(open_ends + [self._woken], [], [])
                if self._woken in ready:
                    return
                for end in ready:
                    if not self._pass_on(end, source, dest):
                        open_ends.remove(end)

    def forward(self, dest: socket.socket, data: bytes,
                fds: List[int]) -> None:
        """Send data of the source to the destination."""
        send(dest, data, fds)

    def answer(self, source: socket.socket, data: bytes,
               fds: List[int]) -> None:
        """Send data of the destination to the source."""
        send(source, data, fds)

    def _pass_on(self, end: socket.socket, source: socket.socket,
                 dest: socket.socket) -> bool:
        """Pass on data of one end; false: read no more from that end."""
        if end is dest:
            return bool(self._carry(dest, source, self.answer))
        room = 65536
        if self._limit is not None:
            room = min(room, self._limit - self.passed)
        if not room:
            self.reached.set()
            return self._at_limit(source, dest)
        data = self._carry(source, dest, self.forward, room)
        self.passed += len(data)
        self.stream = self.stream[-500000:] + data
        return bool(data)

    def _at_limit(self, source: socket.socket, dest: socket.socket) -> bool:
        """The source has data beyond the limit; false: read no more of it."""
        # pylint: disable=unused-argument
        try:
            return self._swallow and bool(source.recv(65536))
        except OSError:
            return False        # the source has ended

    @staticmethod
    def _carry(end: socket.socket, other: socket.socket, send_on: Send,
               room: int = 65536, change: int = 0) -> bytes:
        """
        Pass on the available data; returns no data at the end of a connection.

        @param room: pass on so many bytes at most
        @param change: bits of the first byte to invert
        """
        try:
            data, fds, _, _ = socket.recv_fds(end, room, 64,
                                              socket.MSG_CMSG_CLOEXEC)
            if data:
                data = bytes([data[0] ^ change]) + data[1:]
                send_on(other, data, fds)
        except OSError:
            data = b''
        if not data:
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)
        return data

    def close(self) -> None:
        """Close all connections."""
        self._waker.close()
        self._thread.join()
        self._listener.close()
