# SPDX-License-Identifier: GPL-2.0-or-later
"""
Talk to a guest: run shell commands in it, and collect its records

The first comment of lab/guest/init, which runs in the guest, describes the
protocol.  A Guest object outlives the QEMU that runs the guest: after a
migration, the ports of both QEMUs deliver to the same object, and the reply to
a command that was sent through one QEMU may arrive through the other.
"""
import base64
import itertools
import re
import socket
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional


class GuestError(Exception):
    """A command failed in the guest, or the guest does not answer."""


class Record(NamedTuple):
    """A line that the guest has written to the port "records"."""
    time: float             # time.monotonic() when the line arrived
    text: str


class Reply(NamedTuple):
    """The exit status and the output of a command."""
    status: int
    output: str


class Summary(NamedTuple):
    """The last line of blkverify."""
    written: int
    verified: int
    errors: int
    size: int               # bytes that were read back and verified
    seconds: float

    @classmethod
    def parse(cls, output: str) -> 'Summary':
        """Find the summary in the output of blkverify."""
        found = re.search(r'written (\d+), verified (\d+), errors (\d+), '
                          r'bytes (\d+), seconds ([\d.]+)', output)
        if not found:
            raise GuestError(f'blkverify failed: {output}')
        written, verified, errors, size = map(int, found.groups()[:4])
        return cls(written, verified, errors, size, float(found[5]))


def blkverify(device: str, *flags: str, **options: object) -> str:
    """
    Return the command that runs blkverify in the guest.

    It reports completions to the port "records", with the device's name.
    """
    words = ['exec', 'blkverify', '--report 3', f'--tag {device}', *flags]
    words += [f'--{name.replace("_", "-")} {value}'
              for name, value in options.items()]
    return ' '.join(words + [f'/dev/{device}'])


class Guest:
    """
    A guest, in whichever QEMU it runs.

    records: lines that the guest has written to the port "records"
    """

    def __init__(self) -> None:
        self.records: List[Record] = []
        self._replies: Dict[int, Reply] = {}
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._readers = 0
        self._agent: Optional[socket.socket] = None

    def add_ports(self, agent: socket.socket, records: socket.socket) -> None:
        """Read from the ports of a QEMU, in addition to earlier ports."""
        for sock, deliver in ((agent, self._add_reply),
                              (records, self._add_record)):
            self._readers += 1
            threading.Thread(target=self._read, args=(sock, deliver),
                             daemon=True).start()
        if not self._agent:
            self._agent = agent

    def moved_to(self, agent: socket.socket) -> None:
        """Send commands through this port from now on."""
        self._agent = agent

    def wait_booted(self, timeout: float = 120) -> None:
        """Wait until the guest has announced that it takes commands."""
        self.wait(0, timeout)

    def start(self, command: str) -> int:
        """Start a shell command; returns the number to wait() for."""
        number = next(self._ids)
        assert self._agent and '\n' not in command
        self._agent.sendall(f'{number} {command}\n'.encode())
        return number

    def wait(self, number: int, timeout: float = 60) -> Reply:
        """Wait for the reply to a command that start() has started."""
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._replies or not self._readers, timeout)
            if number in self._replies:
                return self._replies.pop(number)
        raise GuestError(
            f'no answer from the guest within {timeout} s'
            if self._readers else 'QEMU ended before the guest answered')

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a shell command, which must succeed; returns its output."""
        reply = self.wait(self.start(command), timeout)
        if reply.status:
            raise GuestError(f'"{command}" failed in the guest with status '
                             f'{reply.status}: {reply.output}')
        return reply.output

    def wait_until(self, condition: str, timeout: float = 60) -> None:
        """Wait until a shell command succeeds in the guest."""
        self.run(f'until {condition}; do usleep 10000; done', timeout)

    def verify(self, device: str, *flags: str, timeout: float = 120,
               **options: object) -> Summary:
        """Run blkverify to its end; it must have exit status 0."""
        return Summary.parse(
            self.run(blkverify(device, *flags, **options), timeout))

    def wait_records(self, count: int, timeout: float = 60) -> None:
        """Wait until as many more records have arrived."""
        with self._changed:
            wanted = len(self.records) + count
            self._changed.wait_for(
                lambda: len(self.records) >= wanted or not self._readers,
                timeout)
            if len(self.records) < wanted:
                raise GuestError(f'{len(self.records)} records of {wanted} '
                                 f'came from the guest within {timeout} s')

    def _add_reply(self, line: str) -> None:
        number, status, *output = line.split(' ')
        self._replies[int(number)] = Reply(
            int(status), base64.b64decode(''.join(output)).decode())

    def _add_record(self, line: str) -> None:
        self.records.append(Record(time.monotonic(), line))

    def _read(self, sock: socket.socket,
              deliver: Callable[[str], None]) -> None:
        """Deliver the lines of a port until QEMU closes it."""
        with sock, sock.makefile(errors='replace') as lines:
            try:
                for line in lines:
                    with self._changed:
                        deliver(line.rstrip('\n'))
                        self._changed.notify_all()
            except OSError:
                pass            # QEMU was killed
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()
