# SPDX-License-Identifier: GPL-2.0-or-later
"""
A QEMU process that runs the guest, or waits for it to migrate

The machine has shared memory (vhost-user needs that), free PCI slots for
hot-plug (HOTPLUG_BUSES), and the virtio-serial ports of the guest's agent.
"""
import socket
from pathlib import Path
from typing import Any, Dict, List, Optional

from qemu.machine import QEMUMachine
from qemu.machine.machine import AbnormalShutdown, VMLaunchFailure

from lab import IMAGE, OBJ, existing

from .agent import Guest, GuestError

__all__ = ['VM', 'VMLaunchFailure', 'HOTPLUG_BUSES', 'MEMFD', 'Properties']

Properties = Dict[str, object]
HOTPLUG_BUSES = ('slot0', 'slot1', 'slot2', 'slot3')
MEMFD = 'memory-backend-memfd,share=on'


class VM(QEMUMachine):
    """
    A QEMU process.

    @param args: more arguments for QEMU
    @param obj: the folder where QEMU was built
    @param guest: the guest that will migrate to this QEMU; by default a new
                  guest, which boots here
    @param memory: size of the guest's memory (by default 256M, with fio 512M)
    @param ram: the memory backend, without id and size
    @param fio: is fio in the guest's file system?  It boots slower then.
    """

    def __init__(self, *args: str, obj: Path = OBJ,
                 guest: Optional[Guest] = None, memory: str = '',
                 ram: str = MEMFD,
                 fio: bool = False) -> None:
        binary = existing(obj / 'qemu-system-x86_64', 'run ./run build')
        super().__init__(str(binary), qmp_timer=60)
        self.guest = guest or Guest()
        self._agent: Optional[socket.socket] = None
        self._extra = args
        memory = memory or ('512M' if fio else '256M')
        # With a thread per CPU, TCG fails an assertion now and then while the
        # firmware maps many PCI devices: iotlb_to_section(), not ours.
        accel = 'tcg,thread=single' if '-smp' in args else 'tcg'
        self.add_args(
            '-machine', 'q35,usb=off,memory-backend=ram', '-accel', accel,
            '-nodefaults', '-no-user-config', '-no-reboot', '-m', memory,
            '-object', f'{ram},id=ram,size={memory}',
            '-kernel', self._image('vmlinuz'),
            '-initrd', self._image('initrd-fio' if fio else 'initrd'),
            # The kernel's test of the timer panics on a busy host.
            '-append', 'console=ttyS0 quiet panic=-1 no_timer_check',
            '-serial', 'chardev:console', '-device', 'virtio-serial-pci')
        for number, bus in enumerate(HOTPLUG_BUSES):
            self.add_args('-device', f'pcie-root-port,id={bus},'
                                     f'chassis={number + 1}')

    @staticmethod
    def _image(name: str) -> str:
        return str(existing(IMAGE / name, 'run lab/guest/build-image.sh'))

    @property
    def console(self) -> Path:
        """The file with the output of the guest's kernel."""
        return Path(self.temp_dir, 'console')

    def output(self) -> str:
        """The output of a QEMU that runs."""
        return ''.join(log.read_text('utf-8', 'replace')
                       for log in Path(self.log_dir).glob('*.log'))

    def launch(self) -> None:
        """Start QEMU with the ports of the guest's agent."""
        ours: Dict[str, socket.socket] = {}
        theirs: List[socket.socket] = []
        for name in ('agent', 'records'):
            ours[name], sock = socket.socketpair()
            sock.set_inheritable(True)
            theirs.append(sock)
            self.add_args('-chardev', f'socket,id={name},fd={sock.fileno()}',
                          '-device', f'virtserialport,chardev={name},'
                                     f'name={name}')
        self.add_args('-chardev', f'file,id=console,path={self.console}',
                      *self._extra)
        try:
            super().launch()
        except BaseException:
            for sock in ours.values():
                sock.close()
            raise
        finally:
            for sock in theirs:
                sock.close()
        self._qmp.settimeout(60)
        self._agent = ours['agent']
        self.guest.add_ports(**ours)

    def shutdown(self, hard: bool = False,
                 timeout: Optional[int] = 30) -> None:
        """Tell QEMU to end; it must not have ended before."""
        try:
            super().shutdown(hard, timeout)
        except AbnormalShutdown as error:
            raise GuestError(
                f'QEMU did not end as told (status {self.exitcode()}): '
                f'{self.get_log()}') from error

    def boot(self) -> 'VM':
        """Start QEMU and wait until the guest is up."""
        self.launch()
        return self.wait_booted()

    def wait_booted(self) -> 'VM':
        """Wait until the guest is up."""
        try:
            self.guest.wait_booted()
        except GuestError as error:
            console = self.console.read_text('utf-8', 'replace')
            raise GuestError(f'the guest did not boot: {error}; its console '
                             f'ends with: {console[-2000:]}') from error
        return self

    def take_guest(self) -> None:
        """Send the guest's commands through this QEMU from now on."""
        assert self._agent
        self.guest.moved_to(self._agent)

    def chardev(self, name: str) -> Properties:
        """The entry of a chardev in query-chardev, else an empty one."""
        chardevs: Any = self.cmd('query-chardev')
        return next((c for c in chardevs if c['label'] == name), {})

    def attach_error(self, device: Properties) -> str:
        """The error of device_add; empty if that succeeds."""
        error: Any = self.qmp('device_add', device).get('error', {})
        return str(error.get('desc', ''))

    def delete_device(self, name: str) -> None:
        """Unplug a device and wait until the guest has released it."""
        self.cmd('device_del', id=name)
        self.event_wait('DEVICE_DELETED', match={'data': {'device': name}})
