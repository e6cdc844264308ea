# SPDX-License-Identifier: GPL-2.0-or-later
"""
A round with scripts/live-update, which is interrupted or killed
"""
import contextlib
import os
import signal
import time

from lab.machines.chain import COPY
from lab.tests.live_update_case import Scene
from lab.tests.test_live_update_failures import LiveUpdateFailures

from .assignment import Assignment
from .choices import ToolFault
from .machine import BAD, BAD_CONSOLE

MEMFD = 'memory-backend-memfd,share=on'


class ToolRound(Assignment, LiveUpdateFailures):
    """A round with updates."""

    def carry_out(self) -> None:
        """Boot, and update."""
        scene = self.scene(
            ram=MEMFD if self.plan.mode == COPY else self.plan.mode,
            disks=len(self.plan.disks))
        scene.boot()
        self.tally.add('boots')
        for fault in self.plan.tool:
            if time.monotonic() > self.until:
                break
            self.tally.begin_tool(fault)
            outcome = self.update(scene, fault)
            self.tally.end(outcome)
            if outcome == 'lost':
                return
        scene.stop_load()
        text = scene.vm.log.read_text('utf-8', 'replace')
        self.assertIsNone(BAD.search(text), text)
        text = scene.vm.console.read_text('utf-8', 'replace')
        self.assertIsNone(BAD_CONSOLE.search(text), text)
        for disk in scene.disks:
            self.assertTrue(disk.backend.is_running())
            text = disk.backend.output()
            self.assertIsNone(BAD.search(text), text)

    def update(self, scene: Scene, fault: ToolFault) -> str:
        """One update; says what became of it."""
        before, old = scene.state(), scene.vm.pid
        if fault.kind == 'none':
            self.assert_updates(scene)
            return 'moved'
        tool = scene.tool()
        self.addCleanup(tool.kill)
        if fault.kind == 'kill-new':
            assert tool.wait_for('start')
        time.sleep(fault.when)
        killed = []
        if fault.kind == 'kill-new':
            for pid in scene.new_qemus():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    self.tally.add('kills')
        elif fault.kind == 'SIGKILL':
            tool.kill()
            self.tally.add('kills')
            self.assert_completes(scene, before)
            return 'moved'
        else:
            tool.send(getattr(signal, fault.kind))
        if not tool.next():     # it was interrupted before it said anything
            self.assertEqual(scene.state(), before)
            return 'stayed'
        outcome = tool.end()
        if killed and (outcome.status == 3 or
                       outcome.result.get('pid') in killed):
            return 'lost'       # it had begun to run the VM
        self.assert_survived(scene, before, old, outcome)
        return 'stayed' if outcome.status else 'moved'
