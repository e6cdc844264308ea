# SPDX-License-Identifier: GPL-2.0-or-later
"""
Throughput of a socket chardev, without a guest

Two filter-redirectors on an idle netdev forward packets from one chardev to
another, as fast as the main loop can.  To measure receiving, packets go from
a socket to a null chardev; to measure sending, from a pipe to a socket.

The required figure is bytes per second of wall time.  Bytes per second of the
CPU time of QEMU are also printed: other load on the machine disturbs these
less, but they differ by a tenth between processes.
"""
import fcntl
import os
import socket
import tempfile
import termios
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from .process import BenchError, Qemu, wait_until
from .server import Server
from .stats import ARMS, Comparison, shuffled

PACKET = (4092).to_bytes(4, 'big') + bytes(4092)    # net/net.c: length, data
BURST = PACKET * 10         # two of them fit into a UNIX socket
CHUNK = 100 * len(BURST)    # bytes of a measurement
CHUNKS = 24                 # measurements in each round, of each arm
PRECISION = 0.004           # stop when the error of the ratio is so small
MIN_ROUNDS = 8
MAX_SECONDS = 55.0         # in each direction

Transfer = Callable[[], None]
Starter = Callable[[Path, str, ExitStack], Tuple[Qemu, Transfer]]


def redirector(obj: Path, source: str, sink: str) -> Qemu:
    """Start a QEMU that forwards packets from a chardev to another."""
    flow = 'filter-redirector,netdev=net,queue=tx'
    return Qemu(obj, '-machine', 'none',
                '-netdev', 'user,id=net',
                '-netdev', 'hubport,id=port,hubid=0,netdev=net',
                '-chardev', f'{source},id=source',
                '-chardev', f'{sink},id=sink',
                '-object', f'{flow},id=in,indev=source',
                '-object', f'{flow},id=out,outdev=sink')


def unread(sock: socket.socket) -> int:
    """How many bytes the peer has not read."""
    return int.from_bytes(
        fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), 'little')


def receive_burst(sock: socket.socket, buffer: bytearray) -> None:
    """Wait until a whole burst has come."""
    left = len(BURST)
    while left:
        size = sock.recv_into(buffer, left)
        if not size:
            raise BenchError('QEMU ended while it was sending')
        left -= size


def receiving(obj: Path, folder: str,
              stack: ExitStack) -> Tuple[Qemu, Transfer]:
    """A QEMU, and a function that has it receive a chunk."""
    with Server(f'{folder}/receive') as server:
        qemu = stack.enter_context(
            redirector(obj, f'socket,path={server.path}', 'null'))
        sock = stack.enter_context(server.accept())

    def transfer() -> None:
        for _ in range(CHUNK // len(BURST)):
            sock.sendall(BURST)
        wait_until(lambda: not unread(sock), 'QEMU has read everything')

    return qemu, transfer


def sending(obj: Path, folder: str,
            stack: ExitStack) -> Tuple[Qemu, Transfer]:
    """A QEMU, and a function that has it send a chunk."""
    pipe = f'{folder}/pipe'
    os.mkfifo(pipe)
    with Server(f'{folder}/send') as server:
        qemu = stack.enter_context(
            redirector(obj, f'pipe,path={pipe}', f'socket,path={server.path}'))
        sock = stack.enter_context(server.accept())
    source = stack.enter_context(open(pipe, 'wb', buffering=0))
    os.unlink(pipe)
    buffer = bytearray(len(BURST))

    def transfer() -> None:
        # QEMU is busy if we are one burst ahead of it.  More could fill the
        # socket, and then QEMU would sleep.
        source.write(BURST)
        for _ in range(CHUNK // len(BURST) - 1):
            source.write(BURST)
            receive_burst(sock, buffer)
        receive_burst(sock, buffer)

    return qemu, transfer


def measure_round(launch: Starter,
                  objs: Dict[str, Path], folder: str,
                  cpu: Comparison, wall: Comparison) -> None:
    """Start a QEMU for each arm, measure in turn, and add the best rates."""
    times: Dict[str, List[Tuple[float, float]]] = {arm: [] for arm in ARMS}
    with ExitStack() as stack:
        arms = {arm: launch(objs[arm], folder, stack) for arm in shuffled()}
        for _, transfer in arms.values():
            transfer()
        for _ in range(CHUNKS):
            for arm in shuffled():
                qemu, transfer = arms[arm]
                cpu_start, start = qemu.idle_cpu_seconds(), time.perf_counter()
                transfer()
                end = time.perf_counter()
                times[arm].append((qemu.idle_cpu_seconds() - cpu_start,
                                   end - start))
    for column, comparison in enumerate((cpu, wall)):
        # The best chunk is the one with the least disturbance.
        comparison.add({arm: CHUNK / 1e6 / min(t[column] for t in times[arm])
                        for arm in ARMS})


def measure(launch: Starter,
            objs: Dict[str, Path]) -> Tuple[Comparison, Comparison]:
    """
    Return MB per second of CPU time and of wall time.

    @param launch: receiving or sending
    """
    cpu, wall = Comparison(), Comparison()
    end = time.monotonic() + MAX_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        while cpu.rounds() < MIN_ROUNDS or (
                time.monotonic() < end
                and max(cpu.ratio().error(), cpu.noise().error()) > PRECISION):
            measure_round(launch, objs, folder, cpu, wall)
    return cpu, wall
