# SPDX-License-Identifier: GPL-2.0-or-later
"""
The time to create chardevs: by chardev-add, and at start-up
"""
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Dict, Iterator, List, Tuple

from .process import BenchError, Qemu
from .server import Server, SilentServer
from .stats import ARMS, Comparison, lower_quartile, shuffled

ADD_ROUNDS = 10         # for chardev-add, with new processes
ADDITIONS = 25          # of each kind in a round
BLOCKED = 3.0           # seconds after which QMP counts as blocked
SOCKETS = 64
MIN_STARTS = 16         # of each kind
MAX_SECONDS = 45.0      # for all kinds of start
PORTS_PER_BUS = 30      # virtio-serial has 31, and the first is a console

Backend = Dict[str, object]
NO_MACHINE = ('-machine', 'none')
NULL: Backend = {'type': 'null', 'data': {}}


class Blocked(BenchError):
    """QEMU does not answer; it can only be killed."""


def client(path: str) -> Backend:
    """A socket chardev that is a client of a server."""
    address = {'type': 'unix', 'data': {'path': path}}
    return {'type': 'socket', 'data': {'addr': address, 'server': False}}


def add_ms(qemu: Qemu, backend: Backend) -> float:
    """Create and remove a chardev."""
    seconds = qemu.time_command(BLOCKED, 'chardev-add', id='c',
                                backend=backend)
    if seconds is None:
        raise Blocked(f'chardev-add takes more than {BLOCKED:.0f} s')
    qemu.execute('chardev-remove', id='c')
    return seconds * 1000


def measure_answered(objs: Dict[str, Path]) -> Tuple[Comparison, Comparison]:
    """Return the ms of chardev-add for null and for a client of a server."""
    null, answered = Comparison(), Comparison()
    for _ in range(ADD_ROUNDS):
        times: Dict[str, List[Tuple[float, float]]] = {arm: [] for arm in ARMS}
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(Server(f'{folder}/server'))
            arms = {arm: stack.enter_context(Qemu(objs[arm], *NO_MACHINE))
                    for arm in shuffled()}
            for _ in range(ADDITIONS):
                for arm in shuffled():
                    times[arm].append((add_ms(arms[arm], NULL),
                                       add_ms(arms[arm], client(server.path))))
                    server.drop_clients()
        for column, comparison in enumerate((null, answered)):
            comparison.add({arm: median(t[column] for t in times[arm])
                            for arm in ARMS})
    return null, answered


def measure_silent(obj: Path) -> Tuple[List[float], List[float]]:
    """
    Return the ms of chardev-add for null, and for a client of a silent server.

    The second list is empty if QEMU did not answer within BLOCKED seconds.
    """
    null: List[float] = []
    silent: List[float] = []
    with tempfile.TemporaryDirectory() as folder, \
            SilentServer(f'{folder}/server') as server, \
            Qemu(obj, *NO_MACHINE) as qemu:
        try:
            for _ in range(ADD_ROUNDS * ADDITIONS):
                null.append(add_ms(qemu, NULL))
                silent.append(add_ms(qemu, client(server.path)))
        except Blocked:
            silent.clear()
        server.check()
    return null, silent


def with_ports(names: List[str]) -> Iterator[str]:
    """Arguments of a machine with a virtio-serial port for each chardev."""
    yield from ('-machine', 'q35,usb=off', '-accel', 'tcg', '-m', '64M', '-S')
    for number, name in enumerate(names):
        if number % PORTS_PER_BUS == 0:
            bus = f'serial{number // PORTS_PER_BUS}'
            yield from ('-device', f'virtio-serial-pci,id={bus}')
        yield from ('-device', f'virtserialport,bus={bus}.0,chardev={name}')


def start_ms(obj: Path, kind: str, attached: bool) -> float:
    """Start QEMU with SOCKETS chardevs, or none if there is no kind."""
    names = [f'c{number}' for number in range(SOCKETS)] if kind else []
    with tempfile.TemporaryDirectory() as folder, \
            Server(f'{folder}/server', backlog=SOCKETS) as server:
        options = {'clients': f'path={server.path}',
                   'servers': f'server=on,wait=off,path={server.path}-'}
        args = list(with_ports(names) if attached else NO_MACHINE)
        for name in names:
            suffix = name if kind == 'servers' else ''
            args += ['-chardev', f'socket,id={name},{options[kind]}{suffix}']
        with Qemu(obj, *args) as qemu:
            if len(qemu.execute('query-chardev')) < len(names):
                raise BenchError('QEMU lacks chardevs of its command line')
            return qemu.start_seconds * 1000


def measure_starts(objs: Dict[str, Path]) -> Dict[str, Comparison]:
    """
    Return the ms from exec to the first answer of QMP, by kind of start.

    Ratios are made of lower quartiles: other load on the machine can only make
    a start longer, so that the short ones depend most on QEMU.
    """
    kinds = {
        'no sockets': ('', False),
        f'{SOCKETS} clients': ('clients', False),
        f'{SOCKETS} servers': ('servers', False),
        'no sockets, q35': ('', True),
        f'{SOCKETS} clients with ports, q35': ('clients', True),
        f'{SOCKETS} servers with ports, q35': ('servers', True)}
    results = {name: Comparison(lower_quartile) for name in kinds}
    end = time.monotonic() + MAX_SECONDS
    rounds = 0
    while rounds < MIN_STARTS or time.monotonic() < end:
        for name, (kind, attached) in kinds.items():
            results[name].add({arm: start_ms(objs[arm], kind, attached)
                               for arm in shuffled()})
        rounds += 1
    return results
