# SPDX-License-Identifier: GPL-2.0-or-later
"""
Injection of faults: by signals, resource limits, and in the stream
"""
import contextlib
import os
import re
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Callable, List, Optional

from lab.machines.backend import MEGABYTE
from lab.machines.relay import Relay

from .choices import STREAM, Fault
from .mortal_vm import MortalVM


class FaultyRelay(Relay):
    """
    A relay that injects a fault at a byte of the stream.

    @param kill: is called with "source" or "destination", and kills that QEMU
    """

    def __init__(self, path: str, target: str, fault: Fault,
                 kill: Callable[[str], object]) -> None:
        self._fault = fault
        self._kill = kill
        super().__init__(path, target, limit=fault.place)

    def _run(self) -> None:
        with contextlib.suppress(OSError):      # a QEMU may be gone
            super()._run()

    def _at_limit(self, source: socket.socket, dest: socket.socket) -> bool:
        self._limit = None
        return self._act(source, dest)

    def _act(self, source: socket.socket, dest: socket.socket) -> bool:
        kind = self._fault.kind
        if kind.startswith('kill-'):
            self._kill(kind.split('-')[1])
        elif kind == 'full-socket':
            time.sleep(self._fault.length)
        elif kind == 'corrupted-stream':
            return bool(self._carry(source, dest, self.forward, 1,
                                    1 << int(self._fault.amount * 8)))
        elif kind == 'truncated-stream':
            for sock in source, dest:
                sock.shutdown(socket.SHUT_RDWR)
            return False
        return True


def stream_fault(faults: List[Fault]) -> Optional[Fault]:
    """The fault, if there is one, that needs a relay."""
    return next((fault for fault in faults if fault.kind in STREAM), None)


class Schedule:
    """Functions that threads call at given times, counted from now."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self._threads: List[threading.Thread] = []
        self._errors: List[BaseException] = []

    def at(self, when: float, work: Callable[[], object]) -> None:
        """Have a function called after so many seconds."""
        def wait_and_work() -> None:
            self.sleep_until(when)
            try:
                work()
            except BaseException as error:  # pylint: disable=broad-except
                self._errors.append(error)

        self._threads.append(threading.Thread(target=wait_and_work))
        self._threads[-1].start()

    def sleep_until(self, when: float) -> None:
        """Sleep until so many seconds after the begin."""
        time.sleep(max(0.0, self.begin + when - time.monotonic()))

    def join(self) -> None:
        """Wait for all calls, and raise the first error of them."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def freeze(self, fault: Fault, send: Callable[[int], object]) -> None:
        """Stop a process by SIGSTOP for the length of the fault."""
        self.at(fault.when, lambda: send(signal.SIGSTOP))
        self.at(fault.when + fault.length, lambda: send(signal.SIGCONT))


def virtual_memory(pid: int) -> int:
    """The size of the address space of a process in bytes."""
    pages = Path(f'/proc/{pid}/statm').read_text('ascii').split()[0]
    return int(pages) * resource.getpagesize()


def highest_file(pid: int) -> int:
    """The highest file descriptor that a process has open."""
    return max(int(name) for name in os.listdir(f'/proc/{pid}/fd'))


class Limits:
    """Resource limits of a QEMU."""

    def __init__(self, vm: MortalVM) -> None:
        self._vm = vm

    def _set(self, kind: int, soft: int) -> None:
        pid = self._vm.get_pid()
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if pid:
                _, hard = resource.prlimit(pid, kind)
                resource.prlimit(pid, kind, (soft, hard))

    def apply(self, fault: Fault, room: int) -> None:
        """
        Limit the file descriptors or the address space.

        @param room: how many file descriptors a transfer needs
        """
        pid = self._vm.get_pid()
        if not pid:
            return
        self._vm.is_limited = True
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if fault.kind == 'fd-limit':
                self._set(resource.RLIMIT_NOFILE, highest_file(pid) + 1 +
                          int(fault.amount * room))
            else:
                self._set(resource.RLIMIT_AS, virtual_memory(pid) + int(
                    fault.amount ** 3 * 64 * MEGABYTE))

    def lift(self) -> None:
        """Remove all limits."""
        pid = self._vm.get_pid()
        for kind in resource.RLIMIT_NOFILE, resource.RLIMIT_AS:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    _, hard = resource.prlimit(pid, kind)
                    resource.prlimit(pid, kind, (hard, hard))


def uses_sanitizer(binary: str) -> bool:
    """Was QEMU built with ASan, which needs much address space?"""
    with open(binary, 'rb') as program:
        return bool(re.search(rb'__asan_init', program.read()))
