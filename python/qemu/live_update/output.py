# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the user is told: lines of text, or a JSON object per line
"""
import contextlib
import io
import json
import os
import shlex
import sys
import textwrap
import time
from typing import Any, Callable, Dict, List

from .error import UpdateError

WIDTH = 80
COLOURS = {'ok': '32', 'warning': '33', 'refused': '31', 'updated': '1;32',
           'failed': '1;31', 'attention': '1;31', 'possible': '1;32'}


class Output:
    """
    Tells the user of each event, and remembers it.

    events: all of them, in order, as they are in JSON
    exit: the exit status that the result stands for
    at_end: is called with the result, before the user is told

    @param as_json: for programs
    """
    def __init__(self, as_json: bool) -> None:
        self.events: List[Dict[str, Any]] = []
        self.exit = 0
        self._json = as_json
        self._start = time.time()
        self._colours = False
        self.at_end: Callable[[Dict[str, Any]], None] = lambda result: None
        if sys.stdout:          # None: it was closed
            self._colours = sys.stdout.isatty()
            if isinstance(sys.stdout, io.TextIOWrapper):
                # Names of files may be no text.
                sys.stdout.reconfigure(errors='backslashreplace')

    def check(self, name: str, verdict: str, message: str) -> None:
        """Something was looked at: 'ok', 'warning' or 'refused'."""
        self._tell({'event': 'check', 'name': name, 'verdict': verdict,
                    'message': message},
                   f'{verdict:8}', f'{name}: {message}', verdict)

    def step(self, name: str, message: str) -> None:
        """Something was done."""
        self._tell({'event': 'step', 'name': name, 'message': message},
                   f'{time.time() - self._start:6.2f} s', message)

    def plan(self, command: List[str], text: str) -> None:
        """What would be done; the command starts the new QEMU."""
        self._tell({'event': 'plan', 'command': command, 'message': text},
                   'plan', text)
        if not self._json:
            # To be copied: an option a line.
            self._print('\n  ' + ''.join(
                (' \\\n    ' if word.startswith('-') else ' ' * bool(number)) +
                shlex.quote(word) for number, word in enumerate(command)) +
                '\n')

    def result(self, status: str, message: str, exit_status: int = 0,
               **more: object) -> None:
        """How it ended."""
        self.exit = exit_status
        result = {'event': 'result', 'status': status, 'message': message,
                  'exit': exit_status, **more}
        self.at_end(result)
        self._tell(result, f'{status:8}', message, status)

    def fail(self, error: UpdateError) -> None:
        """It ended other than well."""
        self.result(error.status, str(error), error.exit)

    def _tell(self, event: Dict[str, Any], head: str, text: str,
              colour: str = '') -> None:
        event['time'] = time.time()
        self.events.append(event)
        if self._json:
            line = json.dumps(event)
        else:
            # Words stay whole: they may be names of files to copy.
            line = textwrap.fill(
                text, WIDTH, initial_indent=f'{head:10}',
                subsequent_indent=' ' * 10, break_long_words=False,
                break_on_hyphens=False)
            if self._colours and colour in COLOURS:
                line = line.replace(
                    head, f'\033[{COLOURS[colour]}m{head}\033[0m', 1)
        self._print(line)

    @staticmethod
    def _print(text: str) -> None:
        """An update goes on, also if nobody reads what it says."""
        try:
            print(text, flush=True)
        except OSError:
            # Python would say at its end that it still cannot be written.
            with contextlib.suppress(OSError), open(os.devnull, 'wb') as null:
                os.dup2(null.fileno(), sys.stdout.fileno())
