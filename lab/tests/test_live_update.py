# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/live-update updates VMs of many kinds, and changes nothing but QEMU
"""
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List

from qemu.live_update.process import Process

from lab import OBJ
from lab.machines.agent import blkverify
from lab.machines.backend import make_disk
from lab.machines.chain import COPY, CPR, IGNORE_SHARED
from lab.machines.disks import Disk
from lab.machines.monitor import Monitor
from lab.machines.server_vm import SLOT
from lab.machines.tool import TOOL, Outcome
from lab.machines.updated_vm import UpdatedVM
from lab.machines.vm import MEMFD
from lab.machines.watch import wait_for

from .live_update_case import NOBODY, RAM, LiveUpdateTest
from .testcase import main


def arguments(pid: int) -> List[str]:
    """The command line of a process."""
    return Process(pid).arguments


class LiveUpdate(LiveUpdateTest):
    """Updates that succeed"""

    # Memory

    def check_mode(self, vm: UpdatedVM, mode: str, *reason: str) -> None:
        """A VM must be updated again and again, with memory in this way."""
        vm.boot()
        vm.guest.run('echo said before >/dev/ttyS0')
        lengths = []
        for _ in range(3):
            outcome = vm.assert_updates()
            self.assertEqual(outcome.result['mode'], mode)
            for word in (f'{mode}:', *reason):
                self.assertIn(word, outcome.said('memory'))
            stopped, resumed = outcome.result['paused']
            self.assertLess(stopped, resumed)
            self.assertLess(resumed - stopped, 5)
            lengths.append(len(' '.join(arguments(vm.qemu.pid))))
        self.assertEqual(lengths, lengths[:1] * 3)
        vm.guest.run('echo said after >/dev/ttyS0')
        wait_for('the guest said so', lambda: 'said after' in
                 vm.qemu.console.read_text('utf-8'))
        self.assertIn('said before', vm.qemu.console.read_text('utf-8'))
        vm.stop_load()
        vm.qemu.quit()

    def test_file(self) -> None:
        """Memory is a file that both QEMUs open; there are two disks."""
        self.check_mode(self.updated_vm(disks=2), IGNORE_SHARED, 'shared file')

    def test_memfd(self) -> None:
        """Memory is a memfd that the new QEMU is given."""
        self.check_mode(self.updated_vm(ram=CPR), CPR, 'file descriptors')

    def test_copy(self) -> None:
        """Memory is a memfd, and the machine does not share the rest."""
        self.check_mode(self.updated_vm(ram=MEMFD), COPY, 'aux-ram-share=on')

    def test_memory_of_its_own(self) -> None:
        """Memory is not shared; the disk is QEMU's own."""
        vm = self.updated_vm(ram=RAM, disks=0)
        image = make_disk(str(vm.folder / 'own.img'))
        vm.qemu.command += ['-drive', f'if=none,id=own,file={image},'
                            'format=raw', '-device',
                            'virtio-blk-pci,id=own,drive=own']
        vm.boot(load=False)
        load = vm.guest.start(blkverify('vda'))
        outcome = vm.assert_updates()
        self.assertIn('share=on', outcome.said('memory'))
        vm.guest.wait_records(300)
        vm.guest.run('killall blkverify')
        reply = vm.guest.wait(load)
        self.assertEqual(reply.status, 0, reply.output)

    def test_two_kinds_of_memory(self) -> None:
        """A file stays where it is, what was plugged is copied."""
        vm = self.updated_vm(
            '-object', 'memory-backend-ram,id=more,size=128M')
        at = vm.qemu.command.index('-m')
        vm.qemu.command[at + 1] += ',slots=2,maxmem=1G'
        vm.qemu.command += ['-device', 'pc-dimm,id=dimm,memdev=more']
        vm.boot()
        outcome = vm.assert_updates()
        self.assertEqual(outcome.result['mode'], IGNORE_SHARED)
        self.assertIn("'more'", outcome.said('memory'))
        vm.stop_load()

    # Ways to start a VM

    def test_foreground(self) -> None:
        """A VM without -daemonize: what it prints goes where it went."""
        vm = self.updated_vm()
        vm.qemu.drop('-daemonize')
        vm.boot()
        for _ in range(2):
            vm.assert_updates()
            self.assertEqual(os.readlink(f'/proc/{vm.qemu.pid}/fd/2'),
                             str(vm.qemu.log))
        vm.stop_load()

    def test_script(self) -> None:
        """The new QEMU is started by a script."""
        with self.shared() as vm:
            script = vm.wrap('$qemu "$@"')
            vm.assert_updates(binary=script)
            vm.assert_updates(binary=vm.wrap('exec $qemu "$@"'))

    def test_relative_paths(self) -> None:
        """Names begin at the folder where the VM was started."""
        for daemonize in True, False:
            vm = self.updated_vm()
            folder = f'{vm.qemu.folder}/'
            # The new QEMU is found by it.
            name = vm.qemu.folder.name
            vm.qemu.command = [
                word if word == f'{folder}console' else
                word.replace(folder, '') for word in vm.qemu.command]
            vm.qemu.command += ['-chardev', 'null,id=null,logfile=null-log']
            if not daemonize:
                vm.qemu.drop('-daemonize')
            self.assertEqual(folder, f'{vm.folder}/{name}/')
            vm.qemu.start(cwd=folder, env={**os.environ, 'PWD': folder[:-1]})
            vm.qemu.connect()
            vm.guest.wait_booted()
            vm.start_load()
            for _ in range(2):
                vm.assert_updates()
            vm.stop_load()
            vm.close()

    def test_machine_alias(self) -> None:
        """-machine q35 becomes the version that the VM has."""
        with self.shared() as vm:
            vm.assert_updates()
            words = arguments(vm.qemu.pid)
            machine = words[words.index('-machine') + 1].split(',')
            self.assertRegex(machine[0], r'pc-q35-\d+\.\d+')
            self.assertEqual(machine[1:], ['usb=off', 'memory-backend=ram'])

    def test_paused(self) -> None:
        """A paused VM stays paused."""
        with self.shared() as vm:
            with vm.qemu.monitor() as monitor:
                monitor.cmd('stop')
            for _ in range(2):
                outcome = vm.assert_updates()
                self.assertIn('paused', outcome.said('VM'))
            with vm.qemu.monitor() as monitor:
                monitor.cmd('cont')
            vm.check_alive()

    def test_given_command_line(self) -> None:
        """What follows "--" is the VM's command chain."""
        with self.shared() as vm:
            given = [word for word in vm.qemu.command if word != '-daemonize']
            vm.assert_updates(command=[
                *given, '-name', 'renamed', '-trace', 'no_such_event'])
            words = arguments(vm.qemu.pid)
            self.assertIn('renamed', words)
            self.assertNotIn('-daemonize', words)
            # Without the program's name, too.
            vm.assert_updates(command=vm.qemu.command[1:])
            self.assertNotIn('renamed', arguments(vm.qemu.pid))

    # Names

    def test_names(self) -> None:
        """Sockets and the pid file are at their names, for their users."""
        vm = self.updated_vm()
        vm.qemu.drop('-serial')
        serial = vm.qemu.folder / 'serial.sock'
        other = vm.folder / 'other'
        other.mkdir()
        vm.qemu.command += [
            '-serial', f'unix:{serial},server=on,wait=off',
            '-monitor', f'unix:{other}/hmp,,1.sock,server,nowait',
            '-chardev', f'socket,id=qmp2,path={other}/qmp,server=on,wait=off',
            '-mon', 'chardev=qmp2,mode=control']
        hmp = other / 'hmp,1.sock'
        vm.boot()
        for path in serial, hmp:
            path.chmod(0o660)
            os.chown(path, 12345, 54321)
        Path(vm.qemu.qmp).chmod(0o600)
        vm.qemu.pid_file.chmod(0o640)
        for round_ in range(2):
            vm.assert_updates()
            for path in serial, hmp:
                status = path.stat()
                self.assertEqual(
                    (status.st_mode & 0o777, status.st_uid, status.st_gid),
                    (0o660, 12345, 54321))
            self.assertEqual(sorted(os.listdir(other)), ['hmp,1.sock', 'qmp'])
            self.assertEqual(vm.qemu.pid_file.stat().st_mode & 0o777, 0o640)
            self.assertEqual(int(vm.qemu.pid_file.read_text('ascii')),
                             vm.qemu.pid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(serial))
                vm.guest.run(f'echo round {round_} >/dev/ttyS0')
                self.assertIn(f'round {round_}', client.recv(1000).decode())
            with Monitor(f'{other}/qmp') as monitor:
                self.assertEqual(monitor.cmd('query-status')['status'],
                                 'running')
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(hmp))
                self.assertIn('QEMU', client.recv(1000).decode())
        # Any of its monitors will do.
        vm.qemu.qmp = f'{other}/qmp'
        vm.assert_updates()
        vm.stop_load()

    # What has come and gone since the VM was started

    def test_plugged_disk(self) -> None:
        """A disk that was plugged, with all that its chardev was told."""
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
            # The new QEMU knows how to reach the back-end.
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
            self.assertNotIn('plugged', ' '.join(arguments(vm.qemu.pid)))
            self.scope.callback(Path(daemon.path).unlink, missing_ok=True)

    def test_unplugged_disk(self) -> None:
        """A disk of the command line that is not there any more."""
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
        # The back-end is free: nobody holds on to the connection.
        with vm.qemu.monitor() as monitor:
            monitor.cmd('chardev-remove', id='c-1')
            Disk(daemon, 'one', ',bus=slot1').plug(monitor)
        vm.guest.wait_until('[ -b /dev/vdb ]')
        self.assertIn("'one'", vm.assert_updates().said('command'))
        vm.guest.verify('vdb', count=100)
        vm.stop_load()

    def test_plugged_memory(self) -> None:
        """Memory that was plugged, as a file and as a memfd."""
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
        """A processor that was plugged."""
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

    # What is said

    def test_dry_run(self) -> None:
        """It changes nothing, and says what would be done."""
        with self.shared() as vm:
            before = vm.state()
            outcome = vm.run('--dry-run')
            self.assertEqual(outcome.result['status'], 'possible')
            self.assertEqual(vm.state(), before)
            plan = next(event for event in outcome.events
                        if event['event'] == 'plan')
            self.assertEqual(plan['command'][0], str(vm.binary))
            self.assertIn('-incoming', plan['command'])

            vm.assert_fails(1, 'no-such', options=['--dry-run'],
                            binary=vm.folder / 'no-such')

    def test_text(self) -> None:
        """A person is told in lines that fit a terminal."""
        with self.shared() as vm:
            for option in '--dry-run', '--timeout=60':
                done = subprocess.run(
                    [TOOL, '--qmp', vm.qemu.qmp, '--binary',
                     str(vm.binary), option], stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ''))
                self.assertRegex(done.stdout, r'(?m)^ok +VM: ')
                # All but the command, which is to be copied, and long names.
                for line in re.sub(r'(?s)\n  \S.*?\n\n', '\n', done.stdout
                                   ).splitlines():
                    self.assertTrue(len(line) <= 80 or ' ' not in line[10:],
                                    line)
            self.assertRegex(done.stdout.splitlines()[-1], '^updated ')
            vm.qemu.connect()

    def test_wrong_usage(self) -> None:
        """Wrong usage is refused with one line that says why."""
        for words in ('', '--qmp x', '--binary x', '--qmp x --binary x more',
                      '--qmp x --binary x --timeout x'):
            done = subprocess.run(
                [TOOL, *words.split()], stdin=subprocess.DEVNULL, check=False,
                capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, words)
            self.assertRegex(done.stderr.splitlines()[-1], '^live-update: ')

    def test_quick(self) -> None:
        """An update takes a few seconds, and the guest waits for less."""
        with self.shared() as vm:
            begin = time.monotonic()
            outcome = vm.assert_updates()
            self.assertLess(time.monotonic() - begin, 20)
            self.assertLess(outcome.result['downtime'], 2)
            json.dumps(outcome.events)


class LiveUpdateCarried(LiveUpdateTest):
    """What a VM without a guest was given while it ran, and how it runs"""

    def start(self, vm: UpdatedVM, **options: Any) -> None:
        """Start it; in it nothing shall change by itself."""
        vm.qemu.start(**options)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('stop')

    def update(self, vm: UpdatedVM, *options: str, **more: Any) -> Outcome:
        """Update it; it must be possible."""
        outcome = vm.run(*options, **more)
        self.assertEqual(outcome.status, 0, outcome)
        return outcome

    def assert_refused(self, vm: UpdatedVM, *words: str, **more: Any) -> None:
        """It must be refused before anything is begun."""
        outcome = vm.run('--dry-run', **more)
        self.assertEqual(outcome.status, 1, outcome)
        for word in words:
            self.assertIn(word, outcome.message)

    # What is on the command line, and was removed

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
        self.start(vm)
        self.assert_refused(vm, 'id=net')
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
        said = self.update(vm).said('command')
        for name in 'drive', 'node', 'file', 'net', 'rng', 'dump':
            self.assertIn(f"'{name}' was removed", said)
        with vm.qemu.monitor() as monitor:
            self.assertEqual(monitor.cmd('query-block'), [])
            self.assertEqual(monitor.cmd('query-named-block-nodes'), [])
            objects: Any = monitor.cmd('qom-list', path='/objects')
        names = [item['name'] for item in objects]
        self.assertIn('thread', names)
        self.assertNotIn('rng', names)
        words = arguments(vm.qemu.pid)
        self.assertIn('hubport,id=kept,hubid=1', words)
        self.assertEqual(words.count('-netdev'), 1)

    def test_removed_under_device(self) -> None:
        """A disk got another image; the first one was removed."""
        null = '{"driver":"null-co","size":65536,"node-name":"%s"}'
        vm = self.bare(
            '-device', 'qemu-xhci', '-blockdev', null % 'first',
            '-blockdev', null % 'second',
            '-device', 'usb-storage,drive=first')
        self.start(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-mirror', job_id='job', device='first',
                        target='second', sync='full')
            monitor.wait('BLOCK_JOB_READY')
            monitor.cmd('block-job-complete', device='job')
            monitor.wait('BLOCK_JOB_COMPLETED')
            monitor.cmd('blockdev-del', node_name='first')
        self.assert_refused(vm, "'first' was removed", 'usb-storage')

    # What was plugged

    def plug_all(self, vm: UpdatedVM, image: str) -> Dict[str, Any]:
        """Plug devices with much that can be given; returns what they are."""
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
        """What the devices are that plug_all has plugged."""
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
        """The name of a block node, unless QEMU has invented it."""
        return re.sub('#.*', '', name)

    def test_plugged(self) -> None:
        """Devices that were plugged are what they were."""
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
        self.start(vm)
        plugged = self.plug_all(vm, image)
        self.assertNotIn('Port 1,', plugged['usb'])
        for word in "'disk'", 'discard':
            self.assertIn(word, vm.run('--dry-run').said('command'))
        for _ in range(2):
            outcome = self.update(vm)
            self.assertEqual(outcome.result['mode'], CPR)
            self.assertEqual(self.plugged(vm), plugged)

    def test_plugged_image(self) -> None:
        """An image of which QEMU does not tell all is refused."""
        vm = self.bare('-device', 'qemu-xhci')
        image = make_disk(str(vm.folder / 'image'))
        self.start(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='lonely', driver='null-co',
                        size=1 << 20)
            monitor.cmd('object-add', qom_type='iothread', id='spare')
        said = vm.run('--dry-run').said('command')
        for name in 'lonely', 'spare':
            self.assertIn(f"'{name}'", said)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='disk',
                        driver='copy-on-read',
                        file={'driver': 'file', 'filename': image})
            monitor.cmd('device_add', driver='usb-storage', id='stick',
                        drive='disk')
        self.assert_refused(vm, "'stick'", "'disk'", 'copy-on-read')

    def test_changed_image(self) -> None:
        """A node that is not what the command line says is noticed."""
        vm = self.bare('-device', 'qemu-xhci')
        image = str(vm.folder / 'image')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        image, '1M'], check=True)
        vm.qemu.command += [
            '-blockdev', f'driver=qcow2,node-name=disk,file.filename={image},'
            'file.driver=file', '-device', 'usb-storage,drive=disk']
        self.start(vm)
        self.update(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('blockdev-reopen', options=[{
                'driver': 'qcow2', 'node-name': 'disk', 'detect-zeroes': 'on',
                'file': {'driver': 'file', 'filename': image}}])
        outcome = vm.run()
        self.assertEqual(outcome.status, 1, outcome)
        self.assertIn("the block node 'disk'", outcome.message)

    # What goes on beside the VM

    def test_block_work(self) -> None:
        """Jobs, exports and bitmaps would be lost; limits are."""
        vm = self.bare('-device', 'qemu-xhci')
        image = vm.folder / 'image'
        image.write_bytes(bytes(1 << 20))
        vm.qemu.command += [
            '-drive', f'if=none,id=d,node-name=n,file={image},format=raw,'
            'throttling.iops-total=10', '-device', 'usb-storage,drive=d,id=s',
            '-blockdev',
            '{"driver":"null-co","node-name":"null","size":65536}']
        self.start(vm)
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
        self.assert_refused(vm, "'copy'", 'block-job-cancel')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('block-job-cancel', device='copy', force=True)
            monitor.wait('BLOCK_JOB_CANCELLED')
            monitor.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': f'{vm.folder}/nbd'}})
            monitor.cmd('block-export-add', id='out', type='nbd',
                        node_name='null')
        self.assert_refused(vm, "'out'", 'block-export-del')
        with vm.qemu.monitor() as monitor:
            monitor.cmd('nbd-server-stop')
            monitor.do(lambda qmp: qmp.execute(
                'block-dirty-bitmap-add', {'node': 'n', 'name': 'changed'}))
        self.assert_refused(vm, "'changed'", 'block-dirty-bitmap-remove')

    def test_networks(self) -> None:
        """Networks whose device or back-end serves one QEMU."""
        vm = self.bare()
        self.start(vm)
        for words in 'vhost-user,id=n,chardev=c', 'tap,id=n':
            self.assert_refused(vm, words, 'unplug', command=[
                *vm.qemu.command, '-netdev', words])
        # Another one that has the name of the first.
        vm = self.bare('-netdev', 'user,id=net')
        self.start(vm)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('netdev_del', id='net')
            monitor.do(lambda qmp: qmp.execute('netdev_add', {
                'type': 'socket', 'id': 'net', 'mcast': '230.0.0.1:1234'}))
        self.assert_refused(vm, 'id=net', 'socket')

    def test_pty(self) -> None:
        """A terminal gets another name, but the one that was chosen."""
        vm = self.bare()
        name = vm.qemu.folder / 'terminal'
        vm.qemu.command += [
            '-serial', 'pty', '-chardev', f'pty,id=named,path={name}']
        self.start(vm)
        for _ in range(2):
            said = self.update(vm).said('terminal')
            self.assertIn("'serial1'", said)
            self.assertNotIn("'named'", said)
            with vm.qemu.monitor() as monitor:
                terminal = next(item for item in monitor.cmd('query-chardev')
                                if item['label'] == 'named')
            self.assertEqual('pty:' + os.readlink(name),
                             terminal['filename'])

    def test_given_relative(self) -> None:
        """Names after "--" begin where the VM was started; '' is kept."""
        vm = self.bare()
        inner = vm.qemu.folder / 'inner'
        inner.mkdir()
        vm.qemu.qmp = str(vm.qemu.folder / 'qmp.sock')
        self.start(vm, cwd=inner, env={**os.environ, 'PWD': str(inner)})
        command = [word.replace(f'{vm.qemu.folder}/', '../')
                   for word in vm.qemu.command]
        for _ in range(2):
            self.update(vm, command=[*command, '-k', '', '-no-shutdown'],
                        cwd='/')
            words = arguments(vm.qemu.pid)
            at = words.index('-k')
            self.assertEqual(words[at + 1:at + 3], ['', '-no-shutdown'])
            self.assertEqual(int(vm.qemu.pid_file.read_text('ascii')),
                             vm.qemu.pid)
        self.update(vm)

    # How it runs

    def test_confined(self) -> None:
        """The new QEMU may do no more than the old one, nor has it more."""
        kept = re.compile(r'(?m)^(?:Cap|NoNewPrivs|Seccomp).*')

        def confinement() -> Any:
            proc = Path(f'/proc/{vm.qemu.pid}')
            with vm.qemu.monitor() as monitor:
                threads = [thread['thread-id'] for command in (
                    'query-cpus-fast', 'query-iothreads')
                    for thread in monitor.cmd(command)]
            return (kept.findall((proc / 'status').read_text('ascii')),
                    (proc / 'oom_score_adj').read_text('ascii'),
                    [(os.sched_getaffinity(thread),
                      os.sched_getscheduler(thread),
                      os.getpriority(os.PRIO_PROCESS, thread))
                     for thread in (vm.qemu.pid, *threads)])

        vm = self.bare('-object', 'iothread,id=thread')
        vm.qemu.command = [
            'setpriv', '--no-new-privs', '--bounding-set', '-all,+chown',
            '--inh-caps', '-all', 'nice', '-n', '3', 'choom', '-n', '300',
            '--', *vm.qemu.command]
        self.start(vm)
        with vm.qemu.monitor() as monitor:
            cpu = monitor.cmd('query-cpus-fast')[0]['thread-id']
        os.sched_setaffinity(cpu, {max(os.sched_getaffinity(0))})
        os.setpriority(os.PRIO_PROCESS, cpu, 2)
        before = confinement()
        self.assertIn('NoNewPrivs:\t1', before[0])
        for _ in range(2):
            self.update(vm)
            self.assertEqual(confinement(), before)

    def test_user(self) -> None:
        """The capabilities of a user; a program that it may not run."""
        vm = self.bare()
        vm.folder.chmod(0o755)
        os.chown(vm.qemu.folder, NOBODY, NOBODY)
        vm.qemu.log.touch()
        vm.qemu.command = [
            'setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}',
            '--clear-groups', '--inh-caps=+net_raw', '--ambient-caps=+net_raw',
            *vm.qemu.command]
        self.start(vm)

        def rights() -> List[str]:
            return re.findall('(?m)^(?:Cap|Uid|Gid|Groups).*', Path(
                f'/proc/{vm.qemu.pid}/status').read_text('ascii'))

        before = rights()
        self.update(vm)
        self.assertEqual(rights(), before)
        secret = vm.folder / 'secret'
        secret.mkdir(mode=0o700)
        binary = secret / 'qemu'
        binary.symlink_to(vm.binary)
        for options in ('--dry-run',), ():
            outcome = vm.run(*options, binary=binary)
            self.assertEqual(outcome.status, 1, outcome)
            self.assertIn(str(binary), outcome.message)
            self.assertIn('user', outcome.message)

    def test_filtered(self) -> None:
        """System calls that were forbidden from outside would be allowed."""
        def forbid() -> None:
            """A filter, which allows everything."""
            allow = ctypes.create_string_buffer(
                struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
            program = ctypes.create_string_buffer(
                struct.pack('HxxxxxxP', 1, ctypes.addressof(allow)))
            set_seccomp, filter_mode = 22, 2
            ctypes.CDLL(None).prctl(set_seccomp, filter_mode, program)

        vm = self.bare()
        self.start(vm, preexec_fn=forbid)
        self.assert_refused(vm, 'system calls')

    def test_no_room(self) -> None:
        """A copy of memory needs room, of which the user is told."""
        vm = self.bare()
        self.start(vm)
        self.assertRegex(vm.run('--dry-run').said('memory'),
                         'up to 256 MiB.* [0-9]+ MiB')


if __name__ == '__main__':
    main()
