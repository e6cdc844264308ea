# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU process that may end at any time, and what may be said of its end
"""
import os
import re
import signal
import threading
from typing import Any, Dict, Optional, Tuple

from qemu.machine.machine import QEMUMachineError
from qemu.qmp import ExecuteError, QMPError

from lab.machines.agent import GuestError
from lab.machines.chain import ENDS, TransferFailed
from lab.machines.vm import VM, VMLaunchFailure
from lab.machines.watch import wait_for

# What we get when a QEMU is killed under us
TROUBLE = (QMPError, QEMUMachineError, VMLaunchFailure, TransferFailed,
           GuestError, EOFError, OSError)
GONE = 'gone', 'gone'
WAITING = 'inmigrate', 'none'
CLAIMED = 'backend_transfer_claimed'    # the trace event
# No log may have this.
BAD = re.compile(
    r'AddressSanitizer|LeakSanitizer|runtime error:|Assertion .* failed|'
    r'assertion failed|double free|corrupted size|invalid pointer|'
    r'stack smashing|malloc\(\):|free\(\):')
# What the guest's kernel must not say
BAD_CONSOLE = re.compile(
    r'is not a head|I/O error|Kernel panic|BUG:|blocked for more than')
# How GLib, and we with it, ends a process if the host refuses something
NO_RESOURCES = re.compile(
    r'failed to allocate|Cannot allocate|Too many open files|Resource '
    r'temporarily unavailable|Unable to create|creating thread|out of memory',
    re.I)


class Machine(VM):
    """
    A QEMU that is looked at again when it has ended.

    is_limited: does the host refuse it files, or memory?
    """

    def __init__(self, *args: str, **options: Any) -> None:
        # A guest that is reset where it comes from boots where it arrives.
        super().__init__(*args, '-trace', CLAIMED, '-action', 'reboot=reset',
                         **options)
        self.is_limited = False
        self._answers = False       # its monitor
        self._launcher: Optional[int] = None
        self._started = threading.Event()
        self._signals = {0, 1}
        self._text = ''
        self._console = ''

    def launch(self) -> None:
        """Start it; with CPR, in a thread, which may take long."""
        self._launcher = threading.get_ident()
        try:
            super().launch()
            self._answers = True
        finally:
            self._launcher = None
            self._started.set()

    def signal(self, number: int) -> bool:
        """Send it a signal; false: it has ended."""
        pid = self.get_pid()
        if pid is None:
            return False
        if number == signal.SIGKILL:
            self._signals.add(-number)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def shutdown(self, hard: bool = False,
                 timeout: Optional[int] = 30) -> None:
        """End it, unless it has ended; keep what it has printed."""
        if self._launcher not in (None, threading.get_ident()):
            self.signal(signal.SIGKILL)
            self._started.wait(30)
        if not self._launched:
            return
        if self.console.exists():
            self._console = self.console.read_text('utf-8', 'replace')
        if hard:
            self._signals.add(-signal.SIGKILL)
        try:
            super().shutdown(hard or not self.is_running(), timeout)
        finally:
            self._text = self.get_log() or ''

    @property
    def text(self) -> str:
        """All that it has printed so far."""
        return self._text or (self.output() if self._launched else '')

    @property
    def has_claimed(self) -> bool:
        """Has it taken the VM from another one?"""
        return CLAIMED in self.text

    def logs(self) -> Dict[str, str]:
        """What is kept when something is wrong."""
        console = self._console
        if not console and self._launched and self.console.exists():
            console = self.console.read_text('utf-8', 'replace')
        return {'log': f'{" ".join(self._qemu_full_args)}\n\n{self.text}\n'
                       f'exit status: {self.exitcode()}\n',
                'console': console}

    def judge(self) -> None:
        """Nothing that it printed, or its end, may be wrong."""
        found = BAD.search(self.text)
        code = self.exitcode()
        refused = self.is_limited and NO_RESOURCES.search(self.text)
        if refused and code in (-signal.SIGABRT, -signal.SIGTRAP):
            return
        assert not found, f'QEMU printed {self.text[found.start():][:1000]}'
        assert code is None or code in self._signals, \
            f'QEMU ended with status {code}: {self.text[-1000:]}'
        found = BAD_CONSOLE.search(self.logs()['console'])
        assert not found, f'the guest says "{found.group()}"'

    def look(self) -> Tuple[str, str]:
        """The states of the VM and of its migration."""
        if self.is_running():
            if not self._answers:
                return WAITING
            try:
                run: Any = self.cmd('query-status')
                migration: Any = self.cmd('query-migrate')
                return str(run['status']), str(migration.get('status', ''))
            except TROUBLE:
                wait_for('QEMU, whose monitor is closed, ends',
                         lambda: not self.is_running())
        return GONE

    def can(self, command: str, **arguments: Any) -> bool:
        """Give a command; false: it was refused, or QEMU has ended."""
        try:
            self.cmd(command, **arguments)
        except ExecuteError:
            return False
        except TROUBLE:
            self.look()
            return False
        return True


def has_ended(state: Tuple[str, str]) -> bool:
    """Is nothing more to come from a migration?"""
    run, migration = state
    return state == GONE or migration in ENDS and run != 'finish-migrate'
