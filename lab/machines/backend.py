# SPDX-License-Identifier: GPL-2.0-or-later
"""
Storage back-ends: programs that serve a disk over a vhost-user socket
"""
import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, List, Optional, Type

from qemu.live_update.host.process import is_listening

from lab import OBJ, existing

from .monitor import Monitor

MEGABYTE = 1024 * 1024
THROTTLE = 'driver=throttle,node-name=disk,throttle-group=group,file=file'


def make_disk(path: str, megabytes: int = 16) -> str:
    """Make an empty disk image and return its path."""
    with open(path, 'wb') as disk:
        disk.truncate(megabytes * MEGABYTE)
    return path


class Backend:
    """
    A back-end process; ends with the "with" block.

    @param path: of the socket on which it listens
    @param disk: path of the disk image
    """

    def __init__(self, path: str, disk: str) -> None:
        self.path = path
        self.disk = disk
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._log = tempfile.TemporaryFile()

    def arguments(self) -> List[str]:
        """The command line of the back-end."""
        raise NotImplementedError

    def start(self, timeout: float = 30) -> None:
        """Start the back-end and wait until it listens."""
        if os.path.exists(self.path):
            os.unlink(self.path)    # a killed back-end leaves its socket
        command = self.arguments()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                         stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + timeout
        while not is_listening(self.path):
            if self._process.poll() is not None:
                raise RuntimeError(f'{command[0]} failed: {self.output()}')
            if time.monotonic() > deadline:
                raise RuntimeError(f'{command[0]} does not listen on '
                                   f'{self.path}: {self.output()}')
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """Process id of a running back-end."""
        assert self._process
        return self._process.pid

    def is_running(self) -> bool:
        """Does the process run?"""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End the back-end by SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def output(self) -> str:
        """The output of the back-end."""
        self._log.seek(0)
        return self._log.read().decode(errors='replace')

    def __enter__(self) -> 'Backend':
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.kill()
        self._log.close()


class StorageDaemon(Backend):
    """
    qemu-storage-daemon with a file.

    @param filters: --blockdev arguments of the nodes above the file, which is
                    the node "file"; the last one must be the node "disk"
    @param options: options of the export, such as ",num-queues=2"
    @param obj: the folder where QEMU was built
    @param limit: requests a second, by throttling; 0: no limit.  The object
                  "group" can change it later
    @param share: may another process have the image open?
    """
    def __init__(self, path: str, disk: str, *filters: str, options: str = '',
                 obj: Path = OBJ, limit: int = 0, share: bool = False) -> None:
        super().__init__(path, disk)
        self._program = existing(
            obj / 'storage-daemon/qemu-storage-daemon', 'run ./run build')
        if limit:
            filters = (*filters, THROTTLE)
        self._filters = filters
        self._options = options
        self._limit = limit
        self._locking = ',locking=off' if share else ''
        self._monitor = f'{path}.qmp'

    def arguments(self) -> List[str]:
        node = 'file' if self._filters else 'disk'
        command = [
            str(self._program), '--object',
            f'throttle-group,id=group,x-iops-total={self._limit}',
            '--blockdev', f'driver=file,node-name={node},filename={self.disk}'
            f'{self._locking}']
        for option in self._filters:
            command += ['--blockdev', option]
        return command + [
            '--export', 'type=vhost-user-blk,id=export,node-name=disk,'
            f'writable=on,addr.type=unix,addr.path={self.path}'
            f'{self._options}',
            '--chardev', f'socket,id=qmp,path={self._monitor},server=on,'
            'wait=off', '--monitor', 'chardev=qmp']

    def cmd(self, name: str, **arguments: object) -> Any:
        """Execute a QMP command in the daemon."""
        with Monitor(self._monitor) as monitor:
            return monitor.cmd(name, **arguments)


class SampleBackend(Backend):
    """
    QEMU's sample back-end contrib/vhost-user-blk.

    It has an inflight region, serves one client, and ends with that.
    """
    def __init__(self, path: str, disk: str, obj: Path = OBJ) -> None:
        super().__init__(path, disk)
        self._program = existing(
            obj / 'contrib/vhost-user-blk/vhost-user-blk', 'run ./run build')

    def arguments(self) -> List[str]:
        return [str(self._program), f'--socket-path={self.path}',
                f'--blk-file={self.disk}']
