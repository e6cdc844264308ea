# SPDX-License-Identifier: GPL-2.0-or-later
"""
A relay between two QEMUs, which may stop a migration anywhere in its stream
"""
import os
import socket
import threading
from pathlib import Path
from select import select
from typing import Optional


class Relay:
    """
    Stands between the two QEMUs and may stop the stream anywhere.

    path: where the source connects to
    stream: the last of what the destination was sent
    passed: how many bytes that was in all
    reached: is set when the stream was stopped

    @param limit: stop the stream after so many bytes
    @param swallow: take the rest, so that the source does not block
    @param mute: stop what the destination answers
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

    def _pass_on(self, end: socket.socket, source: socket.socket,
                 dest: socket.socket) -> bool:
        """Carry over what there is; false: no more from this end."""
        room = 65536
        if end is source and self._limit is not None:
            room = min(room, self._limit - self.passed)
        if not room:
            self.reached.set()
            return self._swallow and bool(end.recv(65536))
        try:
            data, fds, _, _ = socket.recv_fds(end, room, 64)
            other = dest if end is source else source
            if not data:
                other.shutdown(socket.SHUT_WR)
                return False
            sent = socket.send_fds(other, [data], fds)
            other.sendall(data[sent:])
            for number in fds:
                os.close(number)
        except OSError:
            return False        # that QEMU is gone
        if end is source:
            self.passed += len(data)
            self.stream = self.stream[-500000:] + data
        return True

    def close(self) -> None:
        """Close all connections."""
        self._waker.close()
        self._thread.join()
        self._listener.close()
