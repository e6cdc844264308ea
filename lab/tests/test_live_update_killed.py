# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU, or a back-end, is killed or stops during an update

The VM runs on, nothing is left behind, and the next update succeeds.
"""
import os
import signal
from pathlib import Path

from lab.machines.chain import CPR, IGNORE_SHARED
from lab.machines.tool import PREFIX
from lab.machines.updated_vm import UpdatedVM
from lab.machines.vm import MEMFD

from .live_update_case import LiveUpdateTest
from .testcase import main


class Killed(LiveUpdateTest):
    """Processes other than live-update that fail"""

    def test_backend_dies(self) -> None:
        """A back-end is killed; the QEMU that has the VM reconnects."""
        vm = self.updated_vm(chardev=',reconnect-ms=100').boot()
        vm.stop_load()
        backend = vm.disks[0].backend
        for moment in 'd0', 'start', 'migrate', 'names':
            with self.subTest(moment):
                old = vm.qemu.pid
                tool = vm.tool()
                self.assertTrue(tool.wait_for(moment))
                backend.kill()
                outcome = tool.end()
                self.assertIn(outcome.status, (0, 1, 2), outcome)
                backend.start()
                if vm.qemu.pid != old:
                    vm.qemu.connect()
                vm.start_load()
                vm.check_alive()
                vm.assert_updates()
                vm.stop_load()

    # The new QEMU

    def test_killed_at_start(self) -> None:
        """The new QEMU is killed when it waits for the VM."""
        with self.shared() as vm:
            before = vm.state()
            tool = vm.tool()
            self.assertTrue(tool.wait_for('start'))
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            vm.assert_unchanged(before, outcome, outcome.status,
                                'the new QEMU')
            vm.assert_updates()

    def assert_private(self, vm: UpdatedVM) -> None:
        """Other users must not have access to sockets of the new QEMU."""
        sockets = {}
        for folder in vm.qemu.folder.glob(f'{PREFIX}*'):
            self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
            for file in filter(Path.is_socket, folder.iterdir()):
                sockets[file.name] = file.stat().st_mode & 0o777
        self.assertIn('migration', sockets)
        self.assertIn(Path(vm.qemu.qmp).name, sockets)
        self.assertEqual(set(sockets.values()), {0o600}, sockets)

    def test_killed_in_stream(self) -> None:
        """The new QEMU is killed or stopped during the migration."""
        vm = self.updated_vm(ram=MEMFD).boot()
        before = vm.state()
        with vm.streaming() as tool:
            self.assert_private(vm)
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGKILL)
            outcome = tool.end()
        vm.assert_unchanged(before, outcome, 2,
                            'the VM runs on in the old QEMU')

        # It is stopped: the timeout, or SIGINT, ends the update.
        for options, number in (('--timeout', '6'), 0), ((), signal.SIGINT):
            before = vm.state()
            with vm.streaming(*options) as tool:
                for pid in vm.new_qemus():
                    os.kill(pid, signal.SIGSTOP)
                if number:
                    tool.send(number)
                outcome = tool.end()
            vm.assert_unchanged(before, outcome, 2,
                                'the VM runs on in the old QEMU')
        vm.assert_updates()
        vm.stop_load()

    def test_stopped_at_start(self) -> None:
        """The new QEMU is stopped while it waits for the VM."""
        for mode in IGNORE_SHARED, CPR:
            vm = self.updated_vm(ram=mode).boot()
            before = vm.state()
            tool = vm.tool('--timeout', '5')
            self.assertTrue(tool.wait_for('start'))
            for pid in vm.new_qemus():
                os.kill(pid, signal.SIGSTOP)
            outcome = tool.end()
            self.assertIn(outcome.status, (1, 2))
            vm.assert_unchanged(before, outcome, outcome.status)
            vm.assert_updates()
            vm.stop_load()
            vm.close()


if __name__ == '__main__':
    main()
