# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest that moves from QEMU to QEMU while its disks stay with their back-ends
"""
import os
import signal
from concurrent import futures
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from qemu.live_update.process import is_listening

from lab.tests.testcase import TestCase

from .agent import Guest
from .disks import Disk
from .vm import VM, VMLaunchFailure
from .watch import wait_for

# How RAM gets to the new QEMU: it opens the same file; it gets the memory's
# file descriptors; all is copied.
IGNORE_SHARED, CPR, COPY = 'x-ignore-shared', 'cpr-transfer', 'copy'
Starting = futures.Future[None]
ENDS = 'completed', 'failed', 'cancelled'


class TransferFailed(Exception):
    """A migration did not end as it should; says why."""


class Line:
    """
    QEMUs that run the same guest one after the other.

    @param disks: of the guest
    @param mode: how RAM gets to the next QEMU
    @param kernel: is our guest to boot?  Else the firmware finds a disk.
    @param options: of all VMs; see vm.VM
    """

    def __init__(self, test: TestCase, *disks: Disk, mode: str = IGNORE_SHARED,
                 args: Tuple[str, ...] = (), kernel: bool = True,
                 **options: Any) -> None:
        self.guest = Guest()
        self.mode = mode
        self.disks = list(disks)
        self.path = test.path('migration')
        self._cpr_path = test.path('cpr')
        self._test = test
        self._args = args
        self._kernel = kernel
        self._options = options
        self._starting: Dict[VM, Starting] = {}
        if mode == IGNORE_SHARED:
            memory = f'/dev/shm/qemu-functional-{os.getpid()}-{id(self):x}'
            test.addCleanup(Path(memory).unlink, missing_ok=True)
            options['ram'] = f'memory-backend-file,share=on,mem-path={memory}'
        elif mode == CPR:
            self._args += ('-machine', 'aux-ram-share=on')

    def vm(self, *args: str, disks: Optional[List[Disk]] = None,
           **options: Any) -> VM:
        """One of the QEMUs; it is not started yet."""
        disks = self.disks if disks is None else disks
        vm = self._test.vm(
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

        Its monitor answers when this returns; with CPR, not before send().
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
        """Launch it in a thread of its own: QMP's event loop is per thread."""
        pool = futures.ThreadPoolExecutor(1)
        starting = pool.submit(vm.launch)
        self._test.addCleanup(self._abandon, vm, starting)
        return starting

    @staticmethod
    def _abandon(vm: VM, starting: Starting) -> None:
        """Kill a QEMU whose monitor does not answer."""
        pid = vm.get_pid()
        if pid and not starting.done():
            os.kill(pid, signal.SIGKILL)
        starting.exception()

    def _await(self, vm: VM, starting: Starting, timeout: float = 10) -> None:
        """Wait until the monitor answers."""
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
        """Set the parameters of migration; transfer is backend-transfer."""
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

        @param path: where the source connects to, if not to dest
        @param transfer: is backend-transfer on in source and dest?
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
        Migrate until the VM has stopped and nothing is handed over yet.

        migrate-continue goes on with it.
        """
        source.cmd('migrate-set-capabilities', capabilities=[
            {'capability': 'pause-before-switchover', 'state': True}])
        dest = self.destination()
        self.send(source, dest)
        wait_for('the VM has stopped', lambda:
                 migration_status(source) == 'pre-switchover')
        return dest

    def receive(self, dest: VM) -> None:
        """Have a QEMU listen; it will not exit when migration fails."""
        dest.cmd('migrate-incoming', {'uri': f'unix:{self.path}',
                                      'exit-on-error': False})

    def transfer(self, source: VM, dest: Optional[VM] = None) -> VM:
        """Move the guest to dest, or to a new QEMU, and return that."""
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
        # It says "completed" a moment before.
        wait_for('the source is in postmigrate',
                 lambda: status(source) == 'postmigrate')

    def arrive(self, source: VM, dest: VM) -> None:
        """Wait until a guest that was sent runs at its new place."""
        self.settle(source, dest)
        dest.event_wait('RESUME')
        dest.take_guest()


def plug(vm: VM, disk: Disk) -> None:
    """Hot-plug a disk."""
    vm.add_chardev(f'c-{disk.name}', disk.backend.path)
    options = dict(option.split('=') for option in disk.options.split(',')[1:])
    vm.cmd('device_add', {'driver': 'vhost-user-blk-pci', 'id': disk.name,
                          'chardev': f'c-{disk.name}', **options})


def status(vm: VM) -> str:
    """The run state of a VM."""
    answer: Any = vm.cmd('query-status')
    return str(answer['status'])


def migration_status(vm: VM) -> str:
    """How far a migration is."""
    answer: Any = vm.cmd('query-migrate')
    return str(answer['status'])


def migration_error(vm: VM) -> str:
    """Why a migration has failed."""
    answer: Any = vm.cmd('query-migrate')
    return str(answer.get('error-desc', ''))


def wait_end(vm: VM, *ends: str) -> None:
    """Wait until a migration has come to one of these ends, and no other."""
    found = ''
    while found not in ENDS:
        event: Any = vm.event_wait('MIGRATION')
        found = event['data']['status']
    if found not in (ends or ('completed',)):
        raise TransferFailed(f'migration {found}: {migration_error(vm)}')
