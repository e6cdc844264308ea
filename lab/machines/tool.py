# SPDX-License-Identifier: GPL-2.0-or-later
"""
Runs of scripts/live-update, also with faults in it
"""
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from lab import ROOT

from .watch import wait_for

TOOL = str(ROOT / 'scripts/live-update')
PREFIX = '.live-update-'        # of the folders that exist during an update
LONGEST = 90                    # seconds that a run may take
# The keys of each kind of event, without those that all have.
KEYS = {'check': {'name', 'verdict', 'message'}, 'step': {'name', 'message'},
        'plan': {'command'}, 'result': {'status', 'message', 'exit'}}
RESULTS = {'updated': 0, 'possible': 0, 'refused': 1, 'failed': 2,
           'attention': 3}
Event = Dict[str, Any]
# live-update with a fault: argv[1] is the name of an event, and argv[2] is
# Python code that is executed after that event was written.
FAULTY = [sys.executable, '-c', '''
import os, resource, signal, sys, time
from qemu.live_update import cli, output
original, at, fault = output.Output._tell, *sys.argv[1:3]
def tell(self, event, *more):
    original(self, event, *more)
    if event.get('name') == at:
        exec(fault)
output.Output._tell = tell
sys.exit(cli.main(sys.argv[3:]))
''']
STOP = 'os.kill(os.getpid(), signal.SIGSTOP)'


class Outcome(NamedTuple):
    """The end of a run of live-update: exit status and all events."""
    status: int
    events: List[Event]

    @property
    def result(self) -> Event:
        """The last event."""
        return self.events[-1]

    @property
    def message(self) -> str:
        """The message of the result."""
        return str(self.result['message'])

    @property
    def reasons(self) -> str:
        """The message of the result, and all reasons of a refusal."""
        return self.message + ' '.join(
            event['message'] for event in self.events
            if event.get('verdict') == 'refused')

    def said(self, name: str) -> str:
        """The messages of the events with this name."""
        return ' '.join(event['message'] for event in self.events
                        if event.get('name') == name)


class Tool:
    """
    A process that runs live-update with --json.

    @param arguments: of live-update
    @param program: its command line, without arguments
    @param options: of subprocess.Popen
    """
    def __init__(self, arguments: Sequence[str],
                 program: Sequence[str] = (TOOL,), **options: Any) -> None:
        self.events: List[Event] = []
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            [*program, '--json', *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self._errors, text=True, **options)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def next(self) -> Optional[Event]:
        """Wait for an event; None: live-update has closed its output."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            return None
        self.events.append(json.loads(line))
        return self.events[-1]

    def wait_for(self, name: str) -> bool:
        """Wait for the event with a name; false: there was none."""
        while True:
            event = self.next()
            if not event or event.get('name') == name:
                return bool(event)

    def send(self, number: int) -> None:
        """Send live-update a signal."""
        self._process.send_signal(number)

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """A "with" block while the fault STOP stops it at an event."""
        assert self.wait_for(name), self.events
        stat = Path(f'/proc/{self.pid}/stat')
        wait_for('live-update stops', lambda: stat.read_text(
            'utf-8').rpartition(')')[2].split()[0] == 'T')
        yield
        self.send(signal.SIGCONT)

    def end(self, complaint: Optional[str] = '') -> Outcome:
        """
        Wait until live-update ends; its output must be as documented.

        @param complaint: text that it must have written to stderr; None: any
        """
        while self.next():
            pass
        status = self._process.wait(LONGEST)
        self.close(complaint)
        assert status >= 0, f'ended by signal {-status}'
        assert self.events, 'no output'
        for event in self.events:
            missing = {'event', 'time', *KEYS[event['event']]} - event.keys()
            assert not missing, f'{missing} not in {event}'
        result = self.events[-1]
        assert result['event'] == 'result', result
        assert result['exit'] == status == RESULTS[result['status']], result
        if result['status'] == 'updated' and any(
                event.get('name') == 'migrate' for event in self.events):
            missing = {'mode', 'old-pid', 'pid', 'downtime'} - result.keys()
            assert not missing, f'{missing} not in {result}'
        return Outcome(status, self.events)

    def end_early(self) -> Optional[Outcome]:
        """Wait until live-update ends; None: a signal ended it early."""
        if self.next():
            # Python's start-up code may report the signal, and continue.
            return self.end(complaint=None)
        status = self._process.wait(LONGEST)
        self.kill()
        assert status in (1, -signal.SIGINT), status
        return None

    def kill(self) -> None:
        """End live-update by SIGKILL."""
        self._stop()
        self._errors.close()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def close(self, complaint: Optional[str] = '') -> None:
        """End live-update; stderr must have the complaint, or be empty."""
        if self._errors.closed:
            return
        self._stop()
        with self._errors as file:
            file.seek(0)
            errors = file.read()
        if complaint is not None:
            assert complaint in errors if complaint else not errors, errors
