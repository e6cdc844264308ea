# SPDX-License-Identifier: GPL-2.0-or-later
"""
Disks that are to be moved, their back-ends, and load on them
"""
from pathlib import Path
from typing import Any, List, Union

from lab import OBJ

from .agent import Guest, Summary, blkverify
from .backend import Backend, StorageDaemon
from .server_vm import Monitor
from .vm import VM
from .watch import wait_for


class Disk:
    """
    A vhost-user disk, as QEMU is told of it.

    @param options: of the device, such as ',num-queues=2'
    @param chardev: options of the chardev, such as ',reconnect-ms=100'
    """
    def __init__(self, backend: Backend, name: str = 'd', options: str = '',
                 chardev: str = '') -> None:
        self.backend = backend
        self.name = name
        self.options = options
        self.chardev = chardev

    def but(self, options: str) -> 'Disk':
        """The same disk with more options."""
        return Disk(self.backend, self.name, self.options + options,
                    self.chardev)

    def args(self) -> List[str]:
        """The arguments that create it."""
        return ['-chardev', f'socket,id=c-{self.name},path={self.backend.path}'
                            f'{self.chardev}',
                '-device', f'vhost-user-blk-pci,id={self.name},'
                           f'chardev=c-{self.name}{self.options}']

    def wait_connected(self, monitor: Union[VM, Monitor],
                       connected: bool = True) -> None:
        """Wait until QEMU has its connection, or knows that it has none."""
        def is_connected() -> bool:
            chardevs: Any = monitor.cmd('query-chardev')
            return any(chardev['label'] == f'c-{self.name}' and
                       chardev.get('state') == 'connected'
                       for chardev in chardevs)

        wait_for(f"'{self.name}' connected: {connected}",
                 lambda: is_connected() == connected)


class Daemon(StorageDaemon):
    """
    A qemu-storage-daemon that can be told to change its disk.

    @param limit: requests a second that it carries out; 0: no limit
    @param share: may another process have the file open, too?
    """

    def __init__(self, path: str, disk: str, *filters: str, options: str = '',
                 obj: Path = OBJ, limit: int = 0, share: bool = False) -> None:
        if limit:
            filters = (*filters, 'driver=throttle,node-name=disk,'
                       'throttle-group=group,file=file')
        super().__init__(path, disk + (',locking=off' if share else ''),
                         *filters, options=options, obj=obj)
        self._limit = limit
        self._monitor = f'{path}.qmp'

    def arguments(self) -> List[str]:
        program, *arguments = super().arguments()
        return [
            program, '--object', 'throttle-group,id=group,x-iops-total='
            f'{self._limit}', *arguments, '--chardev',
            f'socket,id=qmp,path={self._monitor},server=on,wait=off',
            '--monitor', 'chardev=qmp']

    def cmd(self, name: str, **arguments: object) -> None:
        """Have a QMP command carried out."""
        # pylint: disable=import-outside-toplevel
        from qemu.qmp.legacy import QEMUMonitorProtocol
        monitor = QEMUMonitorProtocol(self._monitor)
        monitor.connect()
        monitor.settimeout(30)
        monitor.cmd(name, **arguments)
        monitor.close()


class Load:
    """Verified I/O on disks of a guest, from now until stop()."""

    def __init__(self, guest: Guest, *devices: str, **options: object) -> None:
        self._guest = guest
        self._runs = []
        for device in devices or ('vda',):
            guest.wait_until(f'[ -b /dev/{device} ]')
            self._runs.append(guest.start(blkverify(device, **options)))
        self.advance()

    def advance(self, count: int = 100) -> None:
        """Wait until more requests are complete."""
        self._guest.wait_records(count)

    def stop(self) -> List[Summary]:
        """End it; all that was written must have been read back."""
        self._guest.run('killall blkverify')
        summaries = [Summary.parse(self._guest.wait(run).output)
                     for run in self._runs]
        for summary in summaries:
            assert summary.written, summary
            assert summary.errors == 0, summary
            assert summary.verified == summary.written, summary
        return summaries
