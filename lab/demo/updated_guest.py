# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest under load on vhost-user disks, whose QEMU scripts/live-update updates
"""
import json
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from qemu.live_update.report.rings import Watch, find_rings

from lab import OBJ
from lab.machines.agent import Guest
from lab.machines.backend import Backend
from lab.machines.server_vm import SLOT, ServerVM
from lab.machines.tool import TOOL
from lab.machines.watch import Messages, connections

from .load import Fio, Options, Verdict, longest_gap, total, wait_until_busy

LONGEST = 60                    # seconds for an update
Said = Dict[str, Any]


class UpdateFailed(Exception):
    """An update failed, or disturbed the guest; says how."""


class Update(NamedTuple):
    """
    The figures of an update; times are those of time.time().

    pids: process ids of the old and the new QEMU
    downtime: of the migration, as QEMU reports it, in seconds
    paused: when the guest was paused, and when it resumed
    gap: the longest time in which no request of the data disk completed, in
         seconds
    in_flight: how many requests were in flight when the guest was paused
    messages: how many messages the back-ends received; None if this user may
              not trace them
    """
    begin: float
    pids: Tuple[int, int]
    downtime: float
    paused: Tuple[float, float]
    gap: float
    in_flight: int
    messages: Optional[int]


class UpdatedGuest:
    """
    A VM with load on its disks, and its updates.

    watch: records the requests of the guest
    updates: all updates so far
    verdict: the result of fio
    ended: when fio was told to end
    kernel, fio: versions

    @param folder: a new one, for its files
    @param ram: path of the file that is the guest's memory
    @param disks: the back-ends of the disks "root" and "data"
    @param load: options of fio for each disk
    """
    # pylint: disable=too-many-instance-attributes
    watch: Watch
    verdict: Verdict

    def __init__(self, folder: Path, ram: str, disks: Dict[str, Backend],
                 load: Dict[str, Options]) -> None:
        self.updates: List[Update] = []
        self.ended = 0.0
        self.kernel = self.fio = ''
        self._guest = Guest()
        self._folder = folder
        self._disks = disks
        self._load = load
        places = {'root': '', 'data': f',bus={SLOT}'}
        self.vm = ServerVM(folder, self._guest, ram, [
            word for name, place in places.items() for word in (
                '-chardev', f'socket,id=c-{name},path={disks[name].path}',
                '-device', f'vhost-user-blk-pci,id={name},chardev=c-{name}'
                           f'{place}')])
        self._runs: List[Fio] = []
        self._connections: Set[int] = set()

    @property
    def command(self) -> List[str]:
        """The command line of each update."""
        return [TOOL, '--qmp', self.vm.qmp, '--binary',
                str(OBJ / 'qemu-system-x86_64')]

    @property
    def backends(self) -> List[List[str]]:
        """The command lines of the back-ends."""
        return [disk.arguments() for disk in self._disks.values()]

    @property
    def jobs(self) -> List[str]:
        """The jobs of fio."""
        return [run.job for run in self._runs]

    def start(self) -> None:
        """Boot the guest, put load on its disks and watch them."""
        self.vm.boot()
        self._guest.wait_until('[ -b /dev/vdb ]')
        self.kernel, self.fio = self._guest.run(
            'uname -r; fio --version').split()
        self._runs = [Fio(self._guest, name, options)
                      for name, options in self._load.items()]
        with self.vm.monitor() as qmp:
            rings, _ = qmp.do(find_rings)
        # An update does not end it: the file with the guest's memory stays.
        self.watch = Watch(self.vm.pid, rings)
        self.watch.start()
        self._wait_until_busy()
        self._connections = self._connected()

    def finish(self) -> None:
        """End the load, and then the VM."""
        self.ended = time.time()
        self.verdict = self._end_load()
        self.watch.stop()
        self.vm.quit()

    def _end_load(self) -> Verdict:
        for run in self._runs:
            run.end()
        return total(run.verdict() for run in self._runs)

    def _wait_until_busy(self) -> None:
        try:
            wait_until_busy(self.watch, *self._disks)
        except TimeoutError:
            # The error of fio, if there is one, says more.
            self._end_load()
            raise

    def _connected(self) -> Set[int]:
        return {inode for disk in self._disks.values()
                for inode in connections(disk.pid, disk.path)}

    def _trace(self, stack: ExitStack) -> Optional[List[Messages]]:
        """Record the messages to the back-ends, if this user may do so."""
        try:
            return [stack.enter_context(Messages(disk.pid, str(self._folder)))
                    for disk in self._disks.values()]
        except (FileNotFoundError, RuntimeError):
            return None

    def _run_tool(self, progress: Callable[[Said], None]) -> Said:
        """Run live-update; returns the event with the result."""
        said: Said = {}
        with tempfile.TemporaryFile('w+') as errors, subprocess.Popen(
                [*self.command, '--json'], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True) as tool:
            assert tool.stdout
            # On SIGTERM live-update cleans up before it ends.
            watchdog = threading.Timer(LONGEST, tool.terminate)
            watchdog.start()
            try:
                for line in tool.stdout:
                    said = json.loads(line)
                    progress(said)
                tool.wait(LONGEST)
            finally:
                watchdog.cancel()
                end(tool)
            if tool.returncode:
                errors.seek(0)
                raise UpdateFailed(
                    f'{TOOL} ends with status {tool.returncode}: '
                    f'{said.get("message", "")} {errors.read()}')
        return said

    def update(self, progress: Callable[[Said], None]) -> Update:
        """
        Update the VM.

        @param progress: is called with each event of live-update
        """
        with ExitStack() as stack:
            messages = self._trace(stack)
            begin = time.time()
            result = self._run_tool(progress)
            self.vm.connect()
            self._wait_until_busy()
        if self._connected() != self._connections:
            raise UpdateFailed('a back-end has got a new connection')
        update = Update(
            begin, (result['old-pid'], result['pid']), result['downtime'],
            (result['paused'][0], result['paused'][1]),
            longest_gap(self.watch.requests, begin, time.time()),
            self.watch.in_flight(result['paused'][0]),
            None if messages is None else
            sum(len(counted.requests) for counted in messages))
        if update.messages:
            raise UpdateFailed(f'the back-ends got {update.messages} messages')
        self.updates.append(update)
        return update


def end(process: 'subprocess.Popen[str]') -> None:
    """End a process that may have ended already."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
