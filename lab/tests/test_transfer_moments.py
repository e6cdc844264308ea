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
    A virtio-serial port, whose host end does not read, moves in its memory

    The old QEMU must not go on with a ring that the new one works on.
    """
    @staticmethod
    def is_throttled(vm: VM) -> bool:
        """Does the port wait for the host to read?"""
        tree = vm.cmd('human-monitor-command', {'command-line': 'info qtree'})
        return 'throttle on' in str(tree)

    def connect(self, number: int) -> socket.socket:
        """Become the host end of the port in one of the QEMUs."""
        sock = socket.socket(socket.AF_UNIX)
        self.scope.callback(sock.close)
        sock.settimeout(30)
        sock.connect(self.scope.path(f'port{number}'))
        return sock

    def args(self, number: int) -> Tuple[str, ...]:
        """The port, for one of the QEMUs."""
        path = self.scope.path(f'port{number}')
        return ('-chardev', f'socket,id=slow,path={path},server=on,wait=off',
                '-device', 'virtserialport,chardev=slow,name=slow')

    @staticmethod
    def write(chain: Chain, numbers: str) -> int:
        """Have the guest write lines to the port, each by itself."""
        return chain.guest.start(
            'for port in /sys/class/virtio-ports/*; do '
            'if [ "$(cat $port/name)" = slow ]; then '
            f'for n in $(seq {numbers}); do echo $n; done '
            '>/dev/${port##*/}; fi; done')

    @staticmethod
    def read_to(sock: socket.socket, number: int) -> bytes:
        """Read to the end of a chain."""
        text = b''
        while not text.endswith(f'\n{number}\n'.encode()):
            text += sock.recv(65536)
        return text

    def check_port(self, mode: str) -> None:
        """Each line arrives once, and the port goes on to work."""
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
        """Its host end comes when the VM runs already: the port works."""
        chain = Chain(self.scope)
        source = chain.boot(*self.args(0))
        self.connect(0)
        written = self.write(chain, '20000')
        wait_for('the port is full', lambda: self.is_throttled(source))
        chain.transfer(source, chain.destination(*self.args(1)))
        self.read_to(self.connect(1), 20000)
        self.assertEqual(chain.guest.wait(written).status, 0)

    def test_slow_port(self) -> None:
        """RAM is a file that both QEMUs have."""
        self.check_port(IGNORE_SHARED)

    def test_slow_port_copied_memory(self) -> None:
        """Each QEMU has RAM of its own."""
        self.check_port(COPY)


class Moments(TestCase):
    """Snapshots, idle disks, settings that change"""

    def check_idle(self, mode: str) -> None:
        """Nobody uses the disk while the guest moves."""
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
        """The guest's driver takes the disk after a live transfer."""
        self.check_idle(IGNORE_SHARED)

    def test_idle_copied_memory(self) -> None:
        """The guest's driver takes the disk after its memory was copied."""
        self.check_idle(COPY)

    def test_snapshot(self) -> None:
        """With the parameter on, savevm is still only a snapshot."""
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
        """A disk that only the destination expects does not run without."""
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
        """The parameter is turned off while the guest moves: too late."""
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
        """Not only a disk can be plugged in when the back-end is free."""
        backend = self.scope.daemon()
        source = Chain(self.scope, Disk(backend)).boot()
        other = Chain(self.scope, mode=COPY).vm('-S')
        other.launch()
        add_chardev(other, 'c', backend.path)
        for _ in range(2):
            error = other.qmp('device_add', {
                'driver': 'vhost-user-fs-pci', 'id': 'f', 'chardev': 'c',
                'tag': 't', 'bus': HOTPLUG_BUSES[0]})
            self.assertIn("'c'", str(error.get('error')))
            self.assertEqual(other.chardev('c').get('state'), 'postponed')
        source.shutdown()


if __name__ == '__main__':
    main()
