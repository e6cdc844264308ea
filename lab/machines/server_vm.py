# SPDX-License-Identifier: GPL-2.0-or-later
"""
A VM that is started as on a server: a daemon that is reached by its sockets

Whoever starts it may be gone; who has its folder finds it again.
"""
import asyncio
import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Awaitable, Callable, List, Optional, Sequence, TypeVar

from qemu.live_update.process import Process
from qemu.qmp import EventListener, QMPClient, QMPError

from lab import IMAGE, OBJ, existing

from .agent import Guest

PATIENCE = 30                   # seconds; nothing here takes so long
MEMORY = '256M'
SLOT = 'slot0'                  # the PCI bus of the second disk
PORTS = 'agent', 'records'
T = TypeVar('T')


class Monitor:
    """A connection to a QEMU's monitor, for a "with" block."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._qmp = QMPClient()
        self._events = EventListener()
        self._qmp.register_listener(self._events)
        self._loop = asyncio.new_event_loop()

    def do(self, work: Callable[[QMPClient], Awaitable[T]]) -> T:
        """Do something that takes a QMPClient."""
        return self._loop.run_until_complete(
            asyncio.wait_for(work(self._qmp), PATIENCE))

    def cmd(self, name: str, **arguments: object) -> Any:
        """Have a command carried out."""
        return self.do(lambda qmp: qmp.execute(
            name, {k.replace('_', '-'): v for k, v in arguments.items()}))

    def wait(self, event: str) -> float:
        """Wait for an event; returns when it happened."""
        async def find() -> float:
            async for message in self._events:
                if message['event'] == event:
                    stamp: Any = message['timestamp']
                    break
            return float(stamp['seconds'] + stamp['microseconds'] / 1e6)

        return self.do(lambda _: find())

    def __enter__(self) -> 'Monitor':
        try:
            self.do(lambda qmp: qmp.connect(self._path))
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # QEMU may have ended.
        with contextlib.suppress(QMPError, EOFError, OSError):
            self.do(lambda qmp: qmp.disconnect())
        self._loop.close()


class ServerVM:
    """
    A VM; it runs until it is told to quit.

    command: the command line that starts it; change it before start()
    qmp: path of its monitor

    @param folder: for its sockets, its pid file, and its console
    @param guest: talks to the guest
    @param ram: a memory backend without id and size, or the path of a file
                that is the guest's memory
    @param args: more arguments, such as those for disks
    @param obj: where QEMU was built
    @param root: the disk with the guest's root; '': it is the initrd
    @param memory: size of the guest's memory
    """

    def __init__(self, folder: Path, guest: Guest, ram: str,
                 args: Sequence[str], obj: Path = OBJ,
                 root: str = '/dev/vda', memory: str = MEMORY) -> None:
        folder.mkdir()
        self.guest = guest
        self.folder = folder
        self.qmp = str(folder / 'qmp.sock')
        self._process: Optional['subprocess.Popen[bytes]'] = None
        if ram.startswith('/'):
            ram = f'memory-backend-file,share=on,mem-path={ram}'
        self.command = [
            str(existing(obj / 'qemu-system-x86_64', 'run ./run build')),
            '-name', folder.name, '-daemonize', '-pidfile',
            str(self.pid_file), '-qmp', f'unix:{self.qmp},server=on,wait=off',
            '-machine', 'q35,usb=off,memory-backend=ram', '-accel', 'tcg',
            '-nodefaults', '-m', memory, '-object',
            f'{ram},id=ram,size={memory}',
            '-kernel', self._image('vmlinuz'),
            '-initrd', self._image('initrd'), '-append',
            (f'root={root} ' if root else '') +
            'console=ttyS0 quiet panic=-1 no_timer_check',
            '-serial', f'file:{self.console}',
            '-device', f'pcie-root-port,id={SLOT}', *args,
            '-device', 'virtio-serial-pci']
        for port in PORTS:
            self.command += [
                '-chardev', f'socket,id={port},path={folder}/{port}.sock,'
                            'server=on,wait=off',
                '-device', f'virtserialport,chardev={port},name={port}']

    @staticmethod
    def _image(name: str) -> str:
        return str(existing(IMAGE / name, 'run lab/guest/build-image.sh'))

    @property
    def pid_file(self) -> Path:
        """Where QEMU writes its number."""
        return self.folder / 'vm.pid'

    @property
    def console(self) -> Path:
        """The file that gets what the guest's kernel says."""
        return self.folder / 'console'

    @property
    def log(self) -> Path:
        """The file that gets what QEMU prints."""
        return self.folder / 'log'

    @property
    def pid(self) -> int:
        """The process that the VM is in."""
        return int(self.pid_file.read_text('ascii'))

    def drop(self, option: str) -> None:
        """Leave out an option, and its value if it has one."""
        at = self.command.index(option)
        has_value = not self.command[at + 1].startswith('-')
        del self.command[at:at + 1 + has_value]

    def monitor(self) -> Monitor:
        """A new connection to the monitor; there can be one at a time."""
        return Monitor(self.qmp)

    def start(self, *more: str, **options: Any) -> None:
        """
        Start QEMU and wait until its monitor is there.

        @param more: arguments
        @param options: of subprocess.Popen
        """
        with open(self.log, 'ab') as log:
            self._process = subprocess.Popen(
                [*self.command, *more], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, **options)
        deadline = time.monotonic() + PATIENCE
        while not self._is_ready():
            if self._process.poll() or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError('QEMU does not start: '
                                   f'{self.log.read_text("utf-8").strip()}')
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        if '-daemonize' in self.command:
            assert self._process
            return self._process.poll() == 0
        # Its path may be a relative one, so that we cannot ask the kernel.
        with contextlib.suppress(QMPError, OSError), self.monitor():
            return True
        return False

    def connect(self) -> None:
        """Talk to the guest through the sockets of this VM from now on."""
        ports: List[socket.socket] = []
        for port in PORTS:
            ports.append(socket.socket(socket.AF_UNIX))
            ports[-1].connect(f'{self.folder}/{port}.sock')
        self.guest.add_ports(*ports)
        self.guest.moved_to(ports[0])

    def boot(self) -> 'ServerVM':
        """Start QEMU and wait until the guest is up."""
        self.start()
        self.connect()
        self.guest.wait_booted()
        return self

    @property
    def is_started(self) -> bool:
        """Was it started?"""
        return self._process is not None

    def reap(self) -> None:
        """Forget the process that was started, which must have ended."""
        if self._process:
            self._process.wait(PATIENCE)

    def quit(self) -> None:
        """End QEMU."""
        process = Process(self.pid)
        with self.monitor() as qmp:
            qmp.cmd('quit')
        if not asyncio.run(process.wait(PATIENCE)):
            raise TimeoutError('QEMU does not end')
        process.close()
