# SPDX-License-Identifier: GPL-2.0-or-later
"""
A round with transfers: their faults, and the checks after each transfer
"""
import contextlib
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, List, Optional

from lab.machines.agent import GuestError
from lab.machines.backend import Backend
from lab.machines.chain import Chain
from lab.machines.relay import Relay
from lab.machines.vm import HOTPLUG_BUSES
from lab.machines.watch import wait_for

from .choices import (COMMANDS, LIMITS, PLUG_WAITING, UNPLUG, Fault, Plan,
                      Transfer)
from .faults import FaultyRelay, Limits, Schedule, stream_fault, uses_sanitizer
from .guest_load import GuestLoad
from .mortal_vm import GONE, TROUBLE, MortalVM, has_ended
from .open_files import assert_no_more_files, open_files
from .round import Round
from .tally import Tally
from .torture_disk import TortureDisk

LONGEST = 60                    # seconds that a transfer may take


class TransferRound(Round):
    """A round with transfers."""

    def __init__(self, plan: Plan, tally: Tally, until: float,
                 folder: Path) -> None:
        super().__init__(plan, tally, until, folder)
        self.qemus: List[MortalVM] = []
        self.disks: List[TortureDisk] = []      # of the VM, at the moment
        self.all_disks: List[TortureDisk] = []
        # The files that a QEMU has open which the VM has migrated to
        self.files: 'Counter[str]' = Counter()
        self.boot_id = ''

    def vm(self, *args: str, **options: Any) -> MortalVM:
        """Make a QEMU of this round."""
        vm = MortalVM(*args, **options)
        self.scope.callback(vm.kill)
        self.scope.vms.append(vm)
        self.qemus.append(vm)
        return vm

    # The VM

    def keep_evidence(self) -> None:
        super().keep_evidence()
        for number, vm in enumerate(self.qemus):
            for name, text in vm.logs().items():
                (self.folder / f'qemu{number}-{name}').write_text(
                    text, 'utf-8')
        for disk in self.all_disks:
            (self.folder / f'backend-{disk.name}').write_text(
                disk.backend.output(), 'utf-8')

    def carry_out(self) -> None:
        """Boot, and carry out all transfers."""
        self.load = GuestLoad()
        self.all_disks = [
            TortureDisk(self.scope, number, choice)
            for number, choice in enumerate(self.plan.disks)]
        self.disks = list(self.all_disks)
        self.spare = [
            TortureDisk(self.scope, len(self.plan.disks) + number, choice,
                        HOTPLUG_BUSES[number])
            for number, choice in enumerate(self.plan.spare)]
        self.all_disks += self.spare
        self.boot()
        for transfer in self.plan.transfers:
            if time.monotonic() > self.until:
                break
            self.transfer(transfer)
        self.load.stop(*self.load.runs)
        self.retire(self.source, False)
        for disk in self.all_disks:
            disk.judge()
        for vm in self.qemus:
            vm.judge()

    def boot(self) -> None:
        """Boot the VM; completed writes of an earlier boot must be on disk."""
        self.chain = Chain(self.scope, *self.disks, mode=self.plan.mode,
                           args=('-smp', str(self.plan.cpus)), make=self.vm)
        source = self.chain.boot()
        assert isinstance(source, MortalVM)
        self.source = source
        self.tally.add('boots')
        self.load.moved_to(self.chain.guest)
        self.booted()

    def booted(self) -> None:
        """After a boot of the guest, check its disks and put load on them."""
        self.boot_id = self.ask_boot_id()
        for run in list(self.load.runs.values()):
            run.check_after_crash(self.chain.guest)
        for disk in self.disks:
            self.load.start(disk.name, disk.choice, disk.sectors)
        self.load.advance()
        self.remember()

    def remember(self) -> None:
        """Remember connections and files, for later checks."""
        self.files.clear()
        for disk in self.disks:
            disk.remember()

    def ask_boot_id(self) -> str:
        """The boot id of the guest, which changes with a reset."""
        return self.chain.guest.run('cat /proc/sys/kernel/random/boot_id', 30)

    def retire(self, vm: MortalVM, kill: bool) -> None:
        """End a QEMU, whose output and exit status must be good."""
        if kill:
            vm.kill()
        else:
            vm.shutdown()
        vm.judge()

    # Hot-plug

    def plug(self, disk: TortureDisk) -> None:
        """Hot-plug a disk, and put load on it."""
        disk.plug(self.source)
        self.disks.append(disk)
        self.chain.disks.append(disk)
        self.load.start(disk.name, disk.choice, disk.sectors)
        self.load.advance()
        self.files.clear()
        disk.remember()

    def unplug(self, disk: TortureDisk) -> None:
        """Unplug a disk."""
        self.load.stop(disk.name)
        self.source.delete_device(disk.name)
        self.source.cmd('chardev-remove', id=disk.chardev)
        wait_for('the back-end is free', lambda: not disk.look())
        self.disks.remove(disk)
        self.chain.disks.remove(disk)
        self.files.clear()

    # A transfer

    def transfer(self, transfer: Transfer) -> None:
        """Carry out a transfer, and check everything after it."""
        if transfer.change == UNPLUG:
            self.unplug(self.spare[0])
        elif transfer.change:
            self.plug(self.spare[0])
        files = open_files(self.source.get_pid() or 0)
        if transfer.paused:
            self.source.cmd('stop')
        self.tally.begin(transfer)
        dest = self.start_destination(transfer)
        self.attempt(transfer, dest)
        owner = self.settle(transfer, dest)
        self.tally.end('moved' if owner is dest else
                       'stayed' if owner else 'lost')
        if owner:
            self.take_care(owner, transfer)
            self.check(owner, dest, transfer, files)
        else:
            self.boot_after_loss(dest)

    def start_destination(self, transfer: Transfer) -> MortalVM:
        """Start a QEMU that waits for the VM."""
        args = ['-S'] if transfer.hold else []
        if transfer.change == PLUG_WAITING:
            dest = self.chain.destination(*args, disks=self.chain.disks[:-1])
            self.spare[0].plug(dest)
        else:
            dest = self.chain.destination(*args)
        assert isinstance(dest, MortalVM)
        return dest

    def attempt(self, transfer: Transfer, dest: MortalVM) -> None:
        """Migrate the VM, and inject the faults."""
        limits = Limits(dest)
        for fault in transfer.faults:
            if fault.kind in LIMITS and not (
                    fault.kind == 'memory-limit' and
                    uses_sanitizer(dest.binary)):
                limits.apply(fault, 10 + sum(
                    5 + 3 * disk.choice.queues for disk in self.disks))
        relay: Optional[Relay] = None
        in_stream = stream_fault(transfer.faults)
        if in_stream:
            relay = FaultyRelay(
                self.scope.path('relay'), self.chain.path, in_stream,
                lambda who: self.kill(
                    self.source if who == 'source' else dest))
            self.scope.callback(relay.close)
        schedule = Schedule()
        try:
            self.plan_signals(schedule, transfer, dest)
            try:
                self.chain.send(self.source, dest,
                                path=relay.path if relay else '')
            except TROUBLE as error:
                self.tally.note(f'not begun: {str(error)[:300]}')
            for fault in sorted(transfer.faults, key=lambda f: f.when):
                if fault.kind in COMMANDS:
                    schedule.sleep_until(fault.when)
                    self.command(fault, dest)
            self.wait_end(transfer, dest)
        finally:
            schedule.join()
            if relay:
                relay.close()
            limits.lift()
        self.wait_end(transfer, dest)       # after the last faults

    def kill(self, vm: MortalVM) -> None:
        """Kill a QEMU, if it has not ended."""
        if vm.signal(signal.SIGKILL):
            self.tally.add('kills')

    def kill_backend(self, backend: Backend) -> None:
        """Kill a back-end, if it has not ended."""
        if backend.is_running():
            backend.kill()
            self.tally.add('kills')

    def plan_signals(self, schedule: Schedule, transfer: Transfer,
                     dest: MortalVM) -> None:
        """Have the schedule send the signals of the faults."""
        for fault in transfer.faults:
            who = {'source': self.source, 'destination': dest}.get(
                fault.kind.partition('-')[2])
            if fault.kind == 'kill-backend':
                victims = [disk.backend for disk in self.disks
                           if disk.choice.reconnect]
                victim = victims[int(fault.amount * len(victims))]
                schedule.at(fault.when, partial(self.kill_backend, victim))
                schedule.at(fault.when + fault.length, victim.start)
            elif fault.kind == 'stuck-backend':
                disk = self.disks[int(fault.amount * len(self.disks))]
                schedule.freeze(fault, disk.signal)
            elif fault.kind.startswith('kill-') and who:
                schedule.at(fault.when, partial(self.kill, who))
            elif fault.kind.startswith('stuck-') and who:
                schedule.freeze(fault, who.signal)

    def command(self, fault: Fault, dest: MortalVM) -> None:
        """Execute a command in one of the QEMUs; it may fail."""
        what, _, who = fault.kind.partition('-')
        vm = dest if who == 'destination' else self.source
        command = {'cancel': 'migrate_cancel', 'reset': 'system_reset'}.get(
            what, what)
        self.tally.note(f'{fault.kind}: {vm.can(command)}')

    def wait_end(self, transfer: Transfer, dest: MortalVM) -> None:
        """Wait until the migration has ended in both QEMUs."""
        begin = time.monotonic()
        quiet = 0               # how often no migration was found
        cancelled = False
        while True:
            source, new = self.source.look(), dest.look()
            self.states = source, new
            idle = '', 'none', 'setup'
            if has_ended(source) and has_ended(new):
                return
            if (has_ended(source) or source[1] in idle[:2]) and (
                    has_ended(new) or new[1] in idle):
                quiet += 1
                if quiet == 20:
                    return
            else:
                quiet = 0
            waited = time.monotonic() - begin
            if waited > 5 and not cancelled and transfer.has(
                    'corrupted-stream'):
                # Both QEMUs may wait for each other; stock QEMU does, too.
                cancelled = True
                self.tally.note('ended by migrate_cancel')
                self.source.can('migrate_cancel')
            assert waited < LONGEST, \
                f'source {source}, destination {new} for {LONGEST} s'
            time.sleep(0.01)

    def settle(self, transfer: Transfer, dest: MortalVM) -> Optional[MortalVM]:
        """Find the QEMU that owns the VM, in which the VM must run."""
        source_state, state = self.states
        if dest.has_claimed:
            if state == GONE:
                self.assert_refused(self.source)
                return None
            owner = dest
        elif source_state == GONE:
            if state == GONE or state[1] != 'completed':
                return None
            owner = dest
        elif state in (('paused', 'completed'), ('prelaunch', 'completed')) \
                and source_state[0] != 'running' and not transfer.take_back:
            owner = dest
        else:
            owner = self.source
        now = owner.look()
        if now[0] != 'running':
            excused = transfer.paused or transfer.hold or transfer.has(
                'stop-source', 'stop-destination', 'reset-source') or (
                now[0] == 'postmigrate' and
                source_state[1] == 'completed') or (
                owner is self.source and state[1] == 'completed')
            if not excused:
                wait_for(f'the VM runs by itself, after {self.states}',
                         lambda: owner.look()[0] == 'running')
            wait_for('"cont" is obeyed', lambda: owner.look()[0] == 'running'
                     or owner.can('cont'))
            wait_for('the VM runs', lambda: owner.look()[0] == 'running')
        return owner

    def assert_refused(self, vm: MortalVM) -> None:
        """A QEMU that does not own the VM must refuse to run it."""
        run = vm.look()[0]
        if run == 'gone':
            return
        assert run != 'running', 'the VM runs in two QEMUs'
        if run != 'inmigrate':
            assert not vm.can('cont'), f'"cont" is obeyed in {run}'
            assert vm.look()[0] != 'running'

    def take_care(self, owner: MortalVM, transfer: Transfer) -> None:
        """Wait until a restarted back-end or guest works again."""
        owner.take_guest()
        if transfer.has('kill-backend'):
            for disk in self.disks:
                if disk.choice.reconnect:
                    disk.restart_if_ended()
                    wait_for(f'{disk.name} is connected', disk.look)
                    disk.connection = set()
        if transfer.has('reset-source', 'reset-destination') and \
                self.was_reset():
            self.tally.note('reset')
            self.load.count()
            self.booted()

    def was_reset(self) -> bool:
        """Has the guest booted again?"""
        for _ in range(4):
            with contextlib.suppress(GuestError):
                return self.ask_boot_id() != self.boot_id
        raise GuestError('the guest does not answer after a reset')

    def check(self, owner: MortalVM, dest: MortalVM, transfer: Transfer,
              files: 'Counter[str]') -> None:
        """Check everything that must be true after a transfer."""
        other = self.source if owner is dest else dest
        self.assert_refused(other)
        self.load.advance()
        self.retire(other, transfer.kill_loser)
        self.load.advance()
        for disk in self.disks:
            disk.check()
        pid = owner.get_pid() or 0
        if owner is dest:
            self.files = self.files or open_files(pid)
            files = self.files
        assert_no_more_files(pid, files)
        for name in 'migration', 'cpr':
            path = Path(self.scope.path(name))
            assert not (owner is dest and path.exists()), \
                f'the socket {path} was left behind'
            path.unlink(missing_ok=True)
        self.source = owner
        owner.judge()

    def boot_after_loss(self, dest: MortalVM) -> None:
        """Boot the VM again, with the same disks, if its QEMU was killed."""
        for vm in self.source, dest:
            self.retire(vm, True)
        for disk in self.disks:
            disk.wait_free()
        self.boot()
