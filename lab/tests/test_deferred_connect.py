# SPDX-License-Identifier: GPL-2.0-or-later
"""
A chardev can be created before the peer that it connects to

It connects when a device attaches to it.  Every test here fails on a QEMU
that connects when the chardev is created.
"""
import socket

from lab.machines.agent import Summary, blkverify
from lab.machines.disks import add_chardev
from lab.machines.vm import HOTPLUG_BUSES, VM, Properties, VMLaunchFailure

from .testcase import TestCase, main

PORT = r'/dev/$(basename $(dirname $(grep -lx %s ' \
       r'/sys/class/virtio-ports/*/name)))'
TTY = r'/dev/$(basename /sys/bus/pci/devices/*/tty/ttyS*)'
DISK: Properties = {
    'driver': 'vhost-user-blk-pci', 'id': 'd', 'chardev': 'c',
    'bus': HOTPLUG_BUSES[0]}


class Peer:
    """The peer of a chardev: a UNIX socket server that accepts QEMU."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(30)
        self._client = socket.socket()

    def accept(self) -> None:
        """Accept the connection of QEMU."""
        self._client, _ = self._listener.accept()
        self._client.settimeout(30)

    def send(self, text: str) -> None:
        """Send a text to QEMU."""
        self._client.sendall(text.encode())

    def expect(self, text: str) -> None:
        """Wait until QEMU has sent this text, maybe after other text."""
        received = b''
        while text.encode() not in received:
            data = self._client.recv(4096)
            if not data:
                raise EOFError(f'expected {text!r} from QEMU, got '
                               f'{received!r} and the end')
            received += data

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()
        self._listener.close()


class DeferredConnect(TestCase):
    """Chardevs whose peer starts later, or never"""

    def server(self, name: str) -> Peer:
        """A peer that listens at a path of the scope."""
        peer = Peer(self.scope.path(name))
        self.scope.callback(peer.close)
        return peer

    def assert_state(self, vm: VM, chardev: str, state: str) -> None:
        """query-chardev must show this state."""
        self.assertEqual(vm.chardev(chardev).get('state'), state)

    def assert_attach_fails(self, vm: VM, device: Properties,
                            path: str) -> None:
        """device_add must name the chardev and its address."""
        error = vm.attach_error(device)
        self.assertIn(f"'{device['chardev']}'", error)
        self.assertIn(path, error)
        vm.guest.run('true')        # the guest still runs

    def assert_talks(self, vm: VM, server: Peer, device: str) -> None:
        """The guest must be able to send a line, and to receive one."""
        server.accept()
        vm.guest.wait_until(f'[ -c {device} ]')
        answer = vm.guest.start(
            f'exec 5<>{device}; [ ! -t 5 ] || stty raw -echo <&5; '
            'echo from guest >&5; read -r line <&5; echo $line')
        server.expect('from guest')
        server.send('from host\n')
        self.assertEqual(vm.guest.wait(answer).output, 'from host')

    def assert_disk_works(self, vm: VM, count: int = 1000) -> None:
        """The guest must find its disk and read what it writes."""
        vm.guest.wait_until('[ -b /dev/vda ]')
        summary = vm.guest.verify('vda', count=count)
        self.assertEqual((summary.verified, summary.errors), (count, 0))

    def test_disk_hotplug(self) -> None:
        """A failed hot-plug changes nothing; with a back-end it succeeds."""
        backend = self.scope.daemon(start=False)
        vm = self.scope.vm().boot()

        add_chardev(vm, 'unused', self.scope.path('nobody.sock'))
        self.assert_state(vm, 'unused', 'postponed')
        vm.cmd('chardev-remove', id='unused')

        add_chardev(vm, 'c', backend.path)
        for _ in range(2):
            self.assert_attach_fails(vm, DISK, backend.path)
            self.assert_state(vm, 'c', 'postponed')

        backend.start()
        vm.cmd('device_add', DISK)
        self.assert_state(vm, 'c', 'connected')
        self.assert_disk_works(vm)

        vm.delete_device('d')
        vm.guest.wait_until('[ ! -e /dev/vda ]')
        vm.cmd('chardev-remove', id='c')
        self.assertEqual(vm.chardev('c'), {})

    def test_serial_hotplug(self) -> None:
        """virtserialport and pci-serial attach when their peer listens."""
        port: Properties = {
            'driver': 'virtserialport', 'id': 'port', 'chardev': 'port',
            'name': 'port'}
        serial: Properties = {
            'driver': 'pci-serial', 'id': 'serial', 'chardev': 'serial',
            'bus': HOTPLUG_BUSES[0]}
        vm = self.scope.vm().boot()

        for name, device, file in (('port', port, PORT % 'port'),
                                   ('serial', serial, TTY)):
            add_chardev(vm, name, self.scope.path(name))
            self.assert_attach_fails(vm, device, self.scope.path(name))
            server = self.server(name)
            vm.cmd('device_add', device)
            self.assert_talks(vm, server, file)
            self.assert_state(vm, name, 'connected')

    def test_created_on_the_command_line(self) -> None:
        """Peers may start between the start of QEMU and its devices."""
        backend = self.scope.daemon(start=False)
        monitor = self.server('monitor')
        vm = self.scope.vm(
            '--preconfig',
            '-device', 'vhost-user-blk-pci,chardev=disk',
            '-device', 'virtserialport,chardev=port,name=port',
            '-device', 'isa-serial,chardev=serial',
            '-mon', 'chardev=monitor,mode=readline',
            '-chardev', f'socket,id=disk,path={backend.path}',
            '-chardev', f'socket,id=port,path={self.scope.path("port")}',
            '-chardev', f'socket,id=serial,path={self.scope.path("serial")}',
            '-chardev', f'socket,id=monitor,path={self.scope.path("monitor")}')
        vm.launch()
        monitor.accept()
        for chardev in 'disk', 'port', 'serial':
            self.assert_state(vm, chardev, 'postponed')

        backend.start()
        port, serial = self.server('port'), self.server('serial')
        vm.cmd('x-exit-preconfig')
        vm.wait_booted()
        for chardev in 'disk', 'port', 'serial', 'monitor':
            self.assert_state(vm, chardev, 'connected')
        self.assert_disk_works(vm)
        self.assert_talks(vm, port, PORT % 'port')
        self.assert_talks(vm, serial, '/dev/ttyS1')
        monitor.send('info status\n')
        monitor.expect('VM status: running')

    def test_backend_restarts(self) -> None:
        """A back-end that started after QEMU is restarted under load."""
        backend = self.scope.sample_backend(start=False)
        vm = self.scope.vm().boot()
        add_chardev(vm, 'c', backend.path, reconnect_ms=100)
        self.assert_state(vm, 'c', 'postponed')

        backend.start()
        vm.cmd('device_add', DISK)
        self.assert_state(vm, 'c', 'connected')
        self.assert_disk_works(vm)

        writer = vm.guest.start(blkverify('vda', first=1000, seed=2))
        vm.guest.wait_records(100)
        backend.kill()
        backend.start()
        vm.guest.wait_records(100)
        vm.guest.run('killall blkverify')
        summary = Summary.parse(vm.guest.wait(writer).output)
        self.assertEqual((summary.verified, summary.errors),
                         (summary.written, 0))

    def test_fio(self) -> None:
        """fio finds no error on a disk whose back-end started after QEMU."""
        backend = self.scope.daemon(start=False)
        vm = self.scope.vm(
            '--preconfig', '-device', 'vhost-user-blk-pci,chardev=c',
            '-chardev', f'socket,id=c,path={backend.path}', fio=True)
        vm.launch()
        backend.start()
        vm.cmd('x-exit-preconfig')
        vm.wait_booted()
        vm.guest.run('fio --name=verify --filename=/dev/vda --rw=randrw '
                     '--bs=4k --size=8M --direct=1 --ioengine=libaio '
                     '--iodepth=8 --verify=crc32c --verify_fatal=1', 120)

    def test_peer_missing_at_start(self) -> None:
        """QEMU exits with status 1 and names the chardev without a peer."""
        for frontend in (['-device', 'vhost-user-blk-pci,chardev=c'],
                         ['-device', 'virtserialport,chardev=c'],
                         ['-serial', 'chardev:c'],
                         ['-mon', 'chardev=c']):
            path = self.scope.path('nobody.sock')
            vm = self.scope.vm(*frontend, '-chardev',
                               f'socket,id=c,path={path}')
            with self.assertRaises(VMLaunchFailure, msg=frontend) as caught:
                vm.launch()
            self.assertEqual(caught.exception.exitcode, 1, frontend)
            self.assertRegex(caught.exception.output or '',
                             f"chardev 'c'.*{path}")


if __name__ == '__main__':
    main()
