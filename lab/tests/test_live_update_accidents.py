# SPDX-License-Identifier: GPL-2.0-or-later
"""
What other programs and people do to a VM while it is updated

The VMs have no guest: nothing changes in them by itself.
"""
import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any, Iterator, Optional

from qemu.live_update.host.process import find
from qemu.live_update.monitor import ANSWER

from lab.machines.backend import make_disk
from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.monitor import Monitor
from lab.machines.tool import PREFIX, STOP, TOOL, Tool
from lab.machines.updated_vm import State, UpdatedVM
from lab.machines.watch import wait_for

from .live_update_case import NOBODY, LiveUpdateTest
from .testcase import main


class Accidents(LiveUpdateTest):
    """Updates of VMs without a guest"""

    def started(self, *args: str, paused: bool = False, **options: Any
                ) -> UpdatedVM:
        """A VM with a second monitor."""
        vm = self.bare(*args, **options)
        vm.qemu.command += [
            '-qmp', f'unix:{vm.qemu.folder}/second.sock,server=on,wait=off']
        vm.qemu.start()
        if paused:
            self.second(vm, 'stop')
        return vm

    @staticmethod
    def second(vm: UpdatedVM, command: str, folder: str = '.') -> Any:
        """Execute a command in the second monitor of the old or new QEMU."""
        path, = vm.qemu.folder.glob(f'{folder}/second.sock')
        with Monitor(str(path)) as monitor:
            return monitor.cmd(command)

    @contextlib.contextmanager
    def cut(self, vm: UpdatedVM, name: str, *ends: str) -> Iterator[Tool]:
        """An update that stops at an event; then "ends" are killed."""
        old = vm.qemu.pid
        tool = vm.tool(fault=(name, STOP))
        with tool.stopped(name):
            if 'new' in ends:
                for pid in find(str(vm.folder)):
                    if pid not in (old, tool.pid):
                        os.kill(pid, signal.SIGKILL)
                wait_for('QEMU ends', lambda: set(find(str(vm.folder))) <=
                         {old, tool.pid})
            if 'tool' in ends:
                tool.kill()
            yield tool

    def assert_updates_bare(self, vm: UpdatedVM, before: Optional[State] = None
                            ) -> None:
        """An update must succeed, and change nothing."""
        before = before or vm.state()
        outcome = vm.run()
        self.assertEqual(outcome.status, 0, outcome)
        after = vm.state()
        self.assertEqual(after.status, before.status)
        self.assertEqual(set(after.pids), {vm.qemu.pid})
        self.assertEqual(outcome.result['pid'], vm.qemu.pid)
        after.assert_same(before)

    # Two VMs

    def test_neighbour(self) -> None:
        """Leftovers of the update of one VM do not disturb another VM."""
        vm = self.started()
        other = str(vm.qemu.folder / 'other.sock')
        subprocess.run([re.sub(r'(agent|records|second)\.sock', r'other-\1',
                               re.sub(r'(qmp|vm)\.(sock|pid)', r'other.\2',
                                      word))
                        for word in vm.qemu.command], check=True)
        pid_file = vm.qemu.folder / 'other.pid'

        def tool(*fault: str) -> Tool:
            qmp, vm.qemu.qmp = vm.qemu.qmp, other
            try:
                return vm.tool(fault=fault)
            finally:
                vm.qemu.qmp = qmp

        # The update of the other VM is in progress.
        slow = tool('start', STOP)
        with slow.stopped('start'):
            self.assertEqual(vm.run().status, 0)
        self.assertEqual(slow.end().status, 0)
        # The update of the other VM was killed.
        cut = tool('verify', STOP)
        with cut.stopped('verify'):
            cut.kill()
        before = vm.processes()
        first = vm.qemu.pid
        self.assertEqual(vm.run().status, 0)
        self.assertEqual(set(before) - set(vm.processes()), {first})
        self.assertIn('earlier', [event.get('name')
                                  for event in tool().end().events])
        self.assertEqual(set(vm.processes()), {
            vm.qemu.pid, int(pid_file.read_text('ascii'))})
        self.assertEqual(list(vm.qemu.folder.glob(f'{PREFIX}*')), [])

    # live-update

    def test_settings(self) -> None:
        """The new QEMU does not keep migration settings of the update."""
        vm = self.started(ram=IGNORE_SHARED)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('migrate-set-parameters', max_bandwidth=1 << 20)
            monitor.cmd('migrate-set-capabilities', capabilities=[
                {'capability': 'events', 'state': True}])
        self.assert_updates_bare(vm)
        # Nor does it if live-update was killed, before or after the move.
        for name in 'start', 'verify':
            before = vm.state()
            with self.cut(vm, name, 'tool'):
                pass
            self.assert_updates_bare(vm, before)

    def test_nobody_listens(self) -> None:
        """The output of live-update cannot be written."""
        vm = self.started()
        command = [TOOL, '--qmp', vm.qemu.qmp, '--binary', str(vm.binary)]
        for options in (), ('--json',):
            for output in 'closed', '/dev/full':
                old = vm.qemu.pid
                with contextlib.ExitStack() as stack:
                    out: Any = subprocess.PIPE
                    if output != 'closed':
                        out = stack.enter_context(open(output, 'wb'))
                    process = stack.enter_context(subprocess.Popen(
                        [*command, *options], stdout=out,
                        stderr=subprocess.PIPE))
                    if process.stdout:
                        process.stdout.close()
                    assert process.stderr
                    self.assertEqual(process.stderr.read(), b'')
                self.assertEqual(process.returncode, 0)
                self.assertEqual(set(vm.processes()), {vm.qemu.pid})
                self.assertNotEqual(vm.qemu.pid, old)

    def test_faults(self) -> None:
        """live-update has a bug: an exception at an event."""
        vm = self.started(paused=True)
        fault = 'raise ValueError("broken")'
        for name, status in ('start', 1), ('names', 3), ('end', 3):
            with self.subTest(name):
                before = vm.state()
                outcome = vm.tool(fault=(name, fault)).end('ValueError')
                self.assertEqual(outcome.status, status, outcome)
                self.assertIn('broken', outcome.message)
                if status == 1:
                    self.assertEqual(vm.state(), before)
                else:
                    self.assertIn('same command again', outcome.message)
                self.assert_updates_bare(vm, before)

    def test_killed_with_child(self) -> None:
        """live-update is killed just before its child executes QEMU."""
        vm = self.started()
        before = vm.state()
        tool = vm.tool(fault=(
            'binary', 'resource.setrlimit = lambda *_: time.sleep(0.05)'))
        self.assertTrue(tool.wait_for('binary'))
        wait_for('live-update has a child', lambda: list(
            vm.qemu.folder.glob(f'{PREFIX}*/old')) and
            Path(f'/proc/{tool.pid}/task/{tool.pid}/children').read_text(
                'ascii'))
        tool.kill()
        self.assert_updates_bare(vm, before)

    # The new QEMU

    def test_new_ends(self) -> None:
        """The new QEMU is killed when it has got a paused VM."""
        vm = self.started(paused=True)
        for name in 'verify', 'names':
            before = vm.state()
            with self.cut(vm, name, 'new') as tool:
                pass
            outcome = tool.end()
            self.assertEqual(outcome.status, 2, outcome)
            self.assertIn('paused, as before, in the old', outcome.message)
            after = vm.state()
            self.assertEqual((after.status, after.pids),
                             (before.status, before.pids))
            after.assert_same(before)
            with self.cut(vm, name, 'new', 'tool'):
                pass
            self.assert_updates_bare(vm, before)

    def test_new_ends_running(self) -> None:
        """The new QEMU is killed when it has run the VM: the VM is lost."""
        for name in 'verify', 'names', 'end':
            vm = self.started()
            with self.cut(vm, name, 'new') as tool:
                pass
            self.assertEqual(tool.end().status, 3)
            vm.close()

    def test_new_cannot_start(self) -> None:
        """The new QEMU gets the VM, but cannot lock the image."""
        image = make_disk(self.scope.path('disk'))
        write = 201                     # QEMU's lock: nobody else may write
        vm = self.started('-drive', f'if=virtio,format=raw,file={image}')
        for ends in (), ('tool',):
            before = vm.state()
            with open(image, 'rb') as file:
                fcntl.lockf(file, fcntl.LOCK_SH, 1, write)
                with self.cut(vm, 'migrate', *ends) as tool:
                    wait_for('migration ends', lambda: self.second(
                        vm, 'query-migrate', f'{PREFIX}*').get('status')
                        == 'completed')
            begin = time.monotonic()
            outcome = vm.run() if ends else tool.end()
            self.assertLess(time.monotonic() - begin, 30)
            if not ends:
                self.assertIn('cannot start it', outcome.message)
            self.assertEqual(outcome.status, 0 if ends else 2, outcome)
            self.assert_updates_bare(vm, before)

    # People

    def test_stopped_meanwhile(self) -> None:
        """The VM is stopped through another monitor."""
        vm = self.started()
        with self.cut(vm, 'start') as tool:
            self.second(vm, 'stop')
        self.assertEqual(tool.end().status, 0)
        self.assertEqual(vm.status(), 'paused')

    def test_stopped_in_stream(self) -> None:
        """The VM is stopped by another monitor, then the update fails."""
        vm = self.started()
        tool = vm.tool(fault=('start', 'from qemu.live_update import migration'
                              '; migration.SENDER["max-bandwidth"] = 4096'))
        self.assertTrue(tool.wait_for('start'))
        wait_for('migration runs', lambda: self.second(
            vm, 'query-migrate').get('status') == 'active')
        self.second(vm, 'stop')
        for pid in vm.new_qemus():
            os.kill(pid, signal.SIGKILL)
        outcome = tool.end()
        self.assertEqual(outcome.status, 2, outcome)
        self.assertEqual(vm.status(), 'paused')
        self.assert_updates_bare(vm)

    def test_busy_monitor(self) -> None:
        """Waiting for a busy monitor ends with the timeout, or Ctrl-C."""
        vm = self.started()
        with vm.qemu.monitor():
            begin = time.monotonic()
            self.assertEqual(vm.run('--timeout', '1').status, 1)
            tool = vm.tool()
            wait_for('live-update connects', lambda: any(
                vm.qemu.qmp in line and line.split()[5] == '03'
                for line in Path('/proc/net/unix').read_text(
                    'utf-8').splitlines()))
            tool.send(signal.SIGINT)
            tool.end_early()
            self.assertLess(time.monotonic() - begin, ANSWER)

    # The file system

    def test_other_way(self) -> None:
        """The path of the monitor leads through a symbolic link."""
        vm = self.started()
        link = vm.folder / 'link'
        link.symlink_to(vm.qemu.folder)
        qmp = vm.qemu.qmp
        vm.qemu.qmp = str(link / 'qmp.sock')
        self.assert_updates_bare(vm)
        with self.cut(vm, 'verify', 'tool'):
            pass
        vm.qemu.qmp = qmp
        self.assertEqual(vm.run().said('earlier')[:17],
                         'an earlier update')
        self.assertEqual(set(vm.processes()), {vm.qemu.pid})

    def test_report(self) -> None:
        """A report that cannot be written is mentioned before the result."""
        vm = self.started()
        outcome = vm.run('--dry-run', '--report', str(vm.qemu.folder))
        self.assertEqual(outcome.status, 0)
        self.assertIn('cannot be written', outcome.said('report'))

    @unittest.skipUnless(os.geteuid() == 0, 'needs root')
    def test_changes_user(self) -> None:
        """The old QEMU has changed its user with -run-with."""
        vm = self.bare('-run-with', 'user=nobody', ram=CPR)
        for path in vm.folder, vm.qemu.folder:
            path.chmod(0o711)
        vm.qemu.start()
        outcome = vm.run()
        self.assertEqual(outcome.status, 0, outcome)
        self.assertEqual(outcome.result['mode'], CPR)
        self.assertEqual(os.stat(f'/proc/{vm.qemu.pid}').st_uid, NOBODY)


if __name__ == '__main__':
    main()
