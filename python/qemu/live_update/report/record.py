# SPDX-License-Identifier: GPL-2.0-or-later
"""
Watch the requests of the guest's disks during an update, for a report
"""
import asyncio
import contextlib
import os
from pathlib import Path
import shlex
import sys
import time
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Optional,
    Tuple,
)

from . import html
from ..error import Refused
from ..monitor import Monitor
from ..output import Output
from .rings import (
    NotWatchable,
    Ring,
    Watch,
    find_rings,
    locate,
)


BEFORE_AND_AFTER = 1.5      # seconds that the picture shows, each
# What the report has of an update's facts: a label and a text for each.
FACTS: Dict[str, Tuple[str, Callable[[Any], str]]] = {
    'old-pid': ('old QEMU', 'process {}'.format),
    'pid': ('new QEMU', 'process {}'.format),
    'mode': ('memory', str),
    'downtime': ('downtime', lambda seconds: f'{seconds * 1000:.0f} ms'),
    'gap': ("longest gap in the guest's I/O",
            lambda seconds: f'{seconds * 1000:.0f} ms'),
    'in-flight': ('requests in flight when the VM was paused', str),
}


class Record:
    """
    Watches the guest's disks during an update, and writes a report of it.

    @param path: the HTML file
    @param output: its events are in the report; calls it at the end
    """
    def __init__(self, path: str, output: Output) -> None:
        self._path = path
        self._output = output
        self._watch: Optional[Watch] = None
        self._rings: List[Ring] = []
        self._is_copied = False
        self._begin = 0.0
        if not os.access(Path(path).absolute().parent, os.W_OK):
            raise Refused(f"cannot write the report '{path}': its folder "
                          'does not exist, or this user may not write there')
        try:
            # pylint: disable=import-outside-toplevel
            from . import picture
        except ImportError as error:
            raise Refused(f'a report needs {error.name}; install it (Debian: '
                          'python3-matplotlib), or do without --report'
                          ) from error
        self._picture = picture
        output.at_end = self._write

    async def begin(self, old: Monitor, is_copied: bool) -> None:
        """
        Begin to watch the VM's disks.

        @param old: of the QEMU that runs the VM
        @param is_copied: will the update copy guest memory?
        """
        self._is_copied = is_copied
        try:
            rings, left_out = await find_rings(old.qmp)
            if not rings:
                raise NotWatchable('the guest uses no disk that can be '
                                   'watched')
            self._watch = Watch(old.pid, rings)
        except NotWatchable as error:
            self._output.check('report', 'warning', f'no picture: {error}')
            return
        for device, why in left_out.items():
            self._output.check('report', 'warning',
                               f"'{device}' is not in the picture: {why}")
        self._watch.start()
        self._rings = rings
        self._begin = time.time()
        await asyncio.sleep(BEFORE_AND_AFTER)

    async def expect(self, new: Monitor) -> None:
        """Before the VM moves: find where its rings will be."""
        if self._watch and self._is_copied:
            with contextlib.suppress(NotWatchable):
                self._rings = await locate(new.qmp, self._rings)

    def arrived(self, new: Monitor) -> None:
        """When the new QEMU has the VM: watch its rings there."""
        if self._watch and self._is_copied:
            # An update does not fail because the picture does.
            with contextlib.suppress(NotWatchable, OSError):
                self._watch.move(new.pid, self._rings)

    async def end(self, facts: Dict[str, Any]) -> None:
        """Watch a little longer; adds what the guest saw to the facts."""
        if self._watch:
            await asyncio.sleep(BEFORE_AND_AFTER)
            self._watch.stop()
            begin, end = facts.get('paused', (0, 0))
            if begin:
                facts['gap'] = self._watch.longest_gap(begin, end)
                facts['in-flight'] = self._watch.in_flight(begin)

    def _write(self, result: Dict[str, Any]) -> None:
        """Write the report; a failure is a warning, not another result."""
        # matplotlib may raise any exception.
        # pylint: disable=broad-exception-caught
        try:
            html.write(self._path, self._report(result))
        except Exception as error:
            self._output.check('report', 'warning', 'the report cannot be '
                               f"written to '{self._path}': {error}")

    def _report(self, result: Dict[str, Any]) -> html.Report:
        """What has happened, also if the update has failed."""
        end = time.time()
        picture = ''
        if self._watch:
            self._watch.stop()
            marks = []
            if 'paused' in result:
                stopped, resumed = result['paused']
                marks.append(self._picture.Mark(stopped, resumed, 'update'))
            picture = self._picture.svg(
                self._picture.draw([self._picture.Panel(
                    "Latency of the guest's requests", 'a dot is a request, '
                    'at the time when the guest saw its completion',
                    self._watch.requests, marks, self._begin, end)]))
        return html.Report(
            'Live update of a VM', f'{result["status"]}: {result["message"]}',
            result['exit'] == 0,
            [(label, describe(result[name]))
             for name, (label, describe) in FACTS.items() if name in result],
            picture, f'{len(self._watch.requests) if self._watch else 0} '
            'requests of the guest over time',
            texts=[html.Text('Command', shlex.join(sys.argv))],
            steps=[html.Step(event['time'], event['name'], event['message'])
                   for event in self._output.events if 'name' in event])
