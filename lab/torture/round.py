# SPDX-License-Identifier: GPL-2.0-or-later
"""
A round: one VM, some transfers, their faults, and what must hold after each
"""
import contextlib
import os
import re
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, List, Optional, Set

from lab.machines.agent import GuestError
from lab.machines.backend import Backend, SampleBackend, make_disk
from lab.machines.chain import Line, plug
from lab.machines.disks import Daemon, Disk
from lab.machines.relay import Relay
from lab.machines.vm import HOTPLUG_BUSES
from lab.machines.watch import connections, wait_for
from lab.tests.transfer_case import TransferTest

from .assignment import Assignment
from .choices import (COMMANDS, DELAYED, LIMITS, PLUG_WAITING, SAMPLE, SLOW,
                      THROTTLED, UNPLUG, DiskChoice, Fault, Plan, Transfer)
from .faults import Limits, Saboteur, Timed, stream_fault, uses_sanitizer
from .machine import BAD, GONE, TROUBLE, Machine, has_ended
from .tally import Tally
from .work import Work

MEGABYTE = 1024 * 1024
LONGEST = 60                    # seconds that a transfer may take
RATE = {THROTTLED: 500, SLOW: 40}


def open_files(pid: int) -> 'Counter[str]':
    """How many files of each kind, or name, a process has open."""
    files: 'Counter[str]' = Counter()
    for name in os.listdir(f'/proc/{pid}/fd'):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f'/proc/{pid}/fd/{name}')
            # Numbers of sockets, and names of folders, are never the same.
            files[re.sub(r'\d{3,}|/.*qemu-(machine|torture)-[^.]*', '',
                         target)] += 1
    return files


def assert_no_more_files(pid: int, wanted: 'Counter[str]') -> None:
    """A process must not have more files open than it had."""
    more = wanted

    def is_so() -> bool:
        nonlocal more
        more = open_files(pid) - wanted
        return not more

    try:
        wait_for('no more files', is_so, 10)
    except TimeoutError:
        name = Path(f'/proc/{pid}/comm').read_text('utf-8').strip()
        raise AssertionError(f'too many files in {name}: {more}, '
                             f'on top of {wanted}') from None


class Sample(SampleBackend):
    """The sample back-end, which ends when its client does."""

    def status(self) -> Optional[int]:
        """How it has ended."""
        return self._process.poll() if self._process else None


class Member:
    """
    A disk of the VM, and its back-end.

    @param number: of the disk; none is as large as another
    """
    def __init__(self, case: 'TortureRound', number: int, choice: DiskChoice,
                 bus: str = '') -> None:
        self.name = f'd{number}'
        self.choice = choice
        self.size = 17 + number
        self.sectors = self.size * MEGABYTE // 512
        path = case.path(f'{self.name}.sock')
        image = make_disk(case.path(f'{self.name}.img'), self.size)
        if choice.backend == SAMPLE:
            self.backend: Backend = Sample(path, image)
        else:
            filters = [f'driver=null-co,node-name=disk,size='
                       f'{self.size * MEGABYTE},read-zeroes=on,'
                       'latency-ns=150000000'] \
                if choice.backend == DELAYED else []
            self.backend = Daemon(
                path, image, *filters, options=f',num-queues={choice.queues}',
                limit=RATE.get(choice.backend, 0))
        case.addCleanup(self.backend.__exit__, None, None, None)
        self.backend.start()
        self.disk = Disk(
            self.backend, self.name,
            choice.options + (f',bus={bus}' if bus else ''),
            ',reconnect-ms=50' if choice.reconnect else '')
        self.connection: Set[int] = set()
        self.files: 'Counter[str]' = Counter()

    def look(self) -> Set[int]:
        """The connections that its back-end has."""
        return connections(self.backend.pid, self.backend.path)

    def remember(self) -> None:
        """What its back-end holds is what it is to hold from now on."""
        wait_for(f'{self.name} has one connection',
                 lambda: len(self.look()) == 1)
        self.connection = self.look()
        self.files = open_files(self.backend.pid)

    def signal(self, number: int) -> None:
        """Send its back-end a signal, if it runs."""
        if self.backend.is_running():
            os.kill(self.backend.pid, number)

    def wait_free(self) -> None:
        """Its QEMU has ended: let another one connect."""
        wait_for('the back-end is free', lambda: not
                 self.backend.is_running() or not self.look())
        if isinstance(self.backend, Sample):
            self.judge()
            self.backend.kill()     # if it was restarted, and waits
            self.backend.start()

    def restart_if_ended(self) -> None:
        """Start a back-end that has ended with its client, as it does."""
        if not self.backend.is_running():
            self.judge()
            self.backend.start()

    def check(self) -> None:
        """Its back-end has one client, ever the same, and no more files."""
        if not self.connection:
            self.remember()
        assert self.look() == self.connection, \
            f'{self.name}: {self.look()} instead of {self.connection}'
        assert_no_more_files(self.backend.pid, self.files)

    def judge(self) -> None:
        """Nothing that the back-end printed, or its end, may be wrong."""
        text = self.backend.output()
        found = BAD.search(text)
        assert not found, f'the back-end of {self.name} printed {text[:2000]}'
        if isinstance(self.backend, Sample):
            code = self.backend.status()
            assert code in (None, 0, 1), \
                f'the back-end of {self.name} ended with {code}: {text}'
        else:
            assert self.backend.is_running(), \
                f'the back-end of {self.name} has ended: {text}'


class TortureRound(Assignment, TransferTest):
    """A round with transfers."""

    def __init__(self, plan: Plan, tally: Tally, until: float,
                 folder: Path) -> None:
        super().__init__(plan, tally, until, folder)
        self.machines: List[Machine] = []
        self.members: List[Member] = []     # those that are plugged in
        self.all_members: List[Member] = []
        # Of a QEMU to which the VM was moved
        self.files: 'Counter[str]' = Counter()
        self.boot_id = ''

    def vm(self, *args: str, **options: Any) -> Machine:
        """A QEMU of this round."""
        machine = Machine(*args, **options)
        self.addCleanup(machine.kill)
        self.machines.append(machine)
        self._vms.append(machine)
        return machine

    # The VM

    def keep_evidence(self) -> None:
        super().keep_evidence()
        for number, machine in enumerate(self.machines):
            for name, text in machine.logs().items():
                (self.folder / f'qemu{number}-{name}').write_text(
                    text, 'utf-8')
        for member in self.all_members:
            (self.folder / f'backend-{member.name}').write_text(
                member.backend.output(), 'utf-8')

    def carry_out(self) -> None:
        """Boot, and carry out all transfers."""
        self.work = Work()
        self.all_members = [
            Member(self, number, choice)
            for number, choice in enumerate(self.plan.disks)]
        self.members = list(self.all_members)
        self.spare = [
            Member(self, len(self.plan.disks) + number, choice,
                   HOTPLUG_BUSES[number])
            for number, choice in enumerate(self.plan.spare)]
        self.all_members += self.spare
        self.boot()
        for transfer in self.plan.transfers:
            if time.monotonic() > self.until:
                break
            self.transfer(transfer)
        self.work.stop(*self.work.runs)
        self.retire(self.source, False)
        for member in self.all_members:
            member.judge()
        for machine in self.machines:
            machine.judge()

    def boot(self) -> None:
        """Start the VM anew; what was complete before must be on its disks."""
        self.line = Line(self, *(member.disk for member in self.members),
                         mode=self.plan.mode,
                         args=('-smp', str(self.plan.cpus)))
        source = self.line.boot()
        assert isinstance(source, Machine)
        self.source = source
        self.tally.add('boots')
        self.work.moved_to(self.line.guest)
        self.booted()

    def booted(self) -> None:
        """The guest is up: check its disks, and put load on them."""
        self.boot_id = self.ask_boot_id()
        for run in list(self.work.runs.values()):
            run.check_after_crash(self.line.guest)
        for member in self.members:
            self.work.start(member.name, member.choice, member.sectors)
        self.work.advance()
        self.remember()

    def remember(self) -> None:
        """What is to stay from now on."""
        self.files.clear()
        for member in self.members:
            member.remember()

    def ask_boot_id(self) -> str:
        """What tells a guest from itself after a reset."""
        return self.line.guest.run('cat /proc/sys/kernel/random/boot_id', 30)

    def retire(self, vm: Machine, kill: bool) -> None:
        """End a QEMU; nothing may be wrong with its end."""
        if kill:
            vm.kill()
        else:
            vm.shutdown()
        vm.judge()

    # Hot-plug

    def plug(self, member: Member) -> None:
        """Plug a disk in, and put load on it."""
        plug(self.source, member.disk)
        self.members.append(member)
        self.line.disks.append(member.disk)
        self.work.start(member.name, member.choice, member.sectors)
        self.work.advance()
        self.files.clear()
        member.remember()

    def unplug(self, member: Member) -> None:
        """Unplug a disk."""
        self.work.stop(member.name)
        self.source.delete_device(member.name)
        self.source.cmd('chardev-remove', id=f'c-{member.name}')
        wait_for('the back-end is free', lambda: not member.look())
        self.members.remove(member)
        self.line.disks.remove(member.disk)
        self.files.clear()

    # A transfer

    def transfer(self, transfer: Transfer) -> None:
        """One transfer, and what must hold after it."""
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

    def start_destination(self, transfer: Transfer) -> Machine:
        """Start a QEMU that waits for the VM."""
        args = ['-S'] if transfer.hold else []
        if transfer.change == PLUG_WAITING:
            dest = self.line.destination(*args, disks=self.line.disks[:-1])
            plug(dest, self.spare[0].disk)
        else:
            dest = self.line.destination(*args)
        assert isinstance(dest, Machine)
        return dest

    def attempt(self, transfer: Transfer, dest: Machine) -> None:
        """Begin the transfer, and let its faults happen."""
        limits = Limits(dest)
        for fault in transfer.faults:
            if fault.kind in LIMITS and not (
                    fault.kind == 'memory-limit' and
                    uses_sanitizer(dest.binary)):
                limits.apply(fault, 10 + sum(
                    5 + 3 * member.choice.queues for member in self.members))
        relay: Optional[Relay] = None
        in_stream = stream_fault(transfer.faults)
        if in_stream:
            relay = Saboteur(
                self.path('relay'), self.line.path, in_stream,
                lambda who: self.kill(
                    self.source if who == 'source' else dest))
            self.addCleanup(relay.close)
        timed = Timed()
        try:
            self.schedule(timed, transfer, dest)
            try:
                self.line.send(self.source, dest,
                               path=relay.path if relay else '')
            except TROUBLE as error:
                self.tally.note(f'not begun: {str(error)[:300]}')
            for fault in sorted(transfer.faults, key=lambda f: f.when):
                if fault.kind in COMMANDS:
                    timed.sleep_until(fault.when)
                    self.command(fault, dest)
            self.wait_end(transfer, dest)
        finally:
            timed.join()
            if relay:
                relay.close()
            limits.lift()
        self.wait_end(transfer, dest)       # some may have died since

    def kill(self, machine: Machine) -> None:
        """Kill a QEMU, if it has not ended."""
        if machine.signal(signal.SIGKILL):
            self.tally.add('kills')

    def kill_backend(self, backend: Backend) -> None:
        """Kill a back-end, if it has not ended."""
        if backend.is_running():
            backend.kill()
            self.tally.add('kills')

    def schedule(self, timed: Timed, transfer: Transfer, dest: Machine
                 ) -> None:
        """Have signals sent."""
        for fault in transfer.faults:
            who = {'source': self.source, 'destination': dest}.get(
                fault.kind.partition('-')[2])
            if fault.kind == 'kill-backend':
                victims = [member.backend for member in self.members
                           if member.choice.reconnect]
                victim = victims[int(fault.amount * len(victims))]
                timed.at(fault.when, partial(self.kill_backend, victim))
                timed.at(fault.when + fault.length, victim.start)
            elif fault.kind == 'stuck-backend':
                member = self.members[int(fault.amount * len(self.members))]
                timed.freeze(fault, member.signal)
            elif fault.kind.startswith('kill-') and who:
                timed.at(fault.when, partial(self.kill, who))
            elif fault.kind.startswith('stuck-') and who:
                timed.freeze(fault, who.signal)

    def command(self, fault: Fault, dest: Machine) -> None:
        """Tell one of the QEMUs something; it may refuse."""
        what, _, who = fault.kind.partition('-')
        vm = dest if who == 'destination' else self.source
        command = {'cancel': 'migrate_cancel', 'reset': 'system_reset'}.get(
            what, what)
        self.tally.note(f'{fault.kind}: {vm.can(command)}')

    def wait_end(self, transfer: Transfer, dest: Machine) -> None:
        """Wait until nothing more is to come from the migration."""
        begin = time.monotonic()
        quiet = 0               # how often nobody began
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
                # Each of them may wait for the other, as on stock.
                cancelled = True
                self.tally.note('ended by migrate_cancel')
                self.source.can('migrate_cancel')
            assert waited < LONGEST, \
                f'source {source}, destination {new} for {LONGEST} s'
            time.sleep(0.01)

    def settle(self, transfer: Transfer, dest: Machine) -> Optional[Machine]:
        """Find the QEMU that has the VM, and see that it runs there."""
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

    def assert_refused(self, vm: Machine) -> None:
        """A VM that has run elsewhere must not be started again."""
        run = vm.look()[0]
        if run == 'gone':
            return
        assert run != 'running', 'the VM runs in two QEMUs'
        if run != 'inmigrate':
            assert not vm.can('cont'), f'"cont" is obeyed in {run}'
            assert vm.look()[0] != 'running'

    def take_care(self, owner: Machine, transfer: Transfer) -> None:
        """What was restarted is to do its work again."""
        owner.take_guest()
        if transfer.has('kill-backend'):
            for member in self.members:
                if member.choice.reconnect:
                    member.restart_if_ended()
                    wait_for(f'{member.name} is connected', member.look)
                    member.connection = set()
        if transfer.has('reset-source', 'reset-destination') and \
                self.was_reset():
            self.tally.note('reset')
            self.work.count()
            self.booted()

    def was_reset(self) -> bool:
        """Has the guest booted again?  It may be about to."""
        for _ in range(4):
            with contextlib.suppress(GuestError):
                return self.ask_boot_id() != self.boot_id
        raise GuestError('the guest does not answer after a reset')

    def check(self, owner: Machine, dest: Machine, transfer: Transfer,
              files: 'Counter[str]') -> None:
        """What must hold after each transfer."""
        other = self.source if owner is dest else dest
        self.assert_refused(other)
        self.work.advance()
        self.retire(other, transfer.kill_loser)
        self.work.advance()
        for member in self.members:
            member.check()
        pid = owner.get_pid() or 0
        if owner is dest:
            self.files = self.files or open_files(pid)
            files = self.files
        assert_no_more_files(pid, files)
        for name in 'migration', 'cpr':
            path = Path(self.path(name))
            assert not (owner is dest and path.exists()), \
                f'the socket {path} was left behind'
            path.unlink(missing_ok=True)
        self.source = owner
        owner.judge()

    def boot_after_loss(self, dest: Machine) -> None:
        """Its QEMU was killed: the VM boots again, with the same disks."""
        for vm in self.source, dest:
            self.retire(vm, True)
        for member in self.members:
            member.wait_free()
        self.boot()
