# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU: its process, its monitor, and its private files
"""
import asyncio
import os
import subprocess
from typing import (
    Any,
    Dict,
    List,
    Optional,
    Sequence,
)

from .error import NeedsPerson, Refused
from .host.private_files import PrivateFiles
from .host.process import (
    Process,
    end_all,
    find,
    is_listening,
)
from .host.scheduling import Scheduling
from .migration import (
    PATIENCE,
    failed_to_start,
    has_vm,
    restore_settings,
)
from .monitor import Monitor, MonitorError
from .output import Output
from .vm.ram import RamBlock, ram_blocks
from .waiting import until


LAST_WORDS = 1          # seconds in which a QEMU that fails may say why
# Commands that report threads, and the key of their names.
THREADS = {'query-cpus-fast': 'cpu-index', 'query-iothreads': 'id'}


class NewQemu:
    """
    The QEMU to which an update moves the VM.

    This update starts it, or an earlier one has: then it is found by its
    private files.

    @param files: its private files; their token is on its command line
    @param monitor: its monitor
    """
    def __init__(self, files: PrivateFiles, monitor: Monitor, output: Output
                 ) -> None:
        self.files = files
        self.monitor = monitor
        self._output = output
        self._child: Optional['subprocess.Popen[bytes]'] = None
        self._printed = b''

    def pids(self) -> List[int]:
        """
        The processes of the new QEMU.

        There are several while it starts, or if the binary is a script.
        """
        return find(self.files.token)

    # Start

    def start(self, old: Process, command: Sequence[str], as_user: bool
              ) -> None:
        """
        Start the new QEMU with the attributes of the old one.

        @param as_user: also with the user of the old QEMU
        """
        self._child = old.start_like(command, as_user)
        if self._child.stderr:
            pipe = self._child.stderr.fileno()
            os.set_blocking(pipe, False)
            asyncio.get_running_loop().add_reader(pipe, self._read, pipe)

    def _read(self, pipe: int) -> None:
        """Read messages of the new QEMU."""
        data = os.read(pipe, 65536)
        self._printed = (self._printed + data)[-4000:]
        if not data:
            asyncio.get_running_loop().remove_reader(pipe)

    async def _check_child(self) -> bool:
        """
        Raise Refused, with its messages, if the new QEMU has ended.

        Returns false otherwise, so that until() continues to wait.
        """
        assert self._child
        # With -daemonize, the child ends with status 0 when QEMU has started
        # as another process.
        if self._child.poll() or self._child.returncode == 0 and \
                not self.pids():
            said = self._printed.decode(errors='replace').strip()
            raise Refused('the new QEMU does not start: ' + (
                said or f'it ends with status {self._child.returncode}; its '
                'messages are in the same place as those of the old QEMU'))
        return False

    async def wait_listening(self, path: str) -> None:
        """Wait until the new QEMU listens on a socket; protect the socket."""
        async def listens() -> bool:
            return is_listening(path) or await self._check_child()

        await until(listens)
        self.files.protect_sockets()

    async def connect(self) -> None:
        """Connect to the monitor of the new QEMU, when it listens."""
        await self.wait_listening(self.monitor.path)
        try:
            await self.monitor.connect()
        except MonitorError:
            # If QEMU is about to end, its messages say more than this error.
            await until(self._check_child, LAST_WORDS)
            raise

    async def copy_scheduling(self, old: Monitor) -> None:
        """
        Copy CPU affinity and priority of vCPUs and I/O threads.

        @param old: of the QEMU that has these threads now
        """
        for command, key in THREADS.items():
            threads = {item[key]: item['thread-id']
                       for item in await self.monitor.ask(command)}
            for item in await old.ask(command):
                try:
                    Scheduling(item['thread-id']).apply_to(threads[item[key]])
                except (KeyError, OSError) as error:
                    raise Refused(
                        f"the thread '{item[key]}' of the new QEMU cannot get "
                        'the CPU affinity and priority that it has in the old '
                        f'one: {error}; run this as root') from error

    async def ram_blocks(self) -> List[RamBlock]:
        """Its RAM blocks; it must be connected."""
        try:
            process = Process(self.monitor.pid)
            try:
                return await ram_blocks(self.monitor, process)
            finally:
                process.close()
        except (Refused, OSError) as error:
            raise MonitorError('cannot look at the memory of the new QEMU: '
                               f'{error}') from error

    # Run the VM

    async def gets_vm(self) -> bool:
        """Wait until the new QEMU has the VM; false: it fails or ends."""
        async def outcome() -> str:
            """Returns '' if that is not decided yet."""
            try:
                if await has_vm(self.monitor):
                    return 'has it'
                return 'failed' if await failed_to_start(self.monitor) else ''
            except MonitorError:
                return '' if self.pids() else 'ended'

        return await until(outcome, PATIENCE) == 'has it'

    async def check_alive(self) -> None:
        """Raise NeedsPerson if the new QEMU, which has the VM, has ended."""
        try:
            await self.monitor.status()
        except MonitorError as error:
            raise NeedsPerson(
                'the VM was moved to the new QEMU, which has ended since '
                f'({error}): look at its last messages, and start the VM again'
            ) from error

    async def restore_settings(self, settings: Dict[str, Any]) -> None:
        """Give the new QEMU the settings of migration that the old one had."""
        try:
            await restore_settings(self.monitor, settings)
        except MonitorError as error:
            self._output.check(
                'migration', 'warning', 'the new QEMU keeps settings of '
                f'migration that the update has made: {error}; see '
                'query-migrate-capabilities before a snapshot')

    async def replace(self, old: Process) -> None:
        """
        Move the new QEMU's files to the public names, and kill the old QEMU.

        In this order there is a file at each public name at any time, and
        systemd finds the new QEMU in the pid file when the old one ends.  The
        old QEMU is killed because it would clean up otherwise: it would remove
        the files, and take down what the VM uses, such as a network interface.

        Raises MonitorError if the new QEMU has ended; then the old QEMU is
        alive and has its files again.
        """
        await self.monitor.status()
        self.files.publish()
        try:
            self._output.step('names', 'the new QEMU has the names of its '
                              'files')
            await self.monitor.status()
        except MonitorError:
            self.files.withdraw()
            raise
        old.kill()
        if not await old.wait(PATIENCE):
            raise NeedsPerson(
                'the VM runs in the new QEMU, but the old one, process '
                f'{old.pid}, does not end; find out why')
        self.files.remove()
        self._output.step('end', f'the old QEMU {old.pid} has ended')

    # End

    async def end(self) -> None:
        """Kill the new QEMU; it must not have run the VM."""
        if self._child:
            # The binary may be a script, which runs QEMU as another process.
            self._child.kill()
            self._child.wait()
        await end_all(self.files.token)
