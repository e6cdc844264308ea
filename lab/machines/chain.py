# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest that migrates from QEMU to QEMU, and its disks with backend-transfer
"""
import os
import signal
from concurrent import futures
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from qemu.live_update.host.process import is_listening

from .agent import Guest
from .disks import Disk
from .relay import Relay
from .scope import Scope
from .vm import VM, VMLaunchFailure
from .watch import wait_for

# How the new QEMU gets the guest's RAM: it opens the same file; it gets the
# file descriptor of a memfd; RAM is copied through the migration stream.
MODES = IGNORE_SHARED, CPR, COPY = 'x-ignore-shared', 'cpr-transfer', 'copy'
Starting = futures.Future[None]
ENDS = 'completed', 'failed', 'cancelled'


class TransferFailed(Exception):
    """A migration had another end than the expected one; says which."""


class Chain:
    """
    QEMUs that run the same guest, one after the other.

    path: of the socket on which a destination waits for the migration

    @param scope: owns the QEMUs
    @param disks: vhost-user disks of the guest
    @param mode: how the next QEMU gets the guest's RAM
    @param kernel: is the kernel of our guest given to QEMU?  Else the
                   firmware boots from a disk.
    @param make: makes the QEMUs, in place of scope.vm()
    @param options: of all QEMUs; see vm.VM
    """

    def __init__(self, scope: Scope, *disks: Disk, mode: str = IGNORE_SHARED,
                 args: Tuple[str, ...] = (), kernel: bool = True,
                 make: Optional[Callable[..., VM]] = None,
                 **options: Any) -> None:
        self.guest = Guest()
        self.mode = mode
        self.disks = list(disks)
        self.path = scope.path('migration')
        self._cpr_path = scope.path('cpr')
        self._scope = scope
        self._make = make or scope.vm
        self._args = args
        self._kernel = kernel
        self._options = options
        self._starting: Dict[VM, Starting] = {}
        if mode == IGNORE_SHARED:
            options['ram'] = ('memory-backend-file,share=on,mem-path='
                              f'{scope.memory()}')
        elif mode == CPR:
            self._args += ('-machine', 'aux-ram-share=on')

    def vm(self, *args: str, disks: Optional[List[Disk]] = None,
           **options: Any) -> VM:
        """Another QEMU, which is not started yet."""
        disks = self.disks if disks is None else disks
        vm = self._make(
            *self._args, *(arg for disk in disks for arg in disk.args()),
            *args, guest=self.guest, **{**self._options, **options})
        for option in () if self._kernel else ('-kernel', '-initrd',
                                               '-append'):
            at = vm.args.index(option)
            del vm.args[at:at + 2]
        return vm

    def boot(self, *args: str, **options: Any) -> VM:
        """Start the first QEMU and wait until the guest is up."""
        vm = self.vm(*args, **options)
        self._launch(vm)
        return vm.wait_booted()

    def destination(self, *args: str, **options: Any) -> VM:
        """
        Start a QEMU that waits for the guest.

        On return its monitor answers; with CPR, only after send().
        """
        incoming = ['-incoming', 'defer']
        if self.mode == CPR:
            incoming += ['-incoming', 'cpr,addr.transport=socket,addr.type='
                                      f'unix,addr.path={self._cpr_path}']
        vm = self.vm(*args, *incoming, **options)
        if self.mode == CPR:
            Path(self._cpr_path).unlink(missing_ok=True)
            self._starting[vm] = self._start(vm)
            wait_for('the new QEMU waits for the old one', lambda:
                     is_listening(self._cpr_path) or not vm.is_running() and
                     self._starting[vm].done())
        else:
            self._launch(vm)
        return vm

    def _launch(self, vm: VM) -> None:
        self._await(vm, self._start(vm))

    def _start(self, vm: VM) -> Starting:
        """Launch QEMU in a thread: each thread has its QMP event loop."""
        pool = futures.ThreadPoolExecutor(1)
        starting = pool.submit(vm.launch)
        self._scope.callback(self._abandon, vm, starting)
        return starting

    @staticmethod
    def _abandon(vm: VM, starting: Starting) -> None:
        """Kill a QEMU that has not answered on its monitor."""
        pid = vm.get_pid()
        if pid and not starting.done():
            os.kill(pid, signal.SIGKILL)
        starting.exception()

    def _await(self, vm: VM, starting: Starting, timeout: float = 10) -> None:
        """Wait until the monitor of a QEMU answers."""
        try:
            starting.result(timeout)
        except futures.TimeoutError:
            self._abandon(vm, starting)
            raise TransferFailed('the monitor of QEMU does not answer within '
                                 f'{timeout} s') from None
        except VMLaunchFailure as error:
            raise TransferFailed(f'QEMU ended: {error.output}') from error

    def prepare(self, vm: VM, transfer: bool = True,
                source: bool = False) -> None:
        """Set up migration; transfer is the parameter backend-transfer."""
        wanted = ['return-path', 'events']
        if self.mode == IGNORE_SHARED:
            wanted.append('x-ignore-shared')
        vm.cmd('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': True} for name in wanted])
        parameters: Dict[str, object] = {}
        if self.mode == CPR and source:
            parameters['mode'] = 'cpr-transfer'
        if transfer:
            parameters['backend-transfer'] = True
        vm.cmd('migrate-set-parameters', parameters)

    def send(self, source: VM, dest: VM, path: str = '',
             transfer: Tuple[bool, bool] = (True, True)) -> None:
        """
        Start a migration.

        @param path: of the socket to which the source connects, if it is not
                     the one of dest
        @param transfer: the parameter backend-transfer of source and dest
        """
        def channel(kind: str, where: str) -> Dict[str, object]:
            return {'channel-type': kind, 'addr': {
                'transport': 'socket', 'type': 'unix', 'path': where}}

        channels = [channel('main', path or self.path)]
        self.prepare(source, transfer[0], source=True)
        if self.mode == CPR:
            channels.append(channel('cpr', self._cpr_path))
            source.cmd('migrate', channels=channels)
            self._await(dest, self._starting[dest])
        self.prepare(dest, transfer[1])
        self.receive(dest)
        if self.mode != CPR:
            source.cmd('migrate', channels=channels)

    def send_half(self, source: VM) -> VM:
        """
        Migrate until the VM has stopped, before any back-end is handed over.

        The command migrate-continue completes the migration.
        """
        source.cmd('migrate-set-capabilities', capabilities=[
            {'capability': 'pause-before-switchover', 'state': True}])
        dest = self.destination()
        self.send(source, dest)
        wait_for('the VM has stopped', lambda:
                 migration_status(source) == 'pre-switchover')
        return dest

    def receive(self, dest: VM) -> None:
        """Have a QEMU listen; a failed migration will not end it."""
        dest.cmd('migrate-incoming', {'uri': f'unix:{self.path}',
                                      'exit-on-error': False})

    def transfer(self, source: VM, dest: Optional[VM] = None) -> VM:
        """Migrate the guest to dest, or to a new QEMU, and return that."""
        dest = dest or self.destination()
        self.send(source, dest)
        self.arrive(source, dest)
        return dest

    @staticmethod
    def settle(source: VM, dest: VM) -> None:
        """Wait until both sides say that the migration is complete."""
        try:
            wait_end(source)
            wait_end(dest)
        except TransferFailed as error:
            raise TransferFailed(f'{error}; the destination said: '
                                 f'{dest.output()}') from error
        # The migration is "completed" a moment before.
        wait_for('the source is in postmigrate',
                 lambda: status(source) == 'postmigrate')

    def relay(self, **options: Any) -> Relay:
        """A relay between the next source and the next destination."""
        relay = Relay(self._scope.path('relay'), self.path, **options)
        self._scope.callback(relay.close)
        return relay

    def arrive(self, source: VM, dest: VM) -> None:
        """Wait until the guest of a migration runs in the destination."""
        self.settle(source, dest)
        dest.event_wait('RESUME')
        dest.take_guest()


def status(vm: VM) -> str:
    """The status of query-status."""
    answer: Any = vm.cmd('query-status')
    return str(answer['status'])


def migration_status(vm: VM) -> str:
    """The status of query-migrate."""
    answer: Any = vm.cmd('query-migrate')
    return str(answer['status'])


def migration_error(vm: VM) -> str:
    """The error of query-migrate; empty if there is none."""
    answer: Any = vm.cmd('query-migrate')
    return str(answer.get('error-desc', ''))


def wait_end(vm: VM, *ends: str) -> None:
    """Wait until a migration has ended, by default with "completed"."""
    found = ''
    while found not in ENDS:
        event: Any = vm.event_wait('MIGRATION')
        found = event['data']['status']
    if found not in (ends or ('completed',)):
        raise TransferFailed(f'migration {found}: {migration_error(vm)}')
