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
from lab.machines.server_vm import SLOT, Monitor
from lab.machines.watch import wait_for

from .live_update_case import TOOL, LiveUpdateTest, Outcome, Scene, plug
from .testcase import main

MEMFD = 'memory-backend-memfd,share=on'
NOBODY = 65534


def arguments(pid: int) -> List[str]:
    """The command line of a process."""
    return Process(pid).arguments


class LiveUpdate(LiveUpdateTest):
    """Updates that succeed"""

    # Memory

    def check_mode(self, scene: Scene, mode: str, *reason: str) -> None:
        """A VM must be updated again and again, with memory in this way."""
        scene.boot()
        scene.guest.run('echo said before >/dev/ttyS0')
        lengths = []
        for _ in range(3):
            outcome = self.assert_updates(scene)
            self.assertEqual(outcome.result['mode'], mode)
            for word in (f'{mode}:', *reason):
                self.assertIn(word, outcome.said('memory'))
            stopped, resumed = outcome.result['paused']
            self.assertLess(stopped, resumed)
            self.assertLess(resumed - stopped, 5)
            lengths.append(len(' '.join(arguments(scene.vm.pid))))
        self.assertEqual(lengths, lengths[:1] * 3)
        scene.guest.run('echo said after >/dev/ttyS0')
        wait_for('the guest said so', lambda: 'said after' in
                 scene.vm.console.read_text('utf-8'))
        self.assertIn('said before', scene.vm.console.read_text('utf-8'))
        scene.stop_load()
        scene.vm.quit()

    def test_file(self) -> None:
        """Memory is a file that both QEMUs open; there are two disks."""
        self.check_mode(self.scene(disks=2), IGNORE_SHARED, 'shared file')

    def test_memfd(self) -> None:
        """Memory is a memfd that the new QEMU is given."""
        self.check_mode(self.scene(ram=CPR), CPR, 'file descriptors')

    def test_copy(self) -> None:
        """Memory is a memfd, and the machine does not share the rest."""
        self.check_mode(self.scene(ram=MEMFD), COPY, 'aux-ram-share=on')

    def test_memory_of_its_own(self) -> None:
        """Memory is not shared; the disk is QEMU's own."""
        scene = self.scene(ram='memory-backend-ram', disks=0)
        image = make_disk(str(scene.folder / 'own.img'))
        scene.vm.command += ['-drive', f'if=none,id=own,file={image},'
                             'format=raw', '-device',
                             'virtio-blk-pci,id=own,drive=own']
        scene.boot(load=False)
        load = scene.guest.start(blkverify('vda'))
        outcome = self.assert_updates(scene)
        self.assertIn('share=on', outcome.said('memory'))
        scene.guest.wait_records(300)
        scene.guest.run('killall blkverify')
        reply = scene.guest.wait(load)
        self.assertEqual(reply.status, 0, reply.output)

    def test_two_kinds_of_memory(self) -> None:
        """A file stays where it is, what was plugged is copied."""
        scene = self.scene(
            '-object', 'memory-backend-ram,id=more,size=128M')
        at = scene.vm.command.index('-m')
        scene.vm.command[at + 1] += ',slots=2,maxmem=1G'
        scene.vm.command += ['-device', 'pc-dimm,id=dimm,memdev=more']
        scene.boot()
        outcome = self.assert_updates(scene)
        self.assertEqual(outcome.result['mode'], IGNORE_SHARED)
        self.assertIn("'more'", outcome.said('memory'))
        scene.stop_load()

    # Ways to start a VM

    def test_foreground(self) -> None:
        """A VM without -daemonize: what it prints goes where it went."""
        scene = self.scene()
        scene.vm.drop('-daemonize')
        scene.boot()
        for _ in range(2):
            self.assert_updates(scene)
            self.assertEqual(os.readlink(f'/proc/{scene.vm.pid}/fd/2'),
                             str(scene.vm.log))
        scene.stop_load()

    def test_script(self) -> None:
        """The new QEMU is started by a script."""
        with self.shared() as scene:
            script = scene.wrap('$qemu "$@"')
            self.assert_updates(scene, binary=script)
            self.assert_updates(scene, binary=scene.wrap('exec $qemu "$@"'))

    def test_relative_paths(self) -> None:
        """Names begin at the folder where the VM was started."""
        for daemonize in True, False:
            scene = self.scene()
            folder = f'{scene.vm.folder}/'
            # The new QEMU is found by it.
            name = scene.vm.folder.name
            scene.vm.command = [
                word if word == f'{folder}console' else
                word.replace(folder, '') for word in scene.vm.command]
            scene.vm.command += ['-chardev', 'null,id=null,logfile=null-log']
            if not daemonize:
                scene.vm.drop('-daemonize')
            self.assertEqual(folder, f'{scene.folder}/{name}/')
            scene.vm.start(cwd=folder, env={**os.environ, 'PWD': folder[:-1]})
            scene.vm.connect()
            scene.guest.wait_booted()
            scene.start_load()
            for _ in range(2):
                self.assert_updates(scene)
            scene.stop_load()
            scene.close()

    def test_machine_alias(self) -> None:
        """-machine q35 becomes the version that the VM has."""
        with self.shared() as scene:
            self.assert_updates(scene)
            words = arguments(scene.vm.pid)
            machine = words[words.index('-machine') + 1].split(',')
            self.assertRegex(machine[0], r'pc-q35-\d+\.\d+')
            self.assertEqual(machine[1:], ['usb=off', 'memory-backend=ram'])

    def test_paused(self) -> None:
        """A paused VM stays paused."""
        with self.shared() as scene:
            with scene.vm.monitor() as monitor:
                monitor.cmd('stop')
            for _ in range(2):
                outcome = self.assert_updates(scene)
                self.assertIn('paused', outcome.said('VM'))
            with scene.vm.monitor() as monitor:
                monitor.cmd('cont')
            scene.check_alive()

    def test_given_command_line(self) -> None:
        """What follows "--" is the VM's command line."""
        with self.shared() as scene:
            given = [word for word in scene.vm.command if word != '-daemonize']
            self.assert_updates(scene, command=[
                *given, '-name', 'renamed', '-trace', 'no_such_event'])
            words = arguments(scene.vm.pid)
            self.assertIn('renamed', words)
            self.assertNotIn('-daemonize', words)
            # Without the program's name, too.
            self.assert_updates(scene, command=scene.vm.command[1:])
            self.assertNotIn('renamed', arguments(scene.vm.pid))

    # Names

    def test_names(self) -> None:
        """Sockets and the pid file are at their names, for their users."""
        scene = self.scene()
        scene.vm.drop('-serial')
        serial = scene.vm.folder / 'serial.sock'
        other = scene.folder / 'other'
        other.mkdir()
        scene.vm.command += [
            '-serial', f'unix:{serial},server=on,wait=off',
            '-monitor', f'unix:{other}/hmp,,1.sock,server,nowait',
            '-chardev', f'socket,id=qmp2,path={other}/qmp,server=on,wait=off',
            '-mon', 'chardev=qmp2,mode=control']
        hmp = other / 'hmp,1.sock'
        scene.boot()
        for path in serial, hmp:
            path.chmod(0o660)
            os.chown(path, 12345, 54321)
        Path(scene.vm.qmp).chmod(0o600)
        scene.vm.pid_file.chmod(0o640)
        for round_ in range(2):
            self.assert_updates(scene)
            for path in serial, hmp:
                status = path.stat()
                self.assertEqual(
                    (status.st_mode & 0o777, status.st_uid, status.st_gid),
                    (0o660, 12345, 54321))
            self.assertEqual(sorted(os.listdir(other)), ['hmp,1.sock', 'qmp'])
            self.assertEqual(scene.vm.pid_file.stat().st_mode & 0o777, 0o640)
            self.assertEqual(int(scene.vm.pid_file.read_text('ascii')),
                             scene.vm.pid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(serial))
                scene.guest.run(f'echo round {round_} >/dev/ttyS0')
                self.assertIn(f'round {round_}', client.recv(1000).decode())
            with Monitor(f'{other}/qmp') as monitor:
                self.assertEqual(monitor.cmd('query-status')['status'],
                                 'running')
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(hmp))
                self.assertIn('QEMU', client.recv(1000).decode())
        # Any of its monitors will do.
        scene.vm.qmp = f'{other}/qmp'
        self.assert_updates(scene)
        scene.stop_load()

    # What has come and gone since the VM was started

    def test_plugged_disk(self) -> None:
        """A disk that was plugged, with all that its chardev was told."""
        with self.shared() as scene:
            daemon = scene.daemon('plugged')
            self.addCleanup(daemon.__exit__, None, None, None)
            with scene.vm.monitor() as monitor:
                plug(monitor, 'plugged', daemon.path, SLOT, reconnect_ms=100)
            scene.guest.wait_until('[ -b /dev/vdb ]')
            load = scene.guest.start(blkverify('vdb'))
            for _ in range(2):
                self.assert_updates(scene)
            scene.stop_load()
            reply = scene.guest.wait(load)
            self.assertEqual(reply.status, 0, reply.output)
            # The new QEMU knows how to reach the back-end.
            daemon.kill()
            daemon.start()
            scene.guest.verify('vdb', count=100)
            scene.start_load()

            with scene.vm.monitor() as monitor:
                monitor.cmd('device_del', id='plugged')
                monitor.wait('DEVICE_DELETED')
            self.assert_updates(scene)
            with scene.vm.monitor() as monitor:
                monitor.cmd('chardev-remove', id='c-plugged')
            self.assert_updates(scene)
            self.assertNotIn('plugged', ' '.join(arguments(scene.vm.pid)))
            self.addCleanup(Path(daemon.path).unlink, missing_ok=True)

    def test_unplugged_disk(self) -> None:
        """A disk of the command line that is not there any more."""
        scene = self.scene('-device', 'pcie-root-port,id=slot1,chassis=1')
        daemon = scene.daemon('unplugged')
        self.addCleanup(daemon.__exit__, None, None, None)
        scene.vm.command += [
            '-chardev', f'socket,id=c-1,path={daemon.path}',
            '-device', f'vhost-user-blk-pci,id=one,chardev=c-1,bus={SLOT}']
        scene.boot()
        with scene.vm.monitor() as monitor:
            monitor.cmd('device_del', id='one')
            monitor.wait('DEVICE_DELETED')
        self.assertIn("'one'", self.assert_updates(scene).said('command'))
        # The back-end is free: nobody holds on to the connection.
        with scene.vm.monitor() as monitor:
            monitor.cmd('chardev-remove', id='c-1')
            plug(monitor, 'one', daemon.path, 'slot1')
        scene.guest.wait_until('[ -b /dev/vdb ]')
        self.assertIn("'one'", self.assert_updates(scene).said('command'))
        scene.guest.verify('vdb', count=100)
        scene.stop_load()

    def test_plugged_memory(self) -> None:
        """Memory that was plugged, as a file and as a memfd."""
        scene = self.scene('-smp', '1,maxcpus=2')
        at = scene.vm.command.index('-m')
        scene.vm.command[at + 1] += ',slots=2,maxmem=1G'
        scene.boot()
        more = f'{scene.memory}-more'
        with scene.vm.monitor() as monitor:
            monitor.cmd('object-add', qom_type='memory-backend-file',
                        id='more', size=128 << 20, share=True, mem_path=more)
            monitor.cmd('device_add', driver='pc-dimm', id='dimm',
                        memdev='more')
        for _ in range(2):
            outcome = self.assert_updates(scene)
            self.assertEqual(outcome.result['mode'], IGNORE_SHARED)
        with scene.vm.monitor() as monitor:
            dimms = monitor.cmd('query-memory-devices')
        self.assertEqual([dimm['data']['id'] for dimm in dimms], ['dimm'])
        scene.stop_load()

    def test_plugged_cpu(self) -> None:
        """A processor that was plugged."""
        scene = self.scene('-smp', '1,maxcpus=2').boot()
        with scene.vm.monitor() as monitor:
            cpus: Any = monitor.cmd('query-hotpluggable-cpus')
            free = next(cpu for cpu in cpus if 'qom-path' not in cpu)
            monitor.cmd('device_add', driver=free['type'], id='cpu1',
                        **free['props'])
        scene.guest.wait_until('[ -d /sys/devices/system/cpu/cpu1 ]')
        scene.guest.run('echo 1 >/sys/devices/system/cpu/cpu1/online')
        for _ in range(2):
            self.assert_updates(scene)
        self.assertEqual(scene.guest.run('grep -c ^processor /proc/cpuinfo'),
                         '2')
        scene.stop_load()

    # What is said

    def test_dry_run(self) -> None:
        """It changes nothing, and says what would be done."""
        with self.shared() as scene:
            before = scene.state()
            outcome = scene.run('--dry-run')
            self.assertEqual(outcome.result['status'], 'possible')
            self.assertEqual(scene.state(), before)
            plan = next(event for event in outcome.events
                        if event['event'] == 'plan')
            self.assertEqual(plan['command'][0], str(scene.binary))
            self.assertIn('-incoming', plan['command'])

            self.assert_fails(scene, 1, 'no-such', options=['--dry-run'],
                              binary=scene.folder / 'no-such')

    def test_text(self) -> None:
        """A person is told in lines that fit a terminal."""
        with self.shared() as scene:
            for option in '--dry-run', '--timeout=60':
                done = subprocess.run(
                    [TOOL, '--qmp', scene.vm.qmp, '--binary',
                     str(scene.binary), option], stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ''))
                self.assertRegex(done.stdout, r'(?m)^ok +VM: ')
                # All but the command, which is to be copied, and long names.
                for line in re.sub(r'(?s)\n  \S.*?\n\n', '\n', done.stdout
                                   ).splitlines():
                    self.assertTrue(len(line) <= 80 or ' ' not in line[10:],
                                    line)
            self.assertRegex(done.stdout.splitlines()[-1], '^updated ')
            scene.vm.connect()

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
        with self.shared() as scene:
            begin = time.monotonic()
            outcome = self.assert_updates(scene)
            self.assertLess(time.monotonic() - begin, 20)
            self.assertLess(outcome.result['downtime'], 2)
            json.dumps(outcome.events)


class LiveUpdateCarried(LiveUpdateTest):
    """What a VM without a guest was given while it ran, and how it runs"""

    def bare(self, *args: str, **options: Any) -> Scene:
        """A VM without a guest; it is not started yet."""
        scene = self.scene(*args, disks=0, **{
            'ram': 'memory-backend-ram', **options})
        for option in '-kernel', '-initrd', '-append':
            scene.vm.drop(option)
        return scene

    def start(self, scene: Scene, **options: Any) -> None:
        """Start it; in it nothing shall change by itself."""
        scene.vm.start(**options)
        with scene.vm.monitor() as monitor:
            monitor.cmd('stop')

    def update(self, scene: Scene, *options: str, **more: Any) -> Outcome:
        """Update it; it must be possible."""
        outcome = scene.run(*options, **more)
        self.assertEqual(outcome.status, 0, outcome)
        return outcome

    def assert_refused(self, scene: Scene, *words: str, **more: Any) -> None:
        """It must be refused before anything is begun."""
        outcome = scene.run('--dry-run', **more)
        self.assertEqual(outcome.status, 1, outcome)
        for word in words:
            self.assertIn(word, outcome.message)

    # What is on the command line, and was removed

    def test_removed(self) -> None:
        """Disks, networks and objects that were removed do not come back."""
        scene = self.bare('-device', 'qemu-xhci,id=xhci')
        image = make_disk(str(scene.folder / 'image'))
        other = make_disk(str(scene.folder / 'other'))
        scene.vm.command += [
            '-drive', f'if=none,id=drive,file={image},format=raw',
            '-device', 'usb-storage,id=one,drive=drive',
            '-blockdev', f'driver=file,node-name=file,filename={other}',
            '-blockdev', '{"driver":"raw","node-name":"node","file":"file"}',
            '-device', 'usb-storage,id=two,drive=node',
            '-netdev', 'socket,id=net,udp=127.0.0.1:1,localaddr=127.0.0.1:0',
            '-netdev', 'hubport,id=kept,hubid=1', '-object',
            'filter-dump,id=dump,netdev=kept,file=' + str(scene.folder / 'f'),
            '-object', 'rng-random,id=rng,filename=/dev/urandom',
            '-object', 'iothread,id=thread']
        self.start(scene)
        self.assert_refused(scene, 'id=net')
        with scene.vm.monitor() as monitor:
            for name in 'one', 'two':
                monitor.cmd('device_del', id=name)
            wait_for('the disks are gone', lambda: not monitor.cmd(
                'query-block'))
            for name in 'node', 'file':
                monitor.cmd('blockdev-del', node_name=name)
            monitor.cmd('netdev_del', id='net')
            for name in 'rng', 'dump':
                monitor.cmd('object-del', id=name)
        said = self.update(scene).said('command')
        for name in 'drive', 'node', 'file', 'net', 'rng', 'dump':
            self.assertIn(f"'{name}' was removed", said)
        with scene.vm.monitor() as monitor:
            self.assertEqual(monitor.cmd('query-block'), [])
            self.assertEqual(monitor.cmd('query-named-block-nodes'), [])
            objects: Any = monitor.cmd('qom-list', path='/objects')
        names = [item['name'] for item in objects]
        self.assertIn('thread', names)
        self.assertNotIn('rng', names)
        words = arguments(scene.vm.pid)
        self.assertIn('hubport,id=kept,hubid=1', words)
        self.assertEqual(words.count('-netdev'), 1)

    def test_removed_under_device(self) -> None:
        """A disk got another image; the first one was removed."""
        null = '{"driver":"null-co","size":65536,"node-name":"%s"}'
        scene = self.bare(
            '-device', 'qemu-xhci', '-blockdev', null % 'first',
            '-blockdev', null % 'second',
            '-device', 'usb-storage,drive=first')
        self.start(scene)
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-mirror', job_id='job', device='first',
                        target='second', sync='full')
            monitor.wait('BLOCK_JOB_READY')
            monitor.cmd('block-job-complete', device='job')
            monitor.wait('BLOCK_JOB_COMPLETED')
            monitor.cmd('blockdev-del', node_name='first')
        self.assert_refused(scene, "'first' was removed", 'usb-storage')

    # What was plugged

    def plug_all(self, scene: Scene, image: str) -> Dict[str, Any]:
        """Plug devices with much that can be given; returns what they are."""
        with scene.vm.monitor() as monitor:
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
        return self.plugged(scene)

    def plugged(self, scene: Scene) -> Dict[str, Any]:
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

        with scene.vm.monitor() as monitor:
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
        scene = self.bare(
            '-device', 'pcie-root-port,id=slot1,chassis=1',
            '-device', 'pcie-root-port,id=slot2,chassis=2',
            '-device', 'qemu-xhci', '-device', 'usb-kbd,id=keyboard',
            '-device', 'usb-tablet,id=tablet', '-object', 'iothread,id=fixed',
            ram=CPR)
        at = scene.vm.command.index('-m')
        scene.vm.command[at + 1] += ',slots=2,maxmem=1G'
        make_disk(str(scene.folder / 'base'))
        image = str(scene.folder / 'image')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        '-b', 'base', '-F', 'raw', image], check=True)
        self.start(scene)
        plugged = self.plug_all(scene, image)
        self.assertNotIn('Port 1,', plugged['usb'])
        for word in "'disk'", 'discard':
            self.assertIn(word, scene.run('--dry-run').said('command'))
        for _ in range(2):
            outcome = self.update(scene)
            self.assertEqual(outcome.result['mode'], CPR)
            self.assertEqual(self.plugged(scene), plugged)

    def test_plugged_image(self) -> None:
        """An image of which QEMU does not tell all is refused."""
        scene = self.bare('-device', 'qemu-xhci')
        image = make_disk(str(scene.folder / 'image'))
        self.start(scene)
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='lonely', driver='null-co',
                        size=1 << 20)
            monitor.cmd('object-add', qom_type='iothread', id='spare')
        said = scene.run('--dry-run').said('command')
        for name in 'lonely', 'spare':
            self.assertIn(f"'{name}'", said)
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='disk',
                        driver='copy-on-read',
                        file={'driver': 'file', 'filename': image})
            monitor.cmd('device_add', driver='usb-storage', id='stick',
                        drive='disk')
        self.assert_refused(scene, "'stick'", "'disk'", 'copy-on-read')

    def test_changed_image(self) -> None:
        """A node that is not what the command line says is noticed."""
        scene = self.bare('-device', 'qemu-xhci')
        image = str(scene.folder / 'image')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        image, '1M'], check=True)
        scene.vm.command += [
            '-blockdev', f'driver=qcow2,node-name=disk,file.filename={image},'
            'file.driver=file', '-device', 'usb-storage,drive=disk']
        self.start(scene)
        self.update(scene)
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-reopen', options=[{
                'driver': 'qcow2', 'node-name': 'disk', 'detect-zeroes': 'on',
                'file': {'driver': 'file', 'filename': image}}])
        outcome = scene.run()
        self.assertEqual(outcome.status, 1, outcome)
        self.assertIn("the block node 'disk'", outcome.message)

    # What goes on beside the VM

    def test_block_work(self) -> None:
        """Jobs, exports and bitmaps would be lost; limits are."""
        scene = self.bare('-device', 'qemu-xhci')
        image = scene.folder / 'image'
        image.write_bytes(bytes(1 << 20))
        scene.vm.command += [
            '-drive', f'if=none,id=d,node-name=n,file={image},format=raw,'
            'throttling.iops-total=10', '-device', 'usb-storage,drive=d,id=s',
            '-blockdev',
            '{"driver":"null-co","node-name":"null","size":65536}']
        self.start(scene)
        self.assertEqual(scene.run('--dry-run').said('limits'), '')
        with scene.vm.monitor() as monitor:
            monitor.cmd('human-monitor-command', command_line=(
                'block_set_io_throttle d 0 0 0 1 0 0'))
        self.assertIn("'d'", scene.run('--dry-run').said('limits'))
        with scene.vm.monitor() as monitor:
            monitor.cmd('blockdev-add', node_name='target', size=1 << 20,
                        driver='null-co')
            monitor.cmd('blockdev-mirror', job_id='copy', device='n',
                        target='target', sync='full')
            monitor.wait('BLOCK_JOB_READY')
        self.assert_refused(scene, "'copy'", 'block-job-cancel')
        with scene.vm.monitor() as monitor:
            monitor.cmd('block-job-cancel', device='copy', force=True)
            monitor.wait('BLOCK_JOB_CANCELLED')
            monitor.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': f'{scene.folder}/nbd'}})
            monitor.cmd('block-export-add', id='out', type='nbd',
                        node_name='null')
        self.assert_refused(scene, "'out'", 'block-export-del')
        with scene.vm.monitor() as monitor:
            monitor.cmd('nbd-server-stop')
            monitor.do(lambda qmp: qmp.execute(
                'block-dirty-bitmap-add', {'node': 'n', 'name': 'changed'}))
        self.assert_refused(scene, "'changed'", 'block-dirty-bitmap-remove')

    def test_networks(self) -> None:
        """Networks whose device or back-end serves one QEMU."""
        scene = self.bare()
        self.start(scene)
        for words in 'vhost-user,id=n,chardev=c', 'tap,id=n':
            self.assert_refused(scene, words, 'unplug', command=[
                *scene.vm.command, '-netdev', words])
        # Another one that has the name of the first.
        scene = self.bare('-netdev', 'user,id=net')
        self.start(scene)
        with scene.vm.monitor() as monitor:
            monitor.cmd('netdev_del', id='net')
            monitor.do(lambda qmp: qmp.execute('netdev_add', {
                'type': 'socket', 'id': 'net', 'mcast': '230.0.0.1:1234'}))
        self.assert_refused(scene, 'id=net', 'socket')

    def test_pty(self) -> None:
        """A terminal gets another name, but the one that was chosen."""
        scene = self.bare()
        name = scene.vm.folder / 'terminal'
        scene.vm.command += [
            '-serial', 'pty', '-chardev', f'pty,id=named,path={name}']
        self.start(scene)
        for _ in range(2):
            said = self.update(scene).said('terminal')
            self.assertIn("'serial1'", said)
            self.assertNotIn("'named'", said)
            with scene.vm.monitor() as monitor:
                terminal = next(item for item in monitor.cmd('query-chardev')
                                if item['label'] == 'named')
            self.assertEqual('pty:' + os.readlink(name),
                             terminal['filename'])

    def test_given_relative(self) -> None:
        """Names after "--" begin where the VM was started; '' is kept."""
        scene = self.bare()
        inner = scene.vm.folder / 'inner'
        inner.mkdir()
        scene.vm.qmp = str(scene.vm.folder / 'qmp.sock')
        self.start(scene, cwd=inner, env={**os.environ, 'PWD': str(inner)})
        command = [word.replace(f'{scene.vm.folder}/', '../')
                   for word in scene.vm.command]
        for _ in range(2):
            self.update(scene, command=[*command, '-k', '', '-no-shutdown'],
                        cwd='/')
            words = arguments(scene.vm.pid)
            at = words.index('-k')
            self.assertEqual(words[at + 1:at + 3], ['', '-no-shutdown'])
            self.assertEqual(int(scene.vm.pid_file.read_text('ascii')),
                             scene.vm.pid)
        self.update(scene)

    # How it runs

    def test_confined(self) -> None:
        """The new QEMU may do no more than the old one, nor has it more."""
        kept = re.compile(r'(?m)^(?:Cap|NoNewPrivs|Seccomp).*')

        def confinement() -> Any:
            proc = Path(f'/proc/{scene.vm.pid}')
            with scene.vm.monitor() as monitor:
                threads = [thread['thread-id'] for command in (
                    'query-cpus-fast', 'query-iothreads')
                    for thread in monitor.cmd(command)]
            return (kept.findall((proc / 'status').read_text('ascii')),
                    (proc / 'oom_score_adj').read_text('ascii'),
                    [(os.sched_getaffinity(thread),
                      os.sched_getscheduler(thread),
                      os.getpriority(os.PRIO_PROCESS, thread))
                     for thread in (scene.vm.pid, *threads)])

        scene = self.bare('-object', 'iothread,id=thread')
        scene.vm.command = [
            'setpriv', '--no-new-privs', '--bounding-set', '-all,+chown',
            '--inh-caps', '-all', 'nice', '-n', '3', 'choom', '-n', '300',
            '--', *scene.vm.command]
        self.start(scene)
        with scene.vm.monitor() as monitor:
            cpu = monitor.cmd('query-cpus-fast')[0]['thread-id']
        os.sched_setaffinity(cpu, {max(os.sched_getaffinity(0))})
        os.setpriority(os.PRIO_PROCESS, cpu, 2)
        before = confinement()
        self.assertIn('NoNewPrivs:\t1', before[0])
        for _ in range(2):
            self.update(scene)
            self.assertEqual(confinement(), before)

    def test_user(self) -> None:
        """The capabilities of a user; a program that it may not run."""
        scene = self.bare()
        scene.folder.chmod(0o755)
        os.chown(scene.vm.folder, NOBODY, NOBODY)
        scene.vm.log.touch()
        scene.vm.command = [
            'setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}',
            '--clear-groups', '--inh-caps=+net_raw', '--ambient-caps=+net_raw',
            *scene.vm.command]
        self.start(scene)

        def rights() -> List[str]:
            return re.findall('(?m)^(?:Cap|Uid|Gid|Groups).*', Path(
                f'/proc/{scene.vm.pid}/status').read_text('ascii'))

        before = rights()
        self.update(scene)
        self.assertEqual(rights(), before)
        secret = scene.folder / 'secret'
        secret.mkdir(mode=0o700)
        binary = secret / 'qemu'
        binary.symlink_to(scene.binary)
        for options in ('--dry-run',), ():
            outcome = scene.run(*options, binary=binary)
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

        scene = self.bare()
        self.start(scene, preexec_fn=forbid)
        self.assert_refused(scene, 'system calls')

    def test_no_room(self) -> None:
        """A copy of memory needs room, of which the user is told."""
        scene = self.bare()
        self.start(scene)
        self.assertRegex(scene.run('--dry-run').said('memory'),
                         'up to 256 MiB.* [0-9]+ MiB')


if __name__ == '__main__':
    main()
