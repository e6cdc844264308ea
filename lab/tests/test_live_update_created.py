# SPDX-License-Identifier: GPL-2.0-or-later
"""
Updates of a QEMU that tells what was created: ids that were used again,
things that were changed, and places that QEMU chose
"""
import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from lab import OBJ
from lab.machines.backend import make_disk
from lab.machines.updated_vm import UpdatedVM

from .live_update_case import STOCK, LiveUpdateTest
from .testcase import main


class Created(LiveUpdateTest):
    """What was created while a VM ran is in the new QEMU"""

    def assert_same(self, vm: UpdatedVM, *kinds: str, updates: int = 2
                    ) -> None:
        """After updates, QEMU tells that the same was created."""
        before = self.created(vm, kinds)
        for _ in range(updates):
            vm.assert_runs()
            self.assertEqual(self.created(vm, kinds), before)

    def created(self, vm: UpdatedVM, kinds: 'tuple[str, ...]'
                ) -> Dict[str, Any]:
        """Options of what was created, by kind and id."""
        with vm.qemu.monitor() as monitor:
            answer: Any = monitor.cmd('query-created')
        return {f'{item["kind"]} {item["id"]}': item['options']
                for item in answer if item['kind'] in kinds}

    @staticmethod
    def ask(vm: UpdatedVM, command: str, **arguments: Any) -> Any:
        """Execute a command of the VM's monitor."""
        with vm.qemu.monitor() as monitor:
            return monitor.cmd(command, **arguments)

    def listener(self, name: str) -> str:
        """The path of a UNIX socket that listens."""
        server = socket.socket(socket.AF_UNIX)
        self.scope.callback(server.close)
        server.bind(name)
        server.listen(8)
        return name

    # Ids that were used again

    def test_again(self) -> None:
        """An object, a netdev, a node and their devices are those of now."""
        vm = self.bare(
            '-device', 'qemu-xhci', '-device', 'pcie-root-port,id=slot1,'
            'chassis=1', '-object', 'rng-random,id=r,filename=/dev/urandom',
            '-object', 'iothread,id=t', '-netdev', 'user,id=n')
        images = [make_disk(str(vm.folder / name)) for name in ('x', 'y')]
        vm.qemu.command += ['-blockdev', 'driver=file,node-name=b,filename=' +
                            images[0], '-device', 'usb-storage,id=d,drive=b']
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('device_del', id='d')
            monitor.wait('DEVICE_DELETED')
            for name in 'r', 't':
                monitor.cmd('object-del', id=name)
            monitor.cmd('netdev_del', id='n')
            monitor.cmd('blockdev-del', node_name='b')
            monitor.cmd('object-add', qom_type='rng-builtin', id='r')
            monitor.cmd('object-add', qom_type='iothread', id='t',
                        poll_max_ns=4711)
            monitor.do(lambda qmp: qmp.execute('netdev_add', {
                'type': 'user', 'id': 'n', 'net': '10.9.0.0/24'}))
            monitor.cmd('blockdev-add', driver='file', node_name='b',
                        filename=images[1])
            monitor.cmd('device_add', driver='usb-storage', id='d', drive='b')
            monitor.cmd('device_add', driver='virtio-net-pci', id='card',
                        netdev='n', bus='slot1')
        nodes = self.ask(vm, 'query-named-block-nodes')
        self.assert_same(vm, 'object', 'netdev', 'blockdev')
        self.assertEqual(
            [node['file'] for node
             in self.ask(vm, 'query-named-block-nodes')],
            [node['file'] for node in nodes])
        self.assertEqual(self.ask(vm, 'qom-get', path='/objects/t',
                                  property='poll-max-ns'), 4711)
        self.assertIn('10.9.0.0', self.hmp(vm, 'info network'))

    def hmp(self, vm: UpdatedVM, command: str) -> str:
        """The answer of the human monitor."""
        return str(self.ask(vm, 'human-monitor-command',
                            command_line=command))

    def test_memory_again(self) -> None:
        """A DIMM has the file that has its id now."""
        vm = self.bare('-object', 'memory-backend-file,id=m,share=on,'
                       'size=128M,mem-path=/dev/shm/lab-created-x')
        for name in 'x', 'y':
            path = Path(f'/dev/shm/lab-created-{name}')
            self.scope.callback(path.unlink, missing_ok=True)
            make_disk(str(path), 128)
        at = vm.qemu.command.index('-m')
        vm.qemu.command[at + 1] += ',slots=2,maxmem=1G'
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('object-del', id='m')
            monitor.cmd('object-add', qom_type='memory-backend-file', id='m',
                        size=128 << 20, share=True,
                        mem_path='/dev/shm/lab-created-y')
            monitor.cmd('device_add', driver='pc-dimm', id='dimm', memdev='m')
        self.assert_same(vm, 'object')
        self.assertEqual(self.ask(vm, 'qom-get', path='/objects/m',
                                  property='mem-path'),
                         '/dev/shm/lab-created-y')

    # Chardevs

    def test_chardevs(self) -> None:
        """Chardevs that were changed, created again, or added."""
        vm = self.bare('-device', 'virtio-serial-pci,id=vs',
                       '-chardev', 'null,id=a', '-chardev', 'null,id=b')
        vm.qemu.drop('-serial')
        vm.qemu.command += ['-serial', 'chardev:a']
        folder = vm.qemu.folder
        self.start_paused(vm)
        path = self.listener(f'{folder}/listener')
        abstract = f'lab-created-{vm.folder.name}'
        self.listener('\0' + abstract)

        def unix(name: str, **more: Any) -> Dict[str, Any]:
            return {'type': 'unix', 'data': {'path': name, **more}}

        def backend(addr: Dict[str, Any], **more: Any) -> Dict[str, Any]:
            return {'type': 'socket', 'data': {'addr': addr, **{
                key.replace('_', '-'): value for key, value
                in more.items()}}}

        with vm.qemu.monitor() as monitor:
            monitor.cmd('chardev-change', id='a', backend=backend(
                unix(path), server=False))
            monitor.cmd('chardev-remove', id='b')
            monitor.cmd('chardev-add', id='b', backend=backend(
                unix(abstract, abstract=True), server=False,
                reconnect_ms=50, logfile=f'{folder}/log'))
            monitor.cmd('chardev-add', id='server', backend=backend(
                unix(f'{folder}/server')))
            monitor.cmd('chardev-add', id='ring', backend={
                'type': 'ringbuf', 'data': {'size': 64}})
            for name in 'b', 'server':
                monitor.cmd('device_add', driver='virtserialport',
                            id=f'port-{name}', chardev=name)
        before = self.filenames(vm)
        for _ in range(2):
            vm.assert_runs()
            self.assertEqual(self.filenames(vm), before)
            self.assertTrue(Path(f'{folder}/server').is_socket())
            words = next(word for word in vm.arguments() if 'id=b' in word)
            self.assertIn(f'logfile={folder}/log', words)
            self.assertIn('abstract=on', words)

    def filenames(self, vm: UpdatedVM) -> Dict[str, str]:
        """The file names of chardevs, without what an update changes."""
        return {item['label']: re.sub(
                    r'^disconnected:|<->.*|\.live-update-\w+/', '',
                    item['filename'])
                for item in self.ask(vm, 'query-chardev')}

    def test_chardev_without_option(self) -> None:
        """A chardev that the command line cannot create is refused."""
        vm = self.bare()
        self.start_paused(vm)
        self.ask(vm, 'chardev-add', id='inet', backend={
            'type': 'socket', 'data': {
                'server': True, 'wait': False, 'addr': {
                    'type': 'inet', 'data': {
                        'host': '127.0.0.1', 'port': '0',
                        'keep-alive': True}}}})
        vm.assert_refuses("'inet'", 'keep-alive')

    # Block nodes

    def test_blockdevs(self) -> None:
        """Reopened nodes, nodes of any driver, and an overlay."""
        vm = self.bare('-device', 'qemu-xhci')
        image, top, over = (str(vm.folder / name)
                            for name in ('image', 'top', 'over'))
        self.qcow2(image, top, over)
        file = {'driver': 'file', 'filename': image}
        vm.qemu.command += [
            '-blockdev', f'driver=qcow2,node-name=disk,file.filename={image},'
            'file.driver=file', '-blockdev',
            '{"driver":"null-co","size":65536,"node-name":"n"}',
            '-device', 'usb-storage,id=one,drive=disk']
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-reopen', options=[{
                'driver': 'qcow2', 'node-name': 'disk',
                'detect-zeroes': 'on', 'file': file}])
            monitor.cmd('object-add', qom_type='throttle-group', id='group')
            monitor.cmd('qom-set', path='/objects/group', property='limits',
                        value={'iops-total': 9})
            monitor.cmd('blockdev-add', driver='throttle', node_name='slow',
                        throttle_group='group', file={
                            'driver': 'copy-on-read', 'file': {
                                'driver': 'file', 'filename': top}})
            monitor.cmd('device_add', driver='usb-storage', id='two',
                        drive='slow')
            monitor.cmd('blockdev-add', driver='null-aio', node_name='spare')
        self.assert_same(vm, 'object', 'blockdev')
        self.assertEqual(self.ask(vm, 'qom-get', path='/objects/group',
                                  property='limits')['iops-total'], 9)

        # A snapshot of the plugged disk
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', driver='qcow2', node_name='over',
                        backing=None,
                        file={'driver': 'file', 'filename': over})
            monitor.cmd('blockdev-snapshot', node='slow', overlay='over')
        before = self.nodes(vm)
        self.assertIn('"over"', str(before).replace("'", '"'))
        self.ask(vm, 'device_del', id='one')
        vm.assert_runs()
        self.assertEqual(self.nodes(vm), before)

        # The same of a node of the command line, and of a disk that is
        # plugged
        third, fourth, fifth = (str(vm.folder / name) for name in '345')
        self.qcow2(third, fourth, fifth)
        with vm.qemu.monitor() as monitor:
            for name, path in ('low', third), ('high', fourth):
                if name == 'low':
                    monitor.cmd('blockdev-add', driver='qcow2',
                                node_name='top', backing=None,
                                file={'driver': 'file', 'filename': fifth})
                    monitor.cmd('blockdev-snapshot', node='over',
                                overlay='top')
                else:
                    monitor.cmd('device_add', driver='usb-storage',
                                id='three', drive='low')
                monitor.cmd('blockdev-add', driver='qcow2', node_name=name,
                            backing=None,
                            file={'driver': 'file', 'filename': path})
            monitor.cmd('blockdev-snapshot', node='low', overlay='high')
        before = self.nodes(vm)
        vm.assert_runs()
        self.assertEqual(self.nodes(vm), before)

    def nodes(self, vm: UpdatedVM) -> List[Any]:
        """The named nodes, with their children."""
        return sorted(
            (node['node-name'], sorted(
                edge['child'] + re.sub('#.*', '', edge['node-name'])
                for edge in node['children']))
            for node in self.ask(vm, 'query-named-block-nodes')
            if not node['node-name'].startswith('#'))

    def qcow2(self, *paths: str) -> None:
        """Create images of 1 MiB."""
        for path in paths:
            subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                            path, '1M'], check=True)

    # Devices

    def test_form_of_hmp(self) -> None:
        """A device that HMP has plugged into one that QMP has plugged."""
        vm = self.bare('-device', 'qemu-xhci,id=x')
        self.start_paused(vm)
        self.ask(vm, 'device_add', driver='usb-hub', id='hub')
        self.hmp(vm, 'device_add usb-kbd,id=kbd,bus=x.0,port=1.3,'
                     'msos-desc=off')
        usb = self.usb(vm)
        self.assertIn('1.3', usb)
        for _ in range(2):
            vm.assert_runs()
            self.assertEqual(self.usb(vm), usb)

    def usb(self, vm: UpdatedVM) -> str:
        """The USB devices and their ports."""
        return re.sub('Device [0-9.]+', '', self.hmp(vm, 'info usb'))

    def test_places(self) -> None:
        """Places that QEMU chose stay, also those of a stock QEMU."""
        for fault in (), STOCK:
            vm = self.bare('-device', 'virtio-scsi-pci,id=s',
                           '-device', 'virtio-serial-pci,id=vs')
            for name in 'x', 'y':
                image = make_disk(str(vm.folder / name))
                vm.qemu.command += [
                    '-drive', f'if=none,id=d{name},format=raw,file={image}',
                    '-device', f'scsi-hd,id={name},drive=d{name},bus=s.0',
                    '-device', f'virtserialport,id=p{name},bus=vs.0',
                    '-object', f'memory-backend-ram,id=m{name},size=128M',
                    '-device', f'pc-dimm,id=dimm{name},memdev=m{name}']
            at = vm.qemu.command.index('-m')
            vm.qemu.command[at + 1] += ',slots=4,maxmem=1G'
            self.start_paused(vm)
            before = self.places(vm)
            for name in 'x', 'px':
                self.ask(vm, 'device_del', id=name)
            vm.assert_runs(fault=fault)
            self.assertEqual(self.places(vm), before)

    def places(self, vm: UpdatedVM) -> List[Any]:
        """Where the devices are."""
        return [self.ask(vm, 'qom-get', path=f'/machine/peripheral/{name}',
                         property=place)
                for name, place in (('y', 'scsi-id'), ('y', 'lun'),
                                    ('py', 'nr'), ('dimmy', 'addr'),
                                    ('dimmy', 'slot'), ('s', 'addr'))]

    def test_order(self) -> None:
        """What was added is created in an order that works."""
        vm = self.bare('-device', 'qemu-xhci,id=x')
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('object-add', qom_type='secret', id='key', data='abc')
            monitor.cmd('blockdev-add', driver='null-co', node_name='low',
                        size=65536)
            monitor.cmd('blockdev-add', driver='raw', node_name='high',
                        file='low')
            monitor.cmd('device_add', driver='usb-hub', id='hub', port='1')
            monitor.cmd('device_add', driver='usb-storage', id='disk',
                        drive='high', port='1.1')
        self.assert_same(vm, 'object', 'blockdev', 'netdev')
        words = vm.arguments()
        self.assertEqual(
            [json.loads(words[at + 1])['id'] for at, word in enumerate(words)
             if word == '-device' and words[at + 1].startswith('{')],
            ['hub', 'disk'])


if __name__ == '__main__':
    main()
