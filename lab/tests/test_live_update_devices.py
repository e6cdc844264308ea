# SPDX-License-Identifier: GPL-2.0-or-later
"""
Devices, images and networks that came or went since the VM was started
"""
import re
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from lab import OBJ
from lab.machines.agent import blkverify
from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.disks import Disk
from lab.machines.server_vm import SLOT
from lab.machines.updated_vm import UpdatedVM
from lab.machines.watch import wait_for

from .live_update_case import STOCK, LiveUpdateTest
from .testcase import main


class PluggedDevices(LiveUpdateTest):
    """Devices that a guest uses"""

    def test_plugged_disk(self) -> None:
        """A hot-plugged disk and the options of its chardev are kept."""
        with self.shared() as vm:
            daemon = vm.daemon('plugged')
            self.scope.callback(daemon.kill)
            with vm.qemu.monitor() as monitor:
                Disk(daemon, 'plugged', f',bus={SLOT}',
                     ',reconnect-ms=100').plug(monitor)
            vm.guest.wait_until('[ -b /dev/vdb ]')
            load = vm.guest.start(blkverify('vdb'))
            for _ in range(2):
                vm.assert_updates()
            vm.stop_load()
            reply = vm.guest.wait(load)
            self.assertEqual(reply.status, 0, reply.output)
            # The new QEMU reconnects to the back-end.
            daemon.kill()
            daemon.start()
            vm.guest.verify('vdb', count=100)
            vm.start_load()

            with vm.qemu.monitor() as monitor:
                monitor.cmd('device_del', id='plugged')
                monitor.wait('DEVICE_DELETED')
            vm.assert_updates()
            with vm.qemu.monitor() as monitor:
                monitor.cmd('chardev-remove', id='c-plugged')
            vm.assert_updates()
            self.assertNotIn('plugged', ' '.join(vm.arguments()))
            self.scope.callback(Path(daemon.path).unlink, missing_ok=True)

    def test_unplugged_disk(self) -> None:
        """A disk of the command line that was unplugged stays away."""
        vm = self.updated_vm('-device', 'pcie-root-port,id=slot1,chassis=1')
        daemon = vm.daemon('unplugged')
        vm.qemu.command += [
            '-chardev', f'socket,id=c-1,path={daemon.path}',
            '-device', f'vhost-user-blk-pci,id=one,chardev=c-1,bus={SLOT}']
        vm.boot()
        with vm.qemu.monitor() as monitor:
            monitor.cmd('device_del', id='one')
            monitor.wait('DEVICE_DELETED')
        self.assertIn("'one'", vm.assert_updates().said('command'))
        # The back-end is free, so that the disk can be plugged again.
        with vm.qemu.monitor() as monitor:
            monitor.cmd('chardev-remove', id='c-1')
            Disk(daemon, 'one', ',bus=slot1').plug(monitor)
        vm.guest.wait_until('[ -b /dev/vdb ]')
        self.assertIn("'one'", vm.assert_updates().said('command'))
        vm.guest.verify('vdb', count=100)
        vm.stop_load()

    def test_plugged_memory(self) -> None:
        """A DIMM that was hot-plugged, with a file as memory."""
        vm = self.updated_vm('-smp', '1,maxcpus=2')
        at = vm.qemu.command.index('-m')
        vm.qemu.command[at + 1] += ',slots=2,maxmem=1G'
        vm.boot()
        more = f'{vm.memory}-more'
        with vm.qemu.monitor() as monitor:
            monitor.cmd('object-add', qom_type='memory-backend-file',
                        id='more', size=128 << 20, share=True, mem_path=more)
            monitor.cmd('device_add', driver='pc-dimm', id='dimm',
                        memdev='more')
        for _ in range(2):
            outcome = vm.assert_updates()
            self.assertEqual(outcome.result['mode'], IGNORE_SHARED)
        with vm.qemu.monitor() as monitor:
            dimms = monitor.cmd('query-memory-devices')
        self.assertEqual([dimm['data']['id'] for dimm in dimms], ['dimm'])
        vm.stop_load()

    def test_plugged_cpu(self) -> None:
        """A CPU that was hot-plugged."""
        vm = self.updated_vm('-smp', '1,maxcpus=2').boot()
        with vm.qemu.monitor() as monitor:
            cpus: Any = monitor.cmd('query-hotpluggable-cpus')
            free = next(cpu for cpu in cpus if 'qom-path' not in cpu)
            monitor.cmd('device_add', driver=free['type'], id='cpu1',
                        **free['props'])
        vm.guest.wait_until('[ -d /sys/devices/system/cpu/cpu1 ]')
        vm.guest.run('echo 1 >/sys/devices/system/cpu/cpu1/online')
        for _ in range(2):
            vm.assert_updates()
        self.assertEqual(vm.guest.run('grep -c ^processor /proc/cpuinfo'),
                         '2')
        vm.stop_load()


class CarriedDevices(LiveUpdateTest):
    """
    Devices of a VM without a guest

    In tests with STOCK, live-update guesses with which options devices were
    created; test_live_update_created has the tests of a QEMU that tells it.
    """

    # Removed

    def test_removed(self) -> None:
        """Disks, networks and objects that were removed do not come back."""
        vm = self.bare('-device', 'qemu-xhci,id=xhci')
        image = make_disk(str(vm.folder / 'image'))
        other = make_disk(str(vm.folder / 'other'))
        vm.qemu.command += [
            '-drive', f'if=none,id=drive,file={image},format=raw',
            '-device', 'usb-storage,id=one,drive=drive',
            '-blockdev', f'driver=file,node-name=file,filename={other}',
            '-blockdev', '{"driver":"raw","node-name":"node","file":"file"}',
            '-device', 'usb-storage,id=two,drive=node',
            '-netdev', 'socket,id=net,udp=127.0.0.1:1,localaddr=127.0.0.1:0',
            '-netdev', 'hubport,id=kept,hubid=1', '-object',
            'filter-dump,id=dump,netdev=kept,file=' + str(vm.folder / 'f'),
            '-object', 'rng-random,id=rng,filename=/dev/urandom',
            '-object', 'iothread,id=thread']
        self.start_paused(vm)
        vm.assert_refuses('id=net')
        with vm.qemu.monitor() as monitor:
            for name in 'one', 'two':
                monitor.cmd('device_del', id=name)
            wait_for('the disks are gone', lambda: not monitor.cmd(
                'query-block'))
            for name in 'node', 'file':
                monitor.cmd('blockdev-del', node_name=name)
            monitor.cmd('netdev_del', id='net')
            for name in 'rng', 'dump':
                monitor.cmd('object-del', id=name)
        said = vm.assert_runs(fault=STOCK).said('command')
        for name in 'drive', 'node', 'file', 'net', 'rng', 'dump':
            self.assertIn(f"'{name}' was removed", said)
        with vm.qemu.monitor() as monitor:
            self.assertEqual(monitor.cmd('query-block'), [])
            self.assertEqual(monitor.cmd('query-named-block-nodes'), [])
            objects: Any = monitor.cmd('qom-list', path='/objects')
        names = [item['name'] for item in objects]
        self.assertIn('thread', names)
        self.assertNotIn('rng', names)
        words = vm.arguments()
        self.assertIn('hubport,id=kept,hubid=1', words)
        self.assertEqual(words.count('-netdev'), 1)

    def test_removed_under_device(self) -> None:
        """A disk has another image than before; the old node was removed."""
        null = '{"driver":"null-co","size":65536,"node-name":"%s"}'
        vm = self.bare(
            '-device', 'qemu-xhci', '-blockdev', null % 'first',
            '-blockdev', null % 'second',
            '-device', 'usb-storage,drive=first')
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-mirror', job_id='job', device='first',
                        target='second', sync='full')
            monitor.wait('BLOCK_JOB_READY')
            monitor.cmd('block-job-complete', device='job')
            monitor.wait('BLOCK_JOB_COMPLETED')
            monitor.cmd('blockdev-del', node_name='first')
        for fault in (), STOCK:
            vm.assert_refuses("'first' was removed", 'usb-storage',
                              fault=fault)

    # Plugged

    def plug_all(self, vm: UpdatedVM, image: str) -> Dict[str, Any]:
        """Hot-plug devices with many options; returns their description."""
        with vm.qemu.monitor() as monitor:
            monitor.cmd('device_del', id='keyboard')
            monitor.wait('DEVICE_DELETED')
            monitor.cmd('object-add', qom_type='rng-random', id='source',
                        filename='/dev/urandom')
            monitor.cmd('device_add', driver='virtio-rng-pci', id='rng',
                        rng='source', bus='slot1')
            monitor.cmd('object-add', qom_type='memory-backend-memfd',
                        id='more', size=128 << 20, share=True)
            monitor.cmd('device_add', driver='pc-dimm', id='dimm',
                        memdev='more')
            monitor.cmd('object-add', qom_type='iothread', id='thread',
                        poll_max_ns=0)
            monitor.cmd('blockdev-add', node_name='file', driver='file',
                        filename=image, auto_read_only=True, discard='unmap',
                        cache={'direct': True})
            monitor.cmd('blockdev-add', node_name='disk', driver='qcow2',
                        file='file', detect_zeroes='on')
            monitor.cmd('device_add', driver='virtio-blk-pci', id='blk',
                        drive='disk', num_queues=2, bus=SLOT,
                        iothread_vq_mapping=[
                            {'iothread': 'thread', 'vqs': [0]},
                            {'iothread': 'fixed', 'vqs': [1]}])
            monitor.cmd('device_add', driver='usb-mouse', id='mouse')
            monitor.cmd('device_add', driver='virtio-rng-pci', id='default',
                        bus='slot2')
        return self.plugged(vm)

    def plugged(self, vm: UpdatedVM) -> Dict[str, Any]:
        """A description of the devices that plug_all has hot-plugged."""
        def known(nodes: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
            names = {node['node-name']: node['file'] for node in nodes}
            return [{
                'name': self.unnamed(node['node-name']), **{
                    key: node[key] for key in (
                        'drv', 'ro', 'cache', 'detect_zeroes', 'file')},
                'children': [
                    (edge['child'], self.unnamed(edge['node-name']),
                     names[edge['node-name']])
                    for edge in node['children']]} for node in nodes]

        with vm.qemu.monitor() as monitor:
            return {
                'nodes': sorted(known(monitor.cmd(
                    'query-named-block-nodes')), key=repr),
                **{name: monitor.cmd('qom-get', path=path, property=name)
                   for path, name in (
                       ('/machine/peripheral/rng', 'rng'),
                       ('/machine/peripheral/blk', 'iothread-vq-mapping'),
                       ('/machine/peripheral/dimm', 'memdev'),
                       ('/objects/more', 'hugetlbsize'),
                       ('/objects/thread', 'poll-max-ns'))},
                'usb': re.sub('Device [0-9.]+', '', monitor.cmd(
                    'human-monitor-command', command_line='info usb'))}

    @staticmethod
    def unnamed(name: str) -> str:
        """The name of a block node without a number that QEMU has made up."""
        return re.sub('#.*', '', name)

    def test_plugged(self) -> None:
        """Hot-plugged devices have the same description after an update."""
        vm = self.bare(
            '-device', 'pcie-root-port,id=slot1,chassis=1',
            '-device', 'pcie-root-port,id=slot2,chassis=2',
            '-device', 'qemu-xhci', '-device', 'usb-kbd,id=keyboard',
            '-device', 'usb-tablet,id=tablet', '-object', 'iothread,id=fixed',
            ram=CPR)
        at = vm.qemu.command.index('-m')
        vm.qemu.command[at + 1] += ',slots=2,maxmem=1G'
        make_disk(str(vm.folder / 'base'))
        image = str(vm.folder / 'image')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        '-b', 'base', '-F', 'raw', image], check=True)
        self.start_paused(vm)
        plugged = self.plug_all(vm, image)
        self.assertNotIn('Port 1,', plugged['usb'])
        for word in "'disk'", 'discard':
            self.assertIn(word, vm.run('--dry-run', fault=STOCK).said(
                'command'))
        for _ in range(2):
            outcome = vm.assert_runs(fault=STOCK)
            self.assertEqual(outcome.result['mode'], CPR)
            self.assertEqual(self.plugged(vm), plugged)

    def test_plugged_image(self) -> None:
        """An image whose options QEMU does not report is refused."""
        vm = self.bare('-device', 'qemu-xhci')
        image = make_disk(str(vm.folder / 'image'))
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='lonely', driver='null-co',
                        size=1 << 20)
            monitor.cmd('object-add', qom_type='iothread', id='spare')
        said = vm.run('--dry-run', fault=STOCK).said('command')
        for name in 'lonely', 'spare':
            self.assertIn(f"'{name}'", said)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='disk',
                        driver='copy-on-read',
                        file={'driver': 'file', 'filename': image})
            monitor.cmd('device_add', driver='usb-storage', id='stick',
                        drive='disk')
        vm.assert_refuses("'stick'", "'disk'", 'copy-on-read', fault=STOCK)

    def test_changed_image(self) -> None:
        """A block node that differs from the command line is noticed."""
        vm = self.bare('-device', 'qemu-xhci')
        image = str(vm.folder / 'image')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        image, '1M'], check=True)
        vm.qemu.command += [
            '-blockdev', f'driver=qcow2,node-name=disk,file.filename={image},'
            'file.driver=file', '-device', 'usb-storage,drive=disk']
        self.start_paused(vm)
        vm.assert_runs()
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-reopen', options=[{
                'driver': 'qcow2', 'node-name': 'disk', 'detect-zeroes': 'on',
                'file': {'driver': 'file', 'filename': image}}])
        outcome = vm.run(fault=STOCK)
        self.assertEqual(outcome.status, 1, outcome)
        self.assertIn("the block node 'disk'", outcome.message)

    # In use

    def test_block_work(self) -> None:
        """Jobs, exports and bitmaps are refused; limits cause a warning."""
        vm = self.bare('-device', 'qemu-xhci')
        image = vm.folder / 'image'
        image.write_bytes(bytes(1 << 20))
        vm.qemu.command += [
            '-drive', f'if=none,id=d,node-name=n,file={image},format=raw,'
            'throttling.iops-total=10', '-device', 'usb-storage,drive=d,id=s',
            '-blockdev',
            '{"driver":"null-co","node-name":"null","size":65536}']
        self.start_paused(vm)
        self.assertEqual(vm.run('--dry-run').said('limits'), '')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('human-monitor-command', command_line=(
                'block_set_io_throttle d 0 0 0 1 0 0'))
        self.assertIn("'d'", vm.run('--dry-run').said('limits'))
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='target', size=1 << 20,
                        driver='null-co')
            monitor.cmd('blockdev-mirror', job_id='copy', device='n',
                        target='target', sync='full')
            monitor.wait('BLOCK_JOB_READY')
        vm.assert_refuses("'copy'", 'block-job-cancel')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('block-job-cancel', device='copy', force=True)
            monitor.wait('BLOCK_JOB_CANCELLED')
            monitor.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': f'{vm.folder}/nbd'}})
            monitor.cmd('block-export-add', id='out', type='nbd',
                        node_name='null')
        vm.assert_refuses("'out'", 'block-export-del')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('nbd-server-stop')
            monitor.do(lambda qmp: qmp.execute(
                'block-dirty-bitmap-add', {'node': 'n', 'name': 'changed'}))
        vm.assert_refuses("'changed'", 'block-dirty-bitmap-remove')

    def test_networks(self) -> None:
        """Networks that only one QEMU can use are refused."""
        vm = self.bare()
        self.start_paused(vm)
        for words in 'vhost-user,id=n,chardev=c', 'tap,id=n':
            vm.assert_refuses(words, 'unplug', command=[
                *vm.qemu.command, '-netdev', words])
        # A netdev was replaced by another one with the same id.
        vm = self.bare('-netdev', 'user,id=net')
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('netdev_del', id='net')
            monitor.do(lambda qmp: qmp.execute('netdev_add', {
                'type': 'socket', 'id': 'net', 'mcast': '230.0.0.1:1234'}))
        vm.assert_refuses('id=net', 'socket', fault=STOCK)


if __name__ == '__main__':
    main()
