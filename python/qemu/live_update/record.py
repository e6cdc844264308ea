# SPDX-License-Identifier: GPL-2.0-or-later
"""
What an update looked like from the guest's disks, for a report
"""
import asyncio
import contextlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import report
from .error import Refused
from .memory import COPY
from .monitor import Monitor
from .output import Output
from .plan import Plan
from .rings import NotWatchable, Ring, Watch, find_rings, locate

BEFORE_AND_AFTER = 1.5      # seconds that are shown
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
    Watches the disks during an update, and writes a report of it.

    @param path: of the report
    @param output: what the user was told is in the report, too
    """
    def __init__(self, path: str, output: Output) -> None:
        self._path = path
        self._output = output
        self._watch: Optional[Watch] = None
        self._rings: List[Ring] = []
        self._copied = False
        self._begin = 0.0
        if not os.access(Path(path).absolute().parent, os.W_OK):
            raise Refused(f"cannot write the report '{path}': there is no "
                          'such folder, or it is not yours')
        try:
            # pylint: disable=import-outside-toplevel
            from . import picture
        except ImportError as error:
            raise Refused(f'a report needs {error.name}; install it (Debian: '
                          'python3-matplotlib), or do without --report'
                          ) from error
        self._draw = picture
        output.at_end = self._write

    async def begin(self, plan: Plan) -> None:
        """Begin to watch the VM's disks."""
        self._copied = plan.mode.name == COPY
        try:
            rings, left_out = await find_rings(plan.monitor.qmp)
            if not rings:
                raise NotWatchable('the guest uses no disk that can be '
                                   'watched')
            self._watch = Watch(plan.process.pid, rings)
        except NotWatchable as error:
            self._output.check('report', 'warning', f'no picture: {error}')
            return
        for device, why in left_out.items():
            self._output.check('report', 'warning',
                               f"'{device}' is not in the picture: {why}")
        self._watch.start()
        self._rings = rings
        await self._show()

    async def _show(self) -> None:
        self._begin = self._begin or time.time()
        await asyncio.sleep(BEFORE_AND_AFTER)

    async def expect(self, new: Monitor) -> None:
        """The VM is going to move: find where its rings will be."""
        if self._watch and self._copied:
            with contextlib.suppress(NotWatchable):
                self._rings = await locate(new.qmp, self._rings)

    def arrived(self, new: Monitor) -> None:
        """The VM runs in the new QEMU."""
        if self._watch and self._copied:
            # The picture is worth no update.
            with contextlib.suppress(NotWatchable, OSError):
                self._watch.move(new.pid, self._rings)

    async def end(self, facts: Dict[str, Any]) -> None:
        """Watch a little longer, and find out what the guest has seen."""
        if self._watch:
            await self._show()
            self._watch.stop()
            begin, end = facts.get('paused', (0, 0))
            if begin:
                facts['gap'] = self._watch.longest_gap(begin, end)
                facts['in-flight'] = self._watch.in_flight(begin)

    def _write(self, result: Dict[str, Any]) -> None:
        """Write the report; the result stands, also if that fails."""
        # Whoever draws may fail in ways that we do not know.
        # pylint: disable=broad-exception-caught
        try:
            report.write(self._path, self._report(result))
        except Exception as error:
            self._output.check('report', 'warning', 'it cannot be written to '
                               f"'{self._path}': {error}")

    def _report(self, result: Dict[str, Any]) -> report.Report:
        """What has happened, whatever that was."""
        end = time.time()
        picture = ''
        if self._watch:
            self._watch.stop()
            marks = []
            if 'paused' in result:
                stopped, resumed = result['paused']
                marks.append(self._draw.Mark(stopped, resumed, 'update'))
            picture = self._draw.svg(self._draw.draw([self._draw.Panel(
                "Latency of the guest's requests", 'each dot is one, at the '
                'time when the guest saw its end', self._watch.requests,
                marks, self._begin, end)]))
        return report.Report(
            'Live update of a VM', f'{result["status"]}: {result["message"]}',
            result['exit'] == 0,
            [(label, describe(result[name]))
             for name, (label, describe) in FACTS.items() if name in result],
            picture, f'{len(self._watch.requests) if self._watch else 0} '
            'requests of the guest over time',
            texts=[report.Text('Command', shlex.join(sys.argv))],
            steps=[report.Step(event['time'], event['name'], event['message'])
                   for event in self._output.events if 'name' in event])
