# SPDX-License-Identifier: GPL-2.0-or-later
"""
scripts/live-update updates VMs of many kinds, and changes nothing but QEMU
"""
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, List

from guest.agent import blkverify
from guest.backend import make_disk
from guest.server_vm import SLOT, Monitor
from qemu.live_update.process import Process

from .live_update_case import TOOL, LiveUpdateTest, Scene, plug
from .testcase import main
from .transfer import COPY, CPR, IGNORE_SHARED
from .watch import wait_for

MEMFD = 'memory-backend-memfd,share=on'


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
            # The new QEMU knows how to reach the back-end.
            daemon.kill()
            daemon.start()
            scene.stop_load()
            reply = scene.guest.wait(load)
            self.assertEqual(reply.status, 0, reply.output)
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


if __name__ == '__main__':
    main()
