# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the user is told: lines of text, or a JSON object a line
"""
import contextlib
import io
import json
import os
import shlex
import sys
import textwrap
import time
from typing import (
    Any,
    Callable,
    Dict,
    List,
)

from .error import UpdateError


WIDTH = 80
COLOURS = {'ok': '32', 'warning': '33', 'refused': '31', 'updated': '1;32',
           'failed': '1;31', 'attention': '1;31', 'possible': '1;32'}


class Output:
    """
    Prints each event of an update, and keeps it.

    events: all events, in order, as JSON objects
    exit: the exit status of the result
    at_end: is called with the result, before that is printed

    @param as_json: print JSON objects, for programs
    """
    def __init__(self, as_json: bool) -> None:
        self.events: List[Dict[str, Any]] = []
        self.exit = 0
        self._json = as_json
        self._start = time.time()
        self._colours = False
        self.at_end: Callable[[Dict[str, Any]], None] = lambda result: None
        if sys.stdout:          # None: live-update was started without it
            self._colours = sys.stdout.isatty()
            if isinstance(sys.stdout, io.TextIOWrapper):
                # The name of a file may be invalid in its encoding.
                sys.stdout.reconfigure(errors='backslashreplace')

    def check(self, name: str, verdict: str, message: str) -> None:
        """A check was done; its verdict is 'ok', 'warning' or 'refused'."""
        self._tell({'event': 'check', 'name': name, 'verdict': verdict,
                    'message': message},
                   f'{verdict:8}', f'{name}: {message}', verdict)

    def step(self, name: str, message: str) -> None:
        """A step of the update was done."""
        self._tell({'event': 'step', 'name': name, 'message': message},
                   f'{time.time() - self._start:6.2f} s', message)

    def plan(self, command: List[str], text: str) -> None:
        """What an update would do; the command starts the new QEMU."""
        self._tell({'event': 'plan', 'command': command, 'message': text},
                   'plan', text)
        if not self._json:
            # The user may copy it to a shell: an option a line.
            self._print('\n  ' + ''.join(
                (' \\\n    ' if word.startswith('-') else ' ' * bool(number)) +
                shlex.quote(word) for number, word in enumerate(command)) +
                '\n')

    def result(self, status: str, message: str, exit_status: int = 0,
               **more: object) -> None:
        """The update has ended."""
        self.exit = exit_status
        result = {'event': 'result', 'status': status, 'message': message,
                  'exit': exit_status, **more}
        self.at_end(result)
        self._tell(result, f'{status:8}', message, status)

    def fail(self, error: UpdateError) -> None:
        """The update has ended with an error."""
        self.result(error.status, str(error), error.exit)

    def _tell(self, event: Dict[str, Any], head: str, text: str,
              colour: str = '') -> None:
        event['time'] = time.time()
        self.events.append(event)
        if self._json:
            line = json.dumps(event)
        else:
            # Words stay whole, since the user may copy names of files.
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
        """Print a text; an update continues also if that fails."""
        try:
            print(text, flush=True)
        except OSError:
            # Otherwise Python would try to write the text again when it
            # exits, and complain.
            with contextlib.suppress(OSError), open(os.devnull, 'wb') as null:
                os.dup2(null.fileno(), sys.stdout.fileno())
