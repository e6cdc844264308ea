# SPDX-License-Identifier: GPL-2.0-or-later
"""
Files, memory, connections and messages of a process, seen from outside

Tests of a back-end must not depend on its own answers: so the kernel is asked
for its connections, and strace for the messages that it receives.
"""
import os
import re
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Callable, List, Optional, Set, Type


def wait_for(what: str, condition: Callable[[], object],
             timeout: float = 30) -> None:
    """Wait until a condition is true; "what" names it in the error."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f'{what}: not within {timeout} s')
        time.sleep(0.01)


def count_fds(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f'/proc/{pid}/fd'))


def memory(pid: int, kind: str = 'RssAnon') -> int:
    """Bytes of a kind of memory of a process, as in /proc/PID/status."""
    with open(f'/proc/{pid}/status', encoding='utf-8') as status:
        found = re.search(rf'{kind}:\s+(\d+) kB', status.read())
    assert found
    return int(found[1]) * 1024


def connections(pid: int, path: str) -> Set[int]:
    """
    Inodes of the connections that a server has accepted at a UNIX path.

    A connection keeps its inode when its other end is passed to another
    process.  A new connection has another inode.
    """
    held = set()
    for name in os.listdir(f'/proc/{pid}/fd'):
        try:
            target = os.readlink(f'/proc/{pid}/fd/{name}')
        except FileNotFoundError:
            continue            # it has been closed
        found = re.fullmatch(r'socket:\[(\d+)\]', target)
        if found:
            held.add(int(found[1]))
    connected = '03'
    result = set()
    with open('/proc/net/unix', encoding='utf-8') as sockets:
        next(sockets)
        for line in sockets:
            words = line.split()
            if words[-1] == path and words[5] == connected:
                result.add(int(words[6]))
    return result & held


class Messages:
    """
    The vhost-user messages that a back-end receives in a "with" block.

    strace records them: only in the receiver it can be seen that there were
    none.  The numbers of the requests are known when the block has ended.

    @param pid: process id of the back-end
    @param folder: an existing folder for the trace
    """
    CLOSED = 0                  # in place of a request: end of connection

    # Both back-ends read the 12 bytes of a header with one recvmsg().
    _HEADER = re.compile(r'recvmsg\(.*iov_base=(?:"((?:\\x[0-9a-f]{2})*)"|0x'
                         r'[0-9a-f]+), iov_len=12\}.* = (0|12)$', re.M)

    def __init__(self, pid: int, folder: str) -> None:
        self._pid = pid
        self._trace = Path(folder, f'strace-{time.monotonic_ns()}')
        self._strace: Optional[subprocess.Popen[bytes]] = None

    def _attached(self) -> bool:
        assert self._strace
        if self._strace.poll() is not None:
            raise RuntimeError('strace cannot attach to the back-end')
        for task in Path(f'/proc/{self._pid}/task').iterdir():
            try:
                status = (task / 'status').read_text('utf-8')
            except OSError:
                continue        # the thread has ended
            if f'TracerPid:\t{self._strace.pid}\n' not in status:
                return False
        return True

    def __enter__(self) -> 'Messages':
        self._strace = subprocess.Popen(
            ['strace', '-qq', '-ff', '-o', str(self._trace), '-xx', '-s', '12',
             '-e', 'trace=recvmsg', '-e', 'signal=none',
             '-p', str(self._pid)],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for('strace attaches', self._attached)
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> None:
        if self._strace:
            self._strace.terminate()
            self._strace.wait(30)

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self._end()

    @property
    def requests(self) -> List[int]:
        """The numbers of the requests; those of a thread are in order."""
        requests = []
        for file in sorted(self._trace.parent.glob(f'{self._trace.name}.*')):
            for header, size in self._HEADER.findall(
                    file.read_text('ascii', 'replace')):
                requests.append(self.CLOSED if size == '0' else int.from_bytes(
                    bytes.fromhex(header.replace('\\x', ''))[:4], 'little'))
        return requests
