#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""
Show a running guest that moves to new QEMUs while its disks notice nothing

The guest writes and verifies blocks all the time.  Each move takes it to a
new QEMU process, and its connections to the back-ends with it.  One move
begins and ends while a disk takes its time to answer.  Exits with a status
other than 0 if anything does not go as told.
"""
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Set

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from functional.disks import Disk, Load                         # noqa: E402
from functional.transfer import (COPY, CPR, IGNORE_SHARED,      # noqa: E402
                                 Line, TransferFailed)
from functional.transfer_case import TransferTest               # noqa: E402
from functional.watch import Messages, connections              # noqa: E402
from guest import STOCK_OBJ                                     # noqa: E402
from guest.agent import GuestError                              # noqa: E402
from guest.vm import VMLaunchFailure                            # noqa: E402
from qemu.qmp import QMPError                                   # noqa: E402
from rings import Rings                                         # noqa: E402

MEMORY = 256                    # MiB
OWN_RAM = 'memory-backend-memfd,share=on'
DEPTH = 64                      # requests in flight
LIMIT = 500                     # requests a second
LATENCY = 3                     # seconds
SLOW = ('driver=null-co,node-name=disk,size=16777216,read-zeroes=on,'
        f'latency-ns={LATENCY * 10 ** 9}')
READ = 'dd if=/dev/vdb of=/dev/null bs=4096 count=1 skip=99'
INFLIGHT = 'grep -q "^ *{} *0$" /sys/block/vdb/inflight'
ROW = '{:18} {:18} {:>6} {:>8} {:>8} {:>8} {:>7}'
HEADER = (
    ('', '   QEMU process', 'down-', 'longest', 'requests', 'messages',
     'connec-'),
    ('the guest moves', '    old -> new', 'time', 'I/O gap', 'in',
     'to back-', 'tion'),
    ('', '', '', '', 'flight', 'ends', ''))


class DemoError(Exception):
    """Something did not go as told."""


class Scene(TransferTest):
    """Where processes and files live that go away together."""


class Show:
    """
    A guest with two disks, and the QEMU that it is in.

    guest: to talk to
    load: what it does all the time
    """
    def __init__(self, scene: Scene) -> None:
        self._backends = scene.daemon('disk', limit=LIMIT), scene.daemon(
            'slow', SLOW)
        disks = map(Disk, self._backends, ('disk', 'slow'))
        self._folder = scene.path('')
        # For all modes alike, so that one guest can use one after the other.
        self._line = Line(scene, *disks, memory=f'{MEMORY}M',
                          args=('-machine', 'aux-ram-share=on'))
        self._vm = self._line.boot()
        self.guest = self._line.guest
        self.guest.wait_until(f'[ -b /dev/vdb ] && {INFLIGHT.format(0)}')
        self.load = Load(self.guest, depth=DEPTH)
        self._connections = self._connected()

    def _connected(self) -> Set[int]:
        return {inode for backend in self._backends
                for inode in connections(backend.pid, backend.path)}

    def stock(self) -> str:
        """What a stock QEMU does in place of the next one."""
        try:
            # Never let it near the RAM of a guest that runs.
            self._line.destination(obj=STOCK_OBJ, ram=OWN_RAM)
        except TransferFailed as error:
            return str(error)
        return 'it starts'

    @contextmanager
    def _messages(self) -> Iterator[Optional[List[Messages]]]:
        """Count messages, if this user may trace the back-ends."""
        with ExitStack() as stack:
            counted: Optional[List[Messages]] = []
            try:
                counted = [stack.enter_context(
                    Messages(backend.pid, self._folder))
                    for backend in self._backends]
            except (FileNotFoundError, RuntimeError):
                counted = None
            yield counted

    def _longest_gap(self, begin: int) -> float:
        """The longest time between two completions since a record, in ms."""
        times = [record.time for record in self.guest.records[begin:]]
        return 1000 * max(map(lambda a, b: b - a, times, times[1:]))

    def stay(self) -> None:
        """Print what is seen of a guest that does not move."""
        with self._messages():
            begin = len(self.guest.records)
            self.load.advance(LIMIT)
            gap = self._longest_gap(begin)
        row('(it stays)', '', '', f'{gap:.1f} ms', '', '', '')

    def move(self, title: str, mode: str, slow: bool = False) -> str:
        """
        Move to a new QEMU, print what is seen of it, end the old QEMU.

        @param slow: move during a read of the slow disk, and tell of it
        """
        source, self._line.mode = self._vm, mode
        # This may be left from how the guest came here.
        source.cmd('migrate-set-capabilities', capabilities=[
            {'capability': 'x-ignore-shared', 'state': False}])
        with self._messages() as messages:
            # Copied RAM must not be copied onto itself.
            dest = self._line.destination(
                **{'ram': OWN_RAM} if mode == COPY else {})
            with Rings(source, MEMORY, 'disk', 'slow') as rings:
                begin, started = len(self.guest.records), time.monotonic()
                if slow:
                    read = self.guest.start(READ)
                    self.guest.wait_until(INFLIGHT.format(1))
                self._line.send(source, dest)
                self._line.settle(source, dest)
                in_flight = rings.in_flight(dest.event_wait('RESUME'))
                dest.take_guest()
                moved = time.monotonic() - started
                self.load.advance()
            gap = self._longest_gap(begin)
        info: Any = source.cmd('query-migrate')
        received = None if messages is None else sum(
            len(counted.requests) for counted in messages)
        same = self._connected() == self._connections
        row(title, f'{source.get_pid():7} -> {dest.get_pid()}',
            f'{info["downtime"]} ms', f'{gap:.1f} ms', in_flight,
            '?' if received is None else received, 'same' if same else 'NEW')
        source.shutdown()
        self._vm = dest
        if not same or received and mode != COPY:
            raise DemoError('the back-ends noticed the move')
        return self._answer(read, started, moved) if slow else ''

    def _answer(self, read: int, started: float, moved: float) -> str:
        reply = self.guest.wait(read)
        done = time.monotonic() - started
        if reply.status or not moved < LATENCY <= done:
            raise DemoError(f'a read of {LATENCY} s: moved after {moved:.1f} '
                            f's, answered after {done:.1f} s: {reply.output}')
        return (f'the guest asked at 0 s, had moved at {moved:.1f} s, the old '
                f'QEMU ended,\nand the answer came at {done:.1f} s.')


def say(text: str, style: str = '') -> None:
    """Print a line; a terminal shows it in a style."""
    if style and sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        text = f'\033[{style}m{text}\033[0m'
    print(text, flush=True)


def row(*cells: object, style: str = '') -> None:
    """Print a row of the table."""
    say(ROW.format(*cells).rstrip(), style)


def main(scene: Scene) -> None:
    """The demo from begin to end"""
    say('A guest moves to new QEMUs, its disks stay with their back-ends', '1')
    say(f'Booting a guest with two vhost-user disks: one does {LIMIT} requests'
        f' a second, one\ntakes {LATENCY} s for each...')
    show = Show(scene)
    say(f'From now on it writes blocks and reads them back, {DEPTH} at a time.'
        '\n')
    if (STOCK_OBJ / 'qemu-system-x86_64').exists():
        say('Starting a stock QEMU for it to move to...')
        say(f'  {show.stock()}.')
    else:
        say('A stock QEMU for it to move to would hang at start-up; type '
            '"./run stock", and\nthis demo shows it.')
    say('With the series, a new QEMU waits to be given the connections:\n')
    for cells in HEADER:
        row(*cells, style='1')
    show.stay()
    show.move('live, shared file', IGNORE_SHARED)
    answer = show.move(f'live, {LATENCY} s read', IGNORE_SHARED, True)
    show.move('live, cpr-transfer', CPR)
    show.move('RAM is copied', COPY)
    result, = show.load.stop()
    say(f'\nThe {LATENCY} s read: {answer}')
    say('Live, the back-ends are told nothing, and go on with what is in '
        'flight. Where\nRAM is copied, they complete that first, and are told '
        'of the new RAM.')
    say('The gap is what the guest shows, by the clock of the host; a new '
        'QEMU also has\nto translate the code of the guest again (TCG).')
    say('')
    say(f'OK: 4 moves, {len(show.guest.records)} requests, '
        f'{result.verified} blocks verified, {result.errors} errors, same '
        'connections', '1;32')


def guarded_main() -> None:
    """The demo, with one line for what may go wrong"""
    # That a QEMU which hangs was killed is no news.
    logging.disable(logging.WARNING)
    scene = Scene()
    try:
        scene.setUp()
        main(scene)
    except VMLaunchFailure as failure:
        sys.exit(f'FAILED: QEMU does not start: {failure.output}')
    except (DemoError, TransferFailed, GuestError, QMPError, RuntimeError,
            TimeoutError, AssertionError) as error:
        sys.exit(f'FAILED: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        scene.doCleanups()


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    guarded_main()
