# SPDX-License-Identifier: GPL-2.0-or-later
"""
A VM that runs as on a server: QEMU is a daemon with sockets in a folder
"""
import asyncio
import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, List, Optional, Sequence

from qemu.live_update.host.process import Process
from qemu.qmp import QMPError

from lab import IMAGE, OBJ, existing

from .agent import Guest
from .monitor import PATIENCE, Monitor

MEMORY = '256M'
SLOT = 'slot0'                  # the PCI bus of the second disk
PORTS = 'agent', 'records'


class ServerVM:
    """
    A VM and the QEMU process that runs it, until quit().

    command: the command line that start() runs; tests may change it before
    qmp: path of the monitor's socket

    @param folder: a new one, for sockets, the pid file and the console
    @param guest: the guest to talk to
    @param ram: a memory backend without id and size, or the path of a file
                that is the guest's memory
    @param args: more arguments, such as those for disks
    @param obj: the folder where QEMU was built
    @param root: the disk with the guest's root file system; if empty, that
                 is the initrd
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
        """The file to which QEMU writes its process id."""
        return self.folder / 'vm.pid'

    @property
    def console(self) -> Path:
        """The file with the output of the guest's kernel."""
        return self.folder / 'console'

    @property
    def log(self) -> Path:
        """The file with the output of QEMU."""
        return self.folder / 'log'

    @property
    def pid(self) -> int:
        """The process id of the QEMU that runs the VM."""
        return int(self.pid_file.read_text('ascii'))

    def drop(self, option: str) -> None:
        """Remove an option, and its value, from the command line."""
        at = self.command.index(option)
        has_value = not self.command[at + 1].startswith('-')
        del self.command[at:at + 1 + has_value]

    def monitor(self) -> Monitor:
        """A connection to the monitor, which serves one client at a time."""
        return Monitor(self.qmp)

    def start(self, *more: str, **options: Any) -> None:
        """
        Start QEMU and wait until its monitor answers.

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
        # The path in the command line may be relative: just try to connect.
        with contextlib.suppress(QMPError, OSError), self.monitor():
            return True
        return False

    def connect(self) -> None:
        """Send the guest's commands through the QEMU that runs now."""
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
        """Has start() been called?"""
        return self._process is not None

    def reap(self) -> None:
        """Wait for the process that start() started, which was killed."""
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
