# SPDX-License-Identifier: GPL-2.0-or-later
"""
Run the new binary without a VM, to find out what it supports
"""
import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
from types import TracebackType
from typing import Optional, Type

from .error import Refused
from .host.process import Process
from .monitor import Monitor, MonitorError


def die_with(parent: int) -> None:
    """Have the kernel kill this process if its parent is killed."""
    set_pdeathsig = 1
    ctypes.CDLL(None).prctl(set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent was killed before prctl() was called.
        os.kill(os.getpid(), signal.SIGKILL)


class Probe:
    """
    A QEMU with the machine "none", for an "async with" block.

    The block gets its monitor.

    @param binary: the program
    @param like: the process whose attributes it gets; see run_like()
    @param as_user: does it get the user and groups of that process, too?
    """
    def __init__(self, binary: str, like: Process, as_user: bool) -> None:
        self._binary = binary
        self._like = like
        self._as_user = as_user
        self._monitor = Monitor(binary, '')
        self._process: Optional['subprocess.Popen[bytes]'] = None

    async def __aenter__(self) -> Monitor:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = self._like.run_like(
                    [self._binary, '-machine', 'none', '-nodefaults',
                     '-no-user-config', '-display', 'none', '-chardev',
                     f'socket,id=qmp,fd={theirs.fileno()}',
                     '-mon', 'chardev=qmp,mode=control'],
                    self._as_user, pass_fds=[theirs.fileno()],
                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    last=functools.partial(die_with, os.getpid()))
            except BaseException:
                ours.close()
                raise
        try:
            await self._monitor.use(ours)
        except MonitorError as error:
            raise Refused(f"'{self._binary}' does not answer as a QEMU: "
                          f'{self._end() or error}') from error
        except BaseException:
            self._end()
            raise
        return self._monitor

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process
        return self._process.pid

    def _end(self) -> str:
        """Kill it; returns what it has printed."""
        assert self._process
        # The binary may be a script: kill the processes of its group, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.communicate()[1].decode(errors='replace').strip()

    async def __aexit__(self, exc_type: Optional[Type[BaseException]],
                        exc: Optional[BaseException],
                        traceback: Optional[TracebackType]) -> None:
        try:
            await self._monitor.close()
        finally:
            self._end()
