# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU process to be measured, and its QMP monitor

QMP is written and read directly, on a blocking socket: the event loop of
qemu.qmp would take as long as some of the commands that are timed.
"""
import json
import select
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Type

from lab import existing

TIMEOUT = 60        # seconds until a QEMU that does not answer counts as hung


class BenchError(Exception):
    """The reason, in a sentence, why nothing was measured."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f'gave up waiting until {what}')
        time.sleep(0.0001)


class Qemu:
    """
    A QEMU process; ends with the "with" block.

    The constructor returns when QEMU has answered its first command: then
    everything on the command line has been created.

    start_seconds: the time from exec until then

    @param obj: the folder where QEMU was built
    @param args: arguments for QEMU
    """

    def __init__(self, obj: Path, *args: str) -> None:
        self._program = str(existing(obj / 'qemu-system-x86_64',
                                     'run ./run bench'))
        self._log = tempfile.TemporaryFile()
        self._sock, theirs = socket.socketpair()
        self._replies = self._sock.makefile('rb')
        self.send('qmp_capabilities')
        command = [
            self._program, '-nodefaults', '-no-user-config',
            '-display', 'none',
            '-chardev', f'socket,id=qmp,fd={theirs.fileno()}',
            '-mon', 'chardev=qmp,mode=control', *args]
        start = time.perf_counter()
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=self._log, stderr=self._log)
        try:
            self._read()                # the greeting
            self._reply()
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.perf_counter() - start

    def idle_cpu_seconds(self) -> float:
        """
        Wait until QEMU sleeps; returns the CPU time that it has used.

        Only while a process sleeps, the kernel knows its CPU time exactly.
        """
        pid = self._process.pid
        stat = Path(f'/proc/{pid}/stat')
        wait_until(lambda: stat.read_text('utf-8').rpartition(') ')[2][0]
                   == 'S', 'QEMU has nothing to do')
        # The CPU-time clock of another process, see clock_getcpuclockid(3).
        return time.clock_gettime(~pid << 3 | 2)

    def send(self, command: str, **arguments: object) -> None:
        """Send a command; has_reply() must be called next."""
        message = {'execute': command, 'arguments': arguments}
        self._sock.sendall(json.dumps(message).encode())

    def has_reply(self, timeout: float) -> bool:
        """Wait for the reply to a command; false: there is none yet."""
        return bool(select.select([self._sock], [], [], timeout)[0])

    def execute(self, command: str, **arguments: object) -> Any:
        """Execute a command and return its result."""
        self.send(command, **arguments)
        return self._reply()

    def time_command(self, limit: float, command: str,
                     **arguments: object) -> Optional[float]:
        """
        Return the seconds that a command took; None: more than the limit.

        After None QEMU may be blocked, and can only be killed.
        """
        start = time.perf_counter()
        self.send(command, **arguments)
        if not self.has_reply(limit):
            return None
        self._reply()
        return time.perf_counter() - start

    def kill(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._sock.close()
        self._log.close()

    def _reply(self) -> Any:
        message = self._read()
        while 'event' in message:
            message = self._read()
        if 'error' in message:
            raise BenchError(f'QEMU says: {message["error"]["desc"]}')
        return message['return']

    def _read(self) -> Dict[str, Any]:
        self._sock.settimeout(TIMEOUT)
        try:
            line = self._replies.readline()
        except (TimeoutError, ConnectionResetError):
            line = b''
        if not line:
            self._log.seek(0)
            log = self._log.read().decode(errors='replace').strip()
            raise BenchError(f'{self._program} ended or hangs: {log}')
        message: Dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> 'Qemu':
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.kill()
