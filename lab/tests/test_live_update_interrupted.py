# SPDX-License-Identifier: GPL-2.0-or-later
"""
live-update is interrupted or killed at any moment

The VM is unchanged or updated, and the next update succeeds.
"""
import random
import signal
import time
from typing import List

from lab.machines.chain import CPR
from lab.machines.updated_vm import UpdatedVM
from lab.machines.vm import MEMFD

from .live_update_case import LiveUpdateTest
from .testcase import main


class Interrupted(LiveUpdateTest):
    """SIGINT, SIGTERM or SIGKILL for live-update"""

    def events(self, vm: UpdatedVM) -> List[str]:
        """Update once; returns the names of all events."""
        return [event['name'] for event in vm.assert_updates().events
                if 'name' in event]

    def check_signals(self, vm: UpdatedVM) -> None:
        """SIGINT or SIGTERM at each event."""
        names = self.events(vm)
        for number, name in enumerate(names):
            with self.subTest(name):
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                self.assertTrue(tool.wait_for(name))
                tool.send((signal.SIGINT, signal.SIGTERM)[number % 2])
                outcome = tool.end()
                if name == 'VM':
                    self.assertIn('interrupted', outcome.message)
                vm.assert_survived(before, old, outcome)
        vm.assert_updates()

    def test_signals(self) -> None:
        """SIGINT or SIGTERM at each event; RAM is a file."""
        with self.shared() as vm:
            self.check_signals(vm)

    def test_signals_cpr(self) -> None:
        """SIGINT or SIGTERM at each event, with cpr-transfer."""
        vm = self.updated_vm(ram=CPR).boot()
        self.check_signals(vm)
        vm.stop_load()

    def test_random_signals(self) -> None:
        """SIGINT, twice, at random moments."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        with self.shared() as vm:
            begin = time.monotonic()
            vm.assert_updates()
            length = time.monotonic() - begin
            for _ in range(8):
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                assert tool.next()
                for _ in range(2):
                    time.sleep(moments.uniform(0, length / 2))
                    tool.send(signal.SIGINT)
                with self.subTest(f'seed {seed}'):
                    vm.assert_survived(before, old, tool.end())
            vm.assert_updates()

    def test_interrupted_early(self) -> None:
        """SIGINT before the first event."""
        with self.shared() as vm:
            for pause in 0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3:
                before, old = vm.state(), vm.qemu.pid
                tool = vm.tool()
                time.sleep(pause)
                tool.send(signal.SIGINT)
                outcome = tool.end_early()
                if outcome:
                    vm.assert_survived(before, old, outcome)
                self.assertTrue(outcome or vm.state() == before)
            vm.assert_updates()

    # SIGKILL

    def check_tool_killed(self, vm: UpdatedVM) -> None:
        """SIGKILL at each event; another run completes the update."""
        for name in self.events(vm):
            with self.subTest(name):
                before = vm.state()
                tool = vm.tool()
                self.assertTrue(tool.wait_for(name))
                tool.kill()
                vm.assert_completes(before)
        vm.assert_updates()

    def test_tool_killed(self) -> None:
        """SIGKILL at each event; RAM is a file."""
        with self.shared() as vm:
            self.check_tool_killed(vm)

    def test_tool_killed_at_random(self) -> None:
        """SIGKILL at random moments; RAM is copied."""
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        vm = self.updated_vm(ram=MEMFD).boot()
        begin = time.monotonic()
        vm.assert_updates()
        length = time.monotonic() - begin
        for _ in range(6):
            before = vm.state()
            tool = vm.tool()
            time.sleep(moments.uniform(0, length))
            tool.kill()
            with self.subTest(f'seed {seed}'):
                vm.assert_completes(before)
        with self.subTest(f'seed {seed}'):
            vm.stop_load()

    def test_tool_killed_in_stream(self) -> None:
        """SIGKILL during the migration; RAM is copied."""
        vm = self.updated_vm(ram=MEMFD).boot()
        for _ in range(4):
            before = vm.state()
            with vm.streaming() as tool:
                tool.kill()
            vm.assert_completes(before)
        vm.stop_load()

    # Several runs

    def test_two_at_a_time(self) -> None:
        """Three runs at a time: each is refused, or updates the VM."""
        with self.shared() as vm:
            before = vm.state()
            tools = [vm.tool() for _ in range(3)]
            outcomes = [tool.end() for tool in tools]
            self.assertIn(0, [outcome.status for outcome in outcomes])
            for outcome in outcomes:
                self.assertIn(outcome.status, (0, 1), outcome)
            vm.assert_completes(before)


if __name__ == '__main__':
    main()
