# SPDX-License-Identifier: GPL-2.0-or-later
"""
Finds the parts of a migration stream that the fuzz targets load
"""
import socket
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from lab.machines.relay import Relay

from .inputs import Input, Kind, kind_of

# A subsection of hw/block/vhost-user-blk.c: a byte says that it is one, then
# come the length of its name, the name and its version.
_NAME = b'vhost-user-blk-backend/transfer'
_BEGIN = bytes([5, len(_NAME)]) + _NAME + struct.pack('>I', 1)
# The loader reads one byte more, to see whether a subsection follows.
_END = b'\0'

# Of vhost-user-transfer: sizes and features of the device, to be skipped
_OWN_FIELDS = struct.calcsize('>IIIQ')
# Of chardev-transfer: is_server, is_tn3270, telnet, num_fds
_CONNECTION = struct.Struct('>??BH')
# Of vhost-user-session, before its subsections
_COUNT = struct.Struct('>I')
# guest_addr, size, offset, then dev and ino, then name
_REGION = struct.Struct('>24s16s8s')
# running, what else is known, other fields, rewind, files
_RING = struct.Struct('>?6s16s32s?B')
# Its subsections: a byte says that it is one, then come the length of its
# name, the name and its version.
_SUBSECTION = struct.Struct('>BB')
_PREFIX = b'vhost-user-session/'
_VERSION = struct.Struct('>I')
# The fields of a subsection, and the number of its files
_VALUE = struct.Struct('>?Q')
_FIELDS = {b'no_inflight': (struct.Struct('>?'), 0),
           b'inflight': (struct.Struct('>QQHH'), 1),
           b'channel': (struct.Struct('>'), 1),
           b'config': (struct.Struct('>I256s'), 0)}

# The identities of guest memory in a target: see fuzz-vhost-user-session.c
_MEMORY_FILES = [b'guest-memory-of-', b'huest-memory-of-']
# Its options: a bit for each protocol feature; packed rings; started
_PROTOCOL_FEATURES = {15: 4, 12: 8, 5: 16, 16: 32}
_PACKED, _STARTED = 64, 128

# The chardevs in fuzz-char-transfer.c
_CLIENT, _CLIENT_INET, _SERVER, _SERVER_INET = 0, 1, 3, 4
_TELNET, _TN3270 = 7, 8


class StreamRelay(Relay):
    """A relay between two QEMUs that records the kinds of files."""

    def __init__(self, path: str, target: str) -> None:
        self.files: List[Tuple[int, Kind]] = []
        super().__init__(path, target)

    def forward(self, dest: socket.socket, data: bytes,
                fds: List[int]) -> None:
        # recvmsg() returns no data after the byte with which the files came.
        place = self.passed + len(data) - 1
        self.files += [(place, kind_of(number)) for number in fds]
        super().forward(dest, data, fds)


class Transfer(NamedTuple):
    """The parts of a disk in a stream."""
    connection: Input
    session: Input


class _Reader:
    """Reads parts of a stream, and the files that came with them."""

    def __init__(self, relay: StreamRelay, place: int) -> None:
        self._stream = relay.stream
        self._start = relay.passed - len(relay.stream)
        self._files = relay.files
        self.place = place

    def take(self, part: struct.Struct) -> Tuple[Any, ...]:
        """The fields of a part."""
        fields = part.unpack_from(self._stream, self.place)
        self.place += part.size
        return fields

    def subsection(self) -> bytes:
        """The name of a subsection of the session; empty if there is none."""
        begin = self.place
        is_one, length = self.take(_SUBSECTION)
        self.place += length
        name = self.since(begin + _SUBSECTION.size)
        if is_one != _BEGIN[0] or not name.startswith(_PREFIX):
            self.place = begin
            return b''
        self.take(_VERSION)
        return name[len(_PREFIX):]

    def skip_files(self, count: int) -> int:
        """Skip a byte for each file, and return how many."""
        self.place += count
        return count

    def since(self, place: int) -> bytes:
        """The data from a place to the current one."""
        return self._stream[place:self.place]

    def kinds_since(self, place: int) -> List[Kind]:
        """The kinds of the files from a place to the current one."""
        return [kind for where, kind in self._files
                if place <= where - self._start < self.place]


def _read_connection(reader: _Reader) -> Input:
    begin = reader.place
    is_server, is_tn3270, telnet, count = reader.take(_CONNECTION)
    reader.skip_files(count)
    kinds = reader.kinds_since(begin)
    assert len(kinds) == count
    if telnet:
        chardev = _TN3270 if is_tn3270 else _TELNET
    elif kinds[0] == Kind.INET_CONNECTION:
        chardev = _SERVER_INET if is_server else _CLIENT_INET
    else:
        chardev = _SERVER if is_server else _CLIENT
    return Input(reader.since(begin) + _END, kinds, chardev)


def _features(values: Dict[bytes, int]) -> int:
    """The features of the device, as options of the target."""
    protocol = values.get(b'protocol_features', 0)
    options = sum(option for bit, option in _PROTOCOL_FEATURES.items()
                  if protocol & 1 << bit)
    packed = values.get(b'features', 0) & 1 << 34
    return options | (_PACKED if packed else 0)


def _read_regions(reader: _Reader) -> Dict[bytes, bytes]:
    """Replacements for the identities of the files with guest memory."""
    count, = reader.take(_COUNT)
    identities: Dict[bytes, bytes] = {}
    for _ in range(count):
        _, identity, _ = reader.take(_REGION)
        identities.setdefault(
            identity, _MEMORY_FILES[len(identities) % len(_MEMORY_FILES)])
    return identities


def _read_rings(reader: _Reader) -> Tuple[int, int]:
    """Options for the number and the state of rings; the number of files."""
    rings, = reader.take(_COUNT)
    options = max(1, min(rings, 4)) - 1
    count = 0
    for _ in range(rings):
        running, _, _, _, _, files = reader.take(_RING)
        options |= _STARTED if running else 0
        count += reader.skip_files(files.bit_count())
    return options, count


def _read_subsections(reader: _Reader) -> Tuple[Dict[bytes, int], int]:
    """The values in subsections by name; the number of files."""
    values: Dict[bytes, int] = {}
    count = 0
    while name := reader.subsection():
        if name in _FIELDS:
            fields, files = _FIELDS[name]
            reader.take(fields)
            count += reader.skip_files(files)
        else:
            _, values[name] = reader.take(_VALUE)
    return values, count


def _read_session(reader: _Reader) -> Input:
    begin = reader.place
    identities = _read_regions(reader)
    options, count = _read_rings(reader)
    values, more = _read_subsections(reader)
    count += more
    kinds = reader.kinds_since(begin)
    assert len(kinds) == count
    stream = reader.since(begin)
    for identity, portable in identities.items():
        stream = stream.replace(identity, portable)
    return Input(stream + _END, kinds, options | _features(values))


def transfers(relay: StreamRelay) -> Iterator[Transfer]:
    """The parts of all disks in the stream that a relay has recorded."""
    place = relay.stream.find(_BEGIN)
    while place >= 0:
        reader = _Reader(relay, place + len(_BEGIN) + _OWN_FIELDS)
        yield Transfer(_read_connection(reader), _read_session(reader))
        place = relay.stream.find(_BEGIN, reader.place)
