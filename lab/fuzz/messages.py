# SPDX-License-Identifier: GPL-2.0-or-later
"""
Recording of the messages between QEMU and a back-end
"""
import socket
import struct
from typing import List, NamedTuple

from lab.machines.relay import Relay

from .inputs import MAX_FILES, MAX_STREAM, Input, Kind, kind_of

# Of docs/interop/vhost-user.rst: request, flags, size
_HEADER = struct.Struct('<III')
_SET_MEM_TABLE, _ADD_MEM_REG = 5, 37


class _Message(NamedTuple):
    data: bytes
    fds: List[int]


class _Direction:
    """Splits the data of one direction into messages."""

    def __init__(self) -> None:
        self._data = b''
        self._fds: List[int] = []

    def _size(self) -> int:
        return int(_HEADER.unpack_from(self._data)[2]) + _HEADER.size

    def _take(self) -> _Message:
        size = self._size()
        message = _Message(self._data[:size], self._fds)
        self._data = self._data[size:]
        self._fds = []
        return message

    def add(self, data: bytes, fds: List[int]) -> List[_Message]:
        """Add data; returns the messages that are complete now."""
        messages = []
        self._data += data
        while len(self._data) >= _HEADER.size and \
                len(self._data) >= self._size():
            messages.append(self._take())
        # recvmsg() returns no data that was sent after the files.
        if self._data:
            self._fds += fds
        elif messages:
            messages[-1].fds.extend(fds)
        return messages


class MessageRelay(Relay):
    """
    A relay between QEMU and a back-end that records messages.

    It passes on each message separately: files must come with the header.
    """

    def __init__(self, path: str, target: str) -> None:
        self._sent = _Direction()
        self._answered = _Direction()
        self._stream = b''
        self._kinds: List[Kind] = []
        self._full = False
        super().__init__(path, target)

    def forward(self, dest: socket.socket, data: bytes,
                fds: List[int]) -> None:
        for message in self._sent.add(data, fds):
            self._note(message)
            super().forward(dest, *message)

    def answer(self, source: socket.socket, data: bytes,
               fds: List[int]) -> None:
        for message in self._answered.add(data, fds):
            self._note(message)
            super().answer(source, *message)

    def _note(self, message: _Message) -> None:
        request = _HEADER.unpack_from(message.data)[0]
        kinds = [kind_of(number) for number in message.fds]
        if request in (_SET_MEM_TABLE, _ADD_MEM_REG):
            kinds = [Kind.MEMORY] * len(kinds)
        record = bytes([len(kinds)]) + message.data
        self._full |= len(self._stream) + len(record) > MAX_STREAM or \
            len(self._kinds) + len(kinds) > MAX_FILES
        if not self._full:
            self._stream += record
            self._kinds += kinds

    def input(self) -> Input:
        """All messages so far, or the first that fit into an input."""
        return Input(self._stream, self._kinds)
