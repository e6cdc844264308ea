# SPDX-License-Identifier: GPL-2.0-or-later
"""
A chardev may be created before there is anything to connect to

It connects when a device attaches to it.  Every test here fails on a QEMU
that connects when the chardev is created.
"""
from guest.agent import Summary, blkverify
from guest.vm import VM, HOTPLUG_BUSES
from qemu.machine.machine import VMLaunchFailure

from .testcase import Server, TestCase, main

PORT = r'/dev/$(basename $(dirname $(grep -lx %s ' \
       r'/sys/class/virtio-ports/*/name)))'
TTY = r'/dev/$(basename /sys/bus/pci/devices/*/tty/ttyS*)'


class DeferredConnect(TestCase):
    """Chardevs whose peer comes later, or never"""

    def assert_state(self, vm: VM, chardev: str, state: str) -> None:
        """query-chardev must show this state."""
        info = vm.chardev(chardev)
        self.assertIsNotNone(info)
        self.assertEqual(info.get('state'), state)

    def assert_attach_fails(self, vm: VM, chardev: str, path: str,
                            **device: str) -> None:
        """device_add must name the chardev and its address."""
        reply = vm.qmp('device_add', chardev=chardev, **device)
        self.assertIn('error', reply)
        self.assertIn(f"'{chardev}'", reply['error']['desc'])
        self.assertIn(path, reply['error']['desc'])
        self.assertEqual(vm.cmd('query-status')['status'], 'running')
        vm.guest.run('true')

    def assert_talks(self, vm: VM, server: Server, device: str) -> None:
        """A line must get through from the guest to the host and back."""
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
        """A failed hot-plug harms nothing; with a back-end it succeeds."""
        backend = self.storage_daemon()
        disk = {'driver': 'vhost-user-blk-pci', 'id': 'd',
                'bus': HOTPLUG_BUSES[0]}
        vm = self.vm().boot()

        vm.add_chardev('unused', self.path('nobody.sock'))
        self.assert_state(vm, 'unused', 'postponed')
        vm.cmd('chardev-remove', id='unused')

        vm.add_chardev('c', backend.path)
        for _ in range(2):
            self.assert_attach_fails(vm, 'c', backend.path, **disk)
            self.assert_state(vm, 'c', 'postponed')

        backend.start()
        vm.cmd('device_add', chardev='c', **disk)
        self.assert_state(vm, 'c', 'connected')
        self.assert_disk_works(vm)

        vm.delete_device('d')
        vm.guest.wait_until('[ ! -e /dev/vda ]')
        vm.cmd('chardev-remove', id='c')
        self.assertIsNone(vm.chardev('c'))

    def test_serial_hotplug(self) -> None:
        """virtserialport and pci-serial carry data once they can attach."""
        port = {'driver': 'virtserialport', 'id': 'port', 'name': 'port'}
        serial = {'driver': 'pci-serial', 'id': 'serial',
                  'bus': HOTPLUG_BUSES[0]}
        vm = self.vm().boot()

        for device, file in (port, PORT % 'port'), (serial, TTY):
            chardev = device['id']
            vm.add_chardev(chardev, self.path(chardev))
            self.assert_attach_fails(vm, chardev, self.path(chardev), **device)
            server = self.server(chardev)
            vm.cmd('device_add', chardev=chardev, **device)
            self.assert_talks(vm, server, file)
            self.assert_state(vm, chardev, 'connected')

    def test_created_on_the_command_line(self) -> None:
        """Peers may come up between the start of QEMU and its devices."""
        backend = self.storage_daemon()
        monitor = self.server('monitor')
        vm = self.vm(
            '--preconfig',
            '-device', 'vhost-user-blk-pci,chardev=disk',
            '-device', 'virtserialport,chardev=port,name=port',
            '-device', 'isa-serial,chardev=serial',
            '-mon', 'chardev=monitor,mode=readline',
            '-chardev', f'socket,id=disk,path={backend.path}',
            '-chardev', f'socket,id=port,path={self.path("port")}',
            '-chardev', f'socket,id=serial,path={self.path("serial")}',
            '-chardev', f'socket,id=monitor,path={self.path("monitor")}')
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
        """A disk survives its back-end, also one that came late."""
        backend = self.sample_backend()
        disk = {'driver': 'vhost-user-blk-pci', 'id': 'd',
                'bus': HOTPLUG_BUSES[0]}
        vm = self.vm().boot()
        vm.add_chardev('c', backend.path, reconnect_ms=100)
        self.assert_state(vm, 'c', 'postponed')

        backend.start()
        vm.cmd('device_add', chardev='c', **disk)
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
        """fio finds no error on a disk whose back-end came late."""
        backend = self.storage_daemon()
        vm = self.vm(
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
        """QEMU exits with status 1 and says who could not connect."""
        for frontend in (['-device', 'vhost-user-blk-pci,chardev=c'],
                         ['-device', 'virtserialport,chardev=c'],
                         ['-serial', 'chardev:c'],
                         ['-mon', 'chardev=c']):
            path = self.path('nobody.sock')
            vm = self.vm(*frontend, '-chardev', f'socket,id=c,path={path}')
            with self.assertRaises(VMLaunchFailure, msg=frontend) as caught:
                vm.launch()
            self.assertEqual(caught.exception.exitcode, 1, frontend)
            self.assertRegex(caught.exception.output,
                             f"chardev 'c'.*{path}")


if __name__ == '__main__':
    main()
