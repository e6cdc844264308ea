# SPDX-License-Identifier: GPL-2.0-or-later
"""
Owner of what a test, a demo or a measurement starts and creates
"""
import itertools
import os
import signal
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, List, TypeVar

from qemu.live_update.host.process import find

from .backend import Backend, SampleBackend, StorageDaemon, make_disk
from .evidence import describe_all
from .vm import VM
from .watch import wait_for

PREFIX = f'qemu-lab-{os.getpid()}-'     # of folders, and of files in /dev/shm
B = TypeVar('B', bound=Backend)
Describe = Callable[[], Iterable[str]]


class Scope:
    """
    A folder, processes and sockets that end with the "with" block.

    folder: a new one, for files and sockets
    vms: the QEMUs of this scope
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix=PREFIX)))
        self.callback(self._remove_memory)
        self.callback(self.end_processes)
        self.vms: List[VM] = []
        self._more_evidence: List[Describe] = []
        self._numbers = itertools.count()

    def __enter__(self) -> 'Scope':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Call the callbacks, the last one first, and remove the folder."""
        self._stack.close()

    def callback(self, function: Callable[..., object], *args: Any,
                 **options: Any) -> None:
        """Have a function called at the end."""
        self._stack.callback(function, *args, **options)

    def path(self, name: str) -> str:
        """A path in the folder."""
        return str(self.folder / name)

    def memory(self) -> Path:
        """A path for a file with a guest's memory, another one each time."""
        return Path(f'/dev/shm/{self.folder.name}-{next(self._numbers)}')

    def _remove_memory(self) -> None:
        for file in Path('/dev/shm').glob(f'{self.folder.name}-*'):
            file.unlink()

    def end_processes(self) -> None:
        """Kill all processes that have the folder on their command line."""
        for pid in find(self.path('')):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for('all processes end', lambda: not find(self.path('')))

    # Processes

    def vm(self, *args: str, **options: Any) -> VM:
        """A QEMU that is not started yet; see vm.VM."""
        vm = VM(*args, **options)
        self.vms.append(vm)
        self.callback(vm.shutdown)
        return vm

    def backend(self, backend: B, start: bool = True) -> B:
        """Own a back-end, and start it."""
        self.callback(backend.__exit__, None, None, None)
        if start:
            backend.start()
        return backend

    def daemon(self, name: str = 'disk', *filters: str, disk: str = '',
               start: bool = True, **options: Any) -> StorageDaemon:
        """
        A qemu-storage-daemon.

        @param name: of its socket and its image
        @param disk: name of the image, if another daemon has it, too
        @param options: see backend.StorageDaemon
        """
        return self.backend(StorageDaemon(
            self.path(f'{name}.sock'),
            make_disk(self.path(f'{disk or name}.img')), *filters, **options),
            start)

    def sample_backend(self, name: str = 'disk',
                       start: bool = True) -> SampleBackend:
        """A contrib/vhost-user-blk."""
        return self.backend(SampleBackend(
            self.path(f'{name}.sock'), make_disk(self.path(f'{name}.img'))),
            start)

    # Evidence

    def add_evidence(self, describe: Describe) -> None:
        """Have a function give more lines of evidence()."""
        self._more_evidence.append(describe)

    def evidence(self) -> str:
        """The state of all processes, to understand a failure."""
        return '\n'.join([describe_all(self.vms), *(
            line for describe in self._more_evidence for line in describe())])


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt, so that scopes end."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.default_int_handler)
