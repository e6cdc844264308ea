# SPDX-License-Identifier: GPL-2.0-or-later
"""
live-update updates VMs of many kinds, and changes nothing but QEMU
"""
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

from lab.machines.agent import blkverify
from lab.machines.backend import make_disk
from lab.machines.chain import COPY, CPR, IGNORE_SHARED
from lab.machines.monitor import Monitor
from lab.machines.tool import TOOL
from lab.machines.updated_vm import UpdatedVM
from lab.machines.vm import MEMFD
from lab.machines.watch import wait_for

from .live_update_case import RAM, LiveUpdateTest
from .testcase import main


class LiveUpdate(LiveUpdateTest):
    """Updates that succeed"""

    # Memory

    def check_mode(self, vm: UpdatedVM, mode: str, *reason: str) -> None:
        """A VM must be updated several times, with memory in this mode."""
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
            lengths.append(len(' '.join(vm.arguments())))
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
        """Memory is a memfd, but aux-ram-share=on is missing: it is copied."""
        self.check_mode(self.updated_vm(ram=MEMFD), COPY, 'aux-ram-share=on')

    def test_memory_of_its_own(self) -> None:
        """Memory is private; the disk is a plain virtio-blk disk."""
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
        """Memory of a shared file is not copied, plugged private memory is."""
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
        """A VM without -daemonize: the new QEMU keeps stdout and stderr."""
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
        """Relative paths refer to the folder in which the VM was started."""
        for daemonize in True, False:
            vm = self.updated_vm()
            folder = f'{vm.qemu.folder}/'
            # new_qemus() finds the new QEMU by this name.
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
        """-machine q35 becomes the versioned machine type of the VM."""
        with self.shared() as vm:
            vm.assert_updates()
            words = vm.arguments()
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
        """The words after "--" replace the VM's command line."""
        with self.shared() as vm:
            given = [word for word in vm.qemu.command if word != '-daemonize']
            vm.assert_updates(command=[
                *given, '-name', 'renamed', '-trace', 'no_such_event'])
            words = vm.arguments()
            self.assertIn('renamed', words)
            self.assertNotIn('-daemonize', words)
            # The first word, the program, may be left out.
            vm.assert_updates(command=vm.qemu.command[1:])
            self.assertNotIn('renamed', vm.arguments())

    # Names

    def test_names(self) -> None:
        """Sockets and the pid file keep their paths, modes and owners."""
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
        # live-update can use any of the monitors.
        vm.qemu.qmp = f'{other}/qmp'
        vm.assert_updates()
        vm.stop_load()

    # Output

    def test_dry_run(self) -> None:
        """A dry run changes nothing and prints the plan."""
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
        """The text output fits into 80 columns."""
        with self.shared() as vm:
            for option in '--dry-run', '--timeout=60':
                done = subprocess.run(
                    [TOOL, '--qmp', vm.qemu.qmp, '--binary',
                     str(vm.binary), option], stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ''))
                self.assertRegex(done.stdout, r'(?m)^ok +VM: ')
                # Except the command, for copying, and long names.
                for line in re.sub(r'(?s)\n  \S.*?\n\n', '\n', done.stdout
                                   ).splitlines():
                    self.assertTrue(len(line) <= 80 or ' ' not in line[10:],
                                    line)
            self.assertRegex(done.stdout.splitlines()[-1], '^updated ')
            vm.qemu.connect()

    def test_wrong_usage(self) -> None:
        """Wrong usage ends with status 1 and one line with the reason."""
        for words in ('', '--qmp x', '--binary x', '--qmp x --binary x more',
                      '--qmp x --binary x --timeout x'):
            done = subprocess.run(
                [TOOL, *words.split()], stdin=subprocess.DEVNULL, check=False,
                capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, words)
            self.assertRegex(done.stderr.splitlines()[-1], '^live-update: ')

    def test_quick(self) -> None:
        """An update takes less than 20 s, with a downtime of less than 2 s."""
        with self.shared() as vm:
            begin = time.monotonic()
            outcome = vm.assert_updates()
            self.assertLess(time.monotonic() - begin, 20)
            self.assertLess(outcome.result['downtime'], 2)
            json.dumps(outcome.events)


if __name__ == '__main__':
    main()
