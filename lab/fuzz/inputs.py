# SPDX-License-Identifier: GPL-2.0-or-later
"""
The file format of the inputs: see tests/unit/fuzz-target.h
"""
import os
import socket
import stat
import struct
from enum import IntEnum
from typing import NamedTuple, Sequence

# Of tests/unit/fuzz-target.h
MAX_FILES = 255
MAX_STREAM = 0x8000


class Kind(IntEnum):
    """Kinds of files that QEMU sends, of tests/unit/fuzz-files.h."""
    EVENTFD = 0
    INFLIGHT = 1
    MEMORY = 4
    CONNECTION = 9
    LISTENER = 10
    INET_CONNECTION = 11
    INET_LISTENER = 12


def _kind_of_socket(number: int) -> Kind:
    with socket.socket(fileno=os.dup(number)) as end:
        inet = end.family != socket.AF_UNIX
        if end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return Kind.INET_LISTENER if inet else Kind.LISTENER
        return Kind.INET_CONNECTION if inet else Kind.CONNECTION


def kind_of(number: int) -> Kind:
    """
    The kind of a file descriptor.

    A file with guest memory counts as an inflight region, from which it does
    not differ.
    """
    mode = os.fstat(number).st_mode
    if stat.S_ISSOCK(mode):
        return _kind_of_socket(number)
    return Kind.INFLIGHT if stat.S_ISREG(mode) else Kind.EVENTFD


class Input(NamedTuple):
    """A stream, the kinds of its files, and the options of the target."""
    stream: bytes
    kinds: Sequence[Kind]
    options: int = 0

    def to_bytes(self) -> bytes:
        """The contents of the file."""
        assert len(self.kinds) <= MAX_FILES
        assert 0 < len(self.stream) <= MAX_STREAM
        return struct.pack('>BHB', len(self.kinds), len(self.stream),
                           self.options) + bytes(self.kinds) + self.stream
