# SPDX-License-Identifier: GPL-2.0-or-later
"""
Transfers with a busy port, an idle disk, a snapshot, or changed parameters
"""
import socket
import subprocess
from select import select
from typing import Tuple

from lab import OBJ
from lab.machines.chain import (COPY, IGNORE_SHARED, Chain, migration_error,
                                status, wait_end)
from lab.machines.disks import Disk, Load, add_chardev
from lab.machines.vm import HOTPLUG_BUSES, VM
from lab.machines.watch import wait_for

from .testcase import TestCase, main

DRIVER = '/sys/bus/virtio/drivers/virtio_blk'


class SlowPort(TestCase):
    """
    A virtio-serial port whose host end does not read

    After a transfer the old QEMU must not touch the ring of the port.
    """
    @staticmethod
    def is_throttled(vm: VM) -> bool:
        """Does the port wait for the host to read?"""
        tree = vm.cmd('human-monitor-command', {'command-line': 'info qtree'})
        return 'throttle on' in str(tree)

    def connect(self, number: int) -> socket.socket:
        """Connect to the host end of the port in a QEMU, by number."""
        sock = socket.socket(socket.AF_UNIX)
        self.scope.callback(sock.close)
        sock.settimeout(30)
        sock.connect(self.scope.path(f'port{number}'))
        return sock

    def args(self, number: int) -> Tuple[str, ...]:
        """Arguments for the port of a QEMU, by number."""
        path = self.scope.path(f'port{number}')
        return ('-chardev', f'socket,id=slow,path={path},server=on,wait=off',
                '-device', 'virtserialport,chardev=slow,name=slow')

    @staticmethod
    def write(chain: Chain, numbers: str) -> int:
        """Have the guest write a line with each number to the port."""
        return chain.guest.start(
            'for port in /sys/class/virtio-ports/*; do '
            'if [ "$(cat $port/name)" = slow ]; then '
            f'for n in $(seq {numbers}); do echo $n; done '
            '>/dev/${port##*/}; fi; done')

    @staticmethod
    def read_to(sock: socket.socket, number: int) -> bytes:
        """Read until the line with a number has come."""
        text = b''
        while not text.endswith(f'\n{number}\n'.encode()):
            text += sock.recv(65536)
        return text

    def check_port(self, mode: str) -> None:
        """Each line must arrive once, and the port still work."""
        chain = Chain(self.scope, mode=mode)
        source = chain.boot(*self.args(0))
        old = self.connect(0)
        written = self.write(chain, '20000')
        wait_for('the port is full', lambda: self.is_throttled(source))
        dest = chain.destination(*self.args(1))
        new = self.connect(1)
        chain.transfer(source, dest)
        after = self.read_to(new, 20000)
        self.assertEqual(chain.guest.wait(written).status, 0)

        before = b''
        while self.is_throttled(source):
            if select([old], [], [], 0.01)[0]:
                before += old.recv(65536)
        written = self.write(chain, '20001 30000')
        after += self.read_to(new, 30000)
        self.assertEqual(chain.guest.wait(written).status, 0)
        source.shutdown()
        while data := old.recv(65536):
            before += data
        wanted = ''.join(f'{n}\n' for n in range(1, 30001)).encode()
        self.assertTrue(wanted == before + after,
                        f'{len(before)} bytes came before and {len(after)} '
                        f'after the transfer, {len(wanted)} in all were sent')

    def test_port_without_host(self) -> None:
        """The host end connects after the transfer: the port works."""
        chain = Chain(self.scope)
        source = chain.boot(*self.args(0))
        self.connect(0)
        written = self.write(chain, '20000')
        wait_for('the port is full', lambda: self.is_throttled(source))
        chain.transfer(source, chain.destination(*self.args(1)))
        self.read_to(self.connect(1), 20000)
        self.assertEqual(chain.guest.wait(written).status, 0)

    def test_slow_port(self) -> None:
        """RAM is a file that both QEMUs open."""
        self.check_port(IGNORE_SHARED)

    def test_slow_port_copied_memory(self) -> None:
        """RAM is copied."""
        self.check_port(COPY)


class Moments(TestCase):
    """Idle disks, snapshots, changed parameters"""

    def check_idle(self, mode: str) -> None:
        """The driver is unbound from the disk during the transfer."""
        chain = Chain(self.scope, Disk(self.scope.daemon()), mode=mode)
        source = chain.boot()
        chain.guest.wait_until('[ -b /dev/vda ]')
        chain.guest.verify('vda', count=100, seed=2)
        chain.guest.run(
            'dev=$(basename $(readlink -f /sys/block/vda/device)); '
            f'echo $dev >/tmp/dev; echo $dev >{DRIVER}/unbind')
        dest = chain.transfer(source)
        chain.guest.run(f'echo $(cat /tmp/dev) >{DRIVER}/bind')
        chain.guest.wait_until('[ -b /dev/vda ]')
        chain.guest.verify('vda', count=100, seed=3)
        load = Load(chain.guest, seed=4)
        chain.transfer(dest)
        load.advance(300)
        load.stop()

    def test_idle(self) -> None:
        """The driver is bound after a transfer; RAM is a file."""
        self.check_idle(IGNORE_SHARED)

    def test_idle_copied_memory(self) -> None:
        """The driver is bound after a transfer; RAM is copied."""
        self.check_idle(COPY)

    def test_snapshot(self) -> None:
        """With backend-transfer on, savevm still works."""
        image = self.scope.path('snapshot.qcow2')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        image, '1G'], check=True)
        chain = Chain(self.scope, Disk(self.scope.daemon()), mode=COPY, args=(
            '-drive', f'if=none,id=s,file={image}'))
        source = chain.boot()
        load = Load(chain.guest)
        chain.prepare(source, source=True)
        said = source.cmd('human-monitor-command',
                          {'command-line': 'savevm a'})
        self.assertEqual(said, '')
        load.advance(300)
        load.stop()

    def test_source_opts_out(self) -> None:
        """backend-transfer=off in the source only: the transfer fails."""
        disk = Disk(self.scope.daemon())
        chain = Chain(self.scope, disk, mode=COPY)
        source = chain.boot(disks=[disk.but(',backend-transfer=off')])
        load = Load(chain.guest)
        dest = chain.destination()
        chain.send(source, dest)
        wait_end(source, 'failed')
        wait_end(dest, 'failed')
        self.assertIn('backend-transfer', migration_error(dest))
        wait_for('the source runs', lambda: status(source) == 'running')
        load.advance(300)
        load.stop()

    def test_parameter_changed(self) -> None:
        """backend-transfer is turned off during a transfer: no effect."""
        chain = Chain(self.scope, Disk(self.scope.daemon()))
        source = chain.boot()
        load = Load(chain.guest)
        dest = chain.send_half(source)
        source.cmd('migrate-set-parameters', {'backend-transfer': False})
        source.cmd('migrate-continue', state='pre-switchover')
        chain.arrive(source, dest)
        load.advance(300)
        load.stop()

    def test_other_device_on_busy_backend(self) -> None:
        """Other devices and netdevs cannot be plugged to a busy back-end."""
        backend = self.scope.daemon()
        source = Chain(self.scope, Disk(backend)).boot()
        other = Chain(self.scope, mode=COPY).vm('-S')
        other.launch()
        add_chardev(other, 'c', backend.path)
        bus = HOTPLUG_BUSES[0]
        # The daemon queues two connections: later attempts find no place.
        for command, arguments in (
                ('netdev_add', {'type': 'vhost-user'}),
                ('device_add', {'driver': 'vhost-user-scsi-pci', 'bus': bus}),
                ('device_add', {'driver': 'vhost-user-fs-pci', 'bus': bus,
                                'tag': 't'}),
                ('netdev_add', {'type': 'vhost-user'}),
                ('device_add', {'driver': 'vhost-user-scsi-pci',
                                'bus': bus})):
            error = other.qmp(command, {'id': 'x', 'chardev': 'c',
                                        **arguments})
            self.assertIn("'c'", str(error.get('error')))
            self.assertEqual(other.chardev('c').get('state'), 'postponed')
        source.shutdown()


if __name__ == '__main__':
    main()
