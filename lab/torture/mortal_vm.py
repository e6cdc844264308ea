# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU process that may be killed at any time, and the rules for its end
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

# Exceptions that a killed QEMU causes
TROUBLE = (QMPError, QEMUMachineError, VMLaunchFailure, TransferFailed,
           GuestError, EOFError, OSError)
GONE = 'gone', 'gone'
WAITING = 'inmigrate', 'none'
CLAIMED = 'backend_transfer_claimed'    # the trace event
# Output of QEMU or a back-end that is a failure of the round
BAD = re.compile(
    r'AddressSanitizer|LeakSanitizer|runtime error:|Assertion .* failed|'
    r'assertion failed|double free|corrupted size|invalid pointer|'
    r'stack smashing|malloc\(\):|free\(\):')
# Output of the guest's kernel that is a failure of the round
BAD_CONSOLE = re.compile(
    r'is not a head|I/O error|Kernel panic|BUG:|blocked for more than')
# Output before GLib or QEMU aborts because of a resource limit
NO_RESOURCES = re.compile(
    r'failed to allocate|Cannot allocate|Too many open files|Resource '
    r'temporarily unavailable|Unable to create|creating thread|out of memory',
    re.I)


class MortalVM(VM):
    """
    A QEMU whose output is examined when it has ended.

    is_limited: was a resource limit set?
    """

    def __init__(self, *args: str, **options: Any) -> None:
        # If the source was reset, the guest boots in the destination.
        super().__init__(*args, '-trace', CLAIMED, '-action', 'reboot=reset',
                         **options)
        self.is_limited = False
        self._answers = False       # does the monitor answer?
        self._launcher: Optional[int] = None
        self._started = threading.Event()
        self._signals = {0, 1}
        self._text = ''
        self._console = ''

    def launch(self) -> None:
        """Start QEMU; with CPR, this returns only when a migration begins."""
        self._launcher = threading.get_ident()
        try:
            super().launch()
            self._answers = True
        finally:
            self._launcher = None
            self._started.set()

    def signal(self, number: int) -> bool:
        """Send QEMU a signal; false: it has ended."""
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
        """End QEMU if it still runs; keep its output."""
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
        """The output of QEMU so far."""
        return self._text or (self.output() if self._launched else '')

    @property
    def has_claimed(self) -> bool:
        """Has this QEMU taken over the VM of another QEMU?"""
        return CLAIMED in self.text

    def logs(self) -> Dict[str, str]:
        """Texts to keep as evidence, by name."""
        console = self._console
        if not console and self._launched and self.console.exists():
            console = self.console.read_text('utf-8', 'replace')
        return {'log': f'{" ".join(self._qemu_full_args)}\n\n{self.text}\n'
                       f'exit status: {self.exitcode()}\n',
                'console': console}

    def judge(self) -> None:
        """The output and the exit status must be good."""
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
        """The run state of the VM, and the status of its migration."""
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
        """Execute a command; false: it failed, or QEMU has ended."""
        try:
            self.cmd(command, **arguments)
        except ExecuteError:
            return False
        except TROUBLE:
            self.look()
            return False
        return True


def has_ended(state: Tuple[str, str]) -> bool:
    """Has the migration ended, or QEMU?"""
    run, migration = state
    return state == GONE or migration in ENDS and run != 'finish-migrate'
