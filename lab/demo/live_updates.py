# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest under load on vhost-user disks, whose QEMU scripts/live-update updates
"""
import json
import os
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from qemu.live_update.rings import Watch, find_rings

from lab import OBJ, ROOT
from lab.machines.agent import Guest
from lab.machines.backend import Backend
from lab.machines.server_vm import SLOT, ServerVM
from lab.machines.watch import Messages, connections

from .load import Fio, Options, Verdict, longest_gap, total, wait_until_busy

TOOL = os.environ.get('LIVE_UPDATE', str(ROOT / 'scripts/live-update'))
LONGEST = 60                    # seconds for an update
Said = Dict[str, Any]


class UpdateFailed(Exception):
    """An update did not go as told; says why."""


class Update(NamedTuple):
    """
    What an update was like; times are those of time.time().

    pids: of the old and the new QEMU
    downtime: what QEMU says, in seconds
    gap: longest time without a request of the data disk, in seconds
    in_flight: requests that the disks had when the guest was paused
    messages: to the back-ends; None if this user may not trace them
    """
    begin: float
    pids: Tuple[int, int]
    downtime: float
    paused: Tuple[float, float]
    gap: float
    in_flight: int
    messages: Optional[int]


class LiveUpdates:
    """
    A VM, and the load on its disks.

    vm: it
    watch: sees the requests of the guest
    updates: all so far
    verdict: what fio said in the end, at the time "ended"
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
        """What an operator types, the same for each update."""
        return [TOOL, '--qmp', self.vm.qmp, '--binary',
                str(OBJ / 'qemu-system-x86_64')]

    @property
    def backends(self) -> List[List[str]]:
        """The commands that serve the disks."""
        return [disk.arguments() for disk in self._disks.values()]

    @property
    def jobs(self) -> List[str]:
        """What fio was told."""
        return [run.job for run in self._runs]

    def start(self) -> None:
        """Boot the guest, and begin to load and to watch its disks."""
        self.vm.boot()
        self._guest.wait_until('[ -b /dev/vdb ]')
        self.kernel, self.fio = self._guest.run(
            'uname -r; fio --version').split()
        self._runs = [Fio(self._guest, name, options)
                      for name, options in self._load.items()]
        with self.vm.monitor() as qmp:
            rings, _ = qmp.do(find_rings)
        # It goes on from QEMU to QEMU, since the guest's memory stays.
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
            # fio may be able to say more of it.
            self._end_load()
            raise

    def _connected(self) -> Set[int]:
        return {inode for disk in self._disks.values()
                for inode in connections(disk.pid, disk.path)}

    def _trace(self, stack: ExitStack) -> Optional[List[Messages]]:
        """Count messages, if this user may trace the back-ends."""
        try:
            return [stack.enter_context(Messages(disk.pid, str(self._folder)))
                    for disk in self._disks.values()]
        except (FileNotFoundError, RuntimeError):
            return None

    def _run_tool(self, progress: Callable[[Said], None]) -> Said:
        """Run the tool; returns its result."""
        said: Said = {}
        with tempfile.TemporaryFile('w+') as errors, subprocess.Popen(
                [*self.command, '--json'], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True) as tool:
            assert tool.stdout
            # It tidies up when it is told to end.
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

        @param progress: is called with each object that the tool says
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
    """End a process, if it has not ended."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
