# SPDX-License-Identifier: GPL-2.0-or-later
"""
A round whose runs of scripts/live-update are interrupted or killed
"""
import contextlib
import os
import signal
import time

from lab.machines.chain import COPY
from lab.machines.updated_vm import UpdatedVM
from lab.machines.vm import MEMFD

from .choices import ToolFault
from .mortal_vm import BAD, BAD_CONSOLE
from .round import Round


class UpdateRound(Round):
    """A round with updates."""

    def carry_out(self) -> None:
        """Boot, and carry out all updates."""
        vm = UpdatedVM(
            ram=MEMFD if self.plan.mode == COPY else self.plan.mode,
            disks=len(self.plan.disks))
        self.scope.callback(vm.close)
        self.scope.add_evidence(vm.describe)
        vm.boot()
        self.tally.add('boots')
        for fault in self.plan.tool:
            if time.monotonic() > self.until:
                break
            self.tally.begin_tool(fault)
            outcome = self.update(vm, fault)
            self.tally.end(outcome)
            if outcome == 'lost':
                return
        vm.stop_load()
        text = vm.qemu.log.read_text('utf-8', 'replace')
        assert not BAD.search(text), text
        text = vm.qemu.console.read_text('utf-8', 'replace')
        assert not BAD_CONSOLE.search(text), text
        for disk in vm.disks:
            assert disk.backend.is_running()
            text = disk.backend.output()
            assert not BAD.search(text), text

    def update(self, vm: UpdatedVM, fault: ToolFault) -> str:
        """Run live-update once, with a fault; returns the outcome."""
        before, old = vm.state(), vm.qemu.pid
        if fault.kind == 'none':
            vm.assert_updates()
            return 'moved'
        tool = vm.tool()
        self.scope.callback(tool.kill)
        if fault.kind == 'kill-new':
            assert tool.wait_for('start')
        time.sleep(fault.when)
        killed = []
        if fault.kind == 'kill-new':
            for pid in vm.new_qemus():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    self.tally.add('kills')
        elif fault.kind == 'SIGKILL':
            tool.kill()
            self.tally.add('kills')
            vm.assert_completes(before)
            return 'moved'
        else:
            tool.send(getattr(signal, fault.kind))
        if not tool.next():     # interrupted before its first event
            vm.state().assert_equal(before)
            return 'stayed'
        outcome = tool.end()
        if killed and (outcome.status == 3 or
                       outcome.result.get('pid') in killed):
            return 'lost'       # it had begun to run the VM
        vm.assert_survived(before, old, outcome)
        return 'stayed' if outcome.status else 'moved'
