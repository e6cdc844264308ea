# SPDX-License-Identifier: GPL-2.0-or-later
"""
vhost-user disks of a VM, and load on them
"""
from typing import Any, Dict, List, Union

from .agent import Guest, Summary, blkverify
from .backend import Backend
from .monitor import Monitor
from .vm import VM
from .watch import wait_for

AnyMonitor = Union[VM, Monitor]


def add_chardev(monitor: AnyMonitor, name: str, path: str,
                **options: object) -> None:
    """Create a chardev that is a client of a UNIX socket."""
    backend = {'addr': {'type': 'unix', 'data': {'path': path}},
               'server': False,
               **{k.replace('_', '-'): v for k, v in options.items()}}
    monitor.cmd('chardev-add', id=name,
                backend={'type': 'socket', 'data': backend})


def parse(options: str) -> Dict[str, Any]:
    """Split options of a command line, which begin with a comma."""
    return dict(option.split('=') for option in options.split(',')[1:])


class Disk:
    """
    A vhost-user disk.

    @param options: of the device, such as ',num-queues=2'
    @param chardev: options of the chardev, such as ',reconnect-ms=100'
    """
    def __init__(self, backend: Backend, name: str = 'd', options: str = '',
                 chardev: str = '') -> None:
        self.backend = backend
        self.name = name
        self.chardev = f'c-{name}'
        self._options = options
        self._chardev_options = chardev

    def but(self, options: str) -> 'Disk':
        """The same disk with more options of the device."""
        return Disk(self.backend, self.name, self._options + options,
                    self._chardev_options)

    def args(self) -> List[str]:
        """Arguments of a QEMU with the disk."""
        return ['-chardev', f'socket,id={self.chardev},path='
                            f'{self.backend.path}{self._chardev_options}',
                '-device', f'vhost-user-blk-pci,id={self.name},'
                           f'chardev={self.chardev}{self._options}']

    def plug(self, monitor: AnyMonitor) -> None:
        """Hot-plug the disk."""
        self.add_chardev(monitor)
        self.add_device(monitor)

    def add_chardev(self, monitor: AnyMonitor) -> None:
        """Create the chardev, for add_device()."""
        add_chardev(monitor, self.chardev, self.backend.path, **{
            name: int(value) if value.isdecimal() else value
            for name, value in parse(self._chardev_options).items()})

    def add_device(self, monitor: AnyMonitor) -> None:
        """Hot-plug the device; add_chardev() must come first."""
        monitor.cmd('device_add', driver='vhost-user-blk-pci', id=self.name,
                    chardev=self.chardev, **parse(self._options))

    def wait_connected(self, monitor: AnyMonitor,
                       connected: bool = True) -> None:
        """Wait until QEMU has, or has noticed the loss of, the connection."""
        def is_connected() -> bool:
            chardevs: Any = monitor.cmd('query-chardev')
            return any(chardev['label'] == self.chardev and
                       chardev.get('state') == 'connected'
                       for chardev in chardevs)

        wait_for(f"'{self.name}' connected: {connected}",
                 lambda: is_connected() == connected)


class Load:
    """
    Verified I/O on disks of a guest, from now until stop().

    @param devices: names in the guest; vda by default
    @param options: of blkverify
    """

    def __init__(self, guest: Guest, *devices: str, **options: object) -> None:
        self._guest = guest
        self._runs = []
        for device in devices or ('vda',):
            guest.wait_until(f'[ -b /dev/{device} ]')
            self._runs.append(guest.start(blkverify(device, **options)))
        self.advance()

    def advance(self, count: int = 100) -> None:
        """Wait until more requests have completed."""
        self._guest.wait_records(count)

    def stop(self) -> List[Summary]:
        """End the load; each block that was written must have been right."""
        self._guest.run('killall blkverify')
        summaries = [Summary.parse(self._guest.wait(run).output)
                     for run in self._runs]
        for summary in summaries:
            assert summary.written, summary
            assert summary.errors == 0, summary
            assert summary.verified == summary.written, summary
        return summaries
