# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the tests of scripts/live-update share
"""
import atexit
import contextlib
from typing import Any, Iterator, List

from lab.machines.updated_vm import UpdatedVM

from .testcase import TestCase

RAM = 'memory-backend-ram'
NOBODY = 65534                  # the user id of an unprivileged user
# A "fault" of tool.FAULTY: live-update takes the running QEMU for one that
# does not tell what was created.
STOCK = ('VM', 'from qemu.live_update.vm import created\n'
         'created.QUERY = "missing"')


class LiveUpdateTest(TestCase):
    """A test of live-update"""
    idle: List[UpdatedVM] = []      # VMs that run, for the next test

    def updated_vm(self, *args: str, **options: Any) -> UpdatedVM:
        """A VM for this test alone; it is not started yet."""
        vm = UpdatedVM(*args, **options)
        self._own(vm)
        return vm

    def bare(self, *args: str, **options: Any) -> UpdatedVM:
        """A VM without a guest; it is not started yet."""
        vm = self.updated_vm(*args, disks=0, **{'ram': RAM, **options})
        for option in '-kernel', '-initrd', '-append':
            vm.qemu.drop(option)
        return vm

    @staticmethod
    def start_paused(vm: UpdatedVM, *args: str, **options: Any) -> None:
        """Start a bare VM and stop it, so that nothing changes in it."""
        vm.qemu.start(*args, **options)
        with vm.qemu.monitor() as monitor:
            monitor.cmd('stop')

    def _own(self, vm: UpdatedVM) -> None:
        """End the VM with this test; if that fails, the VM is evidence."""
        self.scope.callback(vm.close)
        self.scope.add_evidence(vm.describe)

    @contextlib.contextmanager
    def shared(self) -> Iterator[UpdatedVM]:
        """
        A VM that runs, for a "with" block; at its end it must still run.

        If the block succeeds, the next test gets the same VM.
        """
        vm = self.idle.pop() if self.idle else UpdatedVM()
        try:
            if not vm.qemu.is_started:
                vm.qemu.boot()
            vm.start_load()
            yield vm
            vm.stop_load()
        except BaseException:
            self._own(vm)
            raise
        self.idle.append(vm)

    @classmethod
    def setUpClass(cls) -> None:
        # unittest does not call tearDownClass() after a KeyboardInterrupt.
        atexit.register(cls.tearDownClass)

    @classmethod
    def tearDownClass(cls) -> None:
        while cls.idle:
            cls.idle.pop().close()
