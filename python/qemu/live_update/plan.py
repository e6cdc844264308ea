# SPDX-License-Identifier: GPL-2.0-or-later
"""
Check whether a VM can be updated, and plan how

Nothing here changes the VM or its QEMU.
"""
import os
from pathlib import Path
from typing import (
    Awaitable,
    Dict,
    List,
    Optional,
    Sequence,
    Set,
)

from .error import Refused
from .host.confinement import Confinement
from .host.private_files import CHANNELS, PrivateFiles, check_length
from .host.process import Process
from .migration import PARAMETER, UNDER_WAY
from .monitor import Monitor, MonitorError
from .output import Output
from .probe import Probe
from .vm import blocks, exclusive, servers, surroundings, usernet
from .vm.cmdline import CommandLine, is_on
from .vm.devices import Device, DeviceOptions, devices
from .vm.memory import (
    CPR,
    IGNORE_SHARED,
    Mode,
    choose_mode,
    skips_all_shared,
)
from .vm.new_files import append_to_files, has_server, rename_files


PROPERTY = 'backend-transfer'       # of a device
# The run states in which a VM can be updated.
STATES = 'running', 'paused'


class Plan:
    """
    An update that is possible.

    check() sets all attributes; call it first.

    process: the old QEMU, which runs the VM
    options: the command line of the new QEMU
    mode: how guest memory gets to the new QEMU
    transfer: do both QEMUs have backend-transfer?
    status: the run state of the VM
    devices: the devices that the VM has now
    files: the sockets and the pid file of the new QEMU

    @param monitor: of the old QEMU, connected
    @param binary: the new QEMU
    @param given: the VM's command line; None: take that of the old QEMU
    """
    # pylint: disable=too-many-instance-attributes

    def __init__(self, monitor: Monitor, binary: str,
                 given: Optional[Sequence[str]], output: Output) -> None:
        self.monitor = monitor
        self.binary = os.path.abspath(binary)
        self.process = Process(monitor.pid)
        self.options = CommandLine()
        self.mode = Mode('', '')
        self.transfer = False
        self.status = ''
        self.devices: Dict[str, Device] = {}
        self._given = given
        self._output = output
        users = self.process.users
        self.files = PrivateFiles(self.process.folder,
                                  (users['Uid'][1], users['Gid'][1]))
        self._refusals: List[str] = []
        self._skips_all = False
        self._channels = Path()

    async def check(self) -> None:
        """Do all checks; raises Refused if the VM cannot be updated."""
        await self._try('VM', self._check_vm())
        if not self._refusals:
            await self._try('block', blocks.check_work(self.monitor))
            await self._try('command', self._check_command_line())
            await self._try('binary', self._check_binary())
            await self._try('memory', self._check_memory())
            await self._try('files', self._check_access())
            await self._try('migration', self._check_migration())
        if len(self._refusals) == 1:
            raise Refused(self._refusals[0])
        if self._refusals:
            raise Refused(f'there are {len(self._refusals)} reasons, see '
                          'above')

    async def _try(self, name: str, check: Awaitable[None]) -> None:
        try:
            await check
        except (Refused, MonitorError) as error:
            self._refuse(name, str(error))

    def _refuse(self, name: str, message: str) -> None:
        self._refusals.append(message)
        self._output.check(name, 'refused', message)

    async def _check_vm(self) -> None:
        self.status = await self.monitor.status()
        if self.status not in STATES:
            raise Refused(f'the VM is in the state "{self.status}"; it must '
                          'be running or paused')
        if not self.process.shares_namespaces():
            raise Refused(f'process {self.process.pid} runs in other '
                          'namespaces (a container?); update it from there')
        surroundings.check_root(self.process)
        await surroundings.check_replay(self.monitor)
        name = (await self.monitor.ask('query-name')).get('name')
        self._output.check(
            'VM', 'ok', (f"'{name}', " if name else '') + f'{self.status}, '
            f'process {self.process.pid}, QEMU '
            f'{await self.monitor.version()}')

    async def _check_command_line(self) -> None:
        if self._given is None:
            arguments: Sequence[str] = self.process.arguments
        else:
            arguments = self._given
            if arguments and not arguments[0].startswith('-'):
                arguments = arguments[1:]
        options = CommandLine.parse(arguments)
        options.drop('S', 'incoming', 'loadvm')
        service = self.process.service()
        if service and not any(options.named('pidfile')):
            raise Refused(f"the VM is the main process of '{service}': "
                          'systemd would end both QEMUs with the old one; '
                          'use Type=forking, PIDFile= and -pidfile')
        options.set_machine(await self.monitor.machine())
        self.devices = await devices(self.monitor)
        if self._given is None:
            current = DeviceOptions(self.monitor, options)
            await current.follow(self.devices)
            for change in current.changes:
                self._output.check('command', 'ok', f'{change} since the VM '
                                   'was started: the new command line has '
                                   'that change')
            for loss in current.losses:
                self._output.check('command', 'warning', loss)
        await self._check_networks(options)
        self._check_options(options)
        await self._check_limits(options)
        await self._check_terminals(options)
        handed_over = self._handed_over(options)
        # A chardev that is postponed connects when a device uses it.
        idle = {name for name, state in
                (await self.monitor.chardevs()).items()
                if state.get('state') == 'postponed'}
        for message in servers.gone(options, self.process.folder,
                                    handed_over | idle):
            self._refuse('command', message)
        append_to_files(options)
        rename_files(options, self.files.socket, self.files.private,
                     handed_over)
        self.options = options
        self._find_monitor()

    def _check_options(self, options: CommandLine) -> None:
        """Refuse what the new QEMU cannot have while the old one runs."""
        for message in exclusive.reasons(options):
            self._refuse('command', message)
        for message in exclusive.warnings(options):
            self._output.check('command', 'warning', message)

    async def _check_networks(self, options: CommandLine) -> None:
        """Refuse ports that are forwarded, and NBD servers of one client."""
        ports = await usernet.forwarded(self.monitor)
        if self._given is None:
            usernet.drop_removed(options, ports)
            for message in usernet.added(options, ports):
                self._refuse('network', message)
        for message in usernet.reasons(options, ports):
            self._refuse('network', message)
        for message in await servers.busy_nbd_servers(self.monitor):
            self._refuse('block', message)

    @staticmethod
    def _handed_over(options: CommandLine) -> Set[str]:
        """The chardevs whose connections the new QEMU gets."""
        return {str(option.keys().get('chardev'))
                for option in options.named('device')
                if option.kind.startswith('vhost-user')}

    async def _check_limits(self, options: CommandLine) -> None:
        for name in await blocks.other_limits(self.monitor, options):
            self._output.check(
                'limits', 'warning', f"the limits of throttling of '{name}' "
                'were set while the VM ran, and will be those of the command '
                'line: set them again after the update')

    async def _check_terminals(self, options: CommandLine) -> None:
        """Warn of terminals (pty) that get another name."""
        stay = {option.id for option in options.named('chardev')
                if 'path' in option.keys()}
        for name, state in (await self.monitor.chardevs()).items():
            if state['filename'].startswith('pty:') and name not in stay:
                self._output.check(
                    'terminal', 'warning', f"'{name}' is at "
                    f'{state["filename"][len("pty:"):]} now, and will have '
                    'another name, which "query-chardev" tells')

    def _find_monitor(self) -> None:
        wanted = os.path.abspath(self.monitor.path)
        private = self.files.private(wanted)
        if not has_server(self.options, private):
            raise Refused(
                f"the command line has no monitor at '{wanted}' (a UNIX "
                'socket with server=on), so the new QEMU would not have it; '
                'use --qmp with a monitor that is on the command line')
        self._channels = Path(private).parent
        for name in CHANNELS:
            check_length(self.channel(name), os.path.dirname(wanted))

    async def _check_memory(self) -> None:
        self.mode = await choose_mode(
            self.monitor, self.process, self.options,
            self._skips_all or await skips_all_shared(self.monitor))
        self._output.check(
            'memory', 'ok' if self.mode.name in (CPR, IGNORE_SHARED)
            else 'warning', '; '.join((
                f'{self.mode.name}: {self.mode.reason}', *self.mode.blocks)))

    async def _check_access(self) -> None:
        if self._channels != Path():
            await surroundings.check_access(
                self.monitor, self.process, self.options,
                self._channels.parent)

    async def _check_binary(self) -> None:
        if not os.access(self.binary, os.X_OK):
            raise Refused(f"'{self.binary}' is not a program")
        probe = Probe(self.binary, self.process, not self.drops_privileges)
        async with probe as new:
            self._check_confinement(Confinement.of(probe.pid))
            machine = await self.monitor.machine()
            if machine not in await new.machines():
                raise Refused(f"'{self.binary}' does not know the machine "
                              f"'{machine}' of this VM")
            self._output.check('binary', 'ok', f'{self.binary}, QEMU '
                               f'{await new.version()}')
            self._skips_all = await skips_all_shared(new)
            here, there = [PARAMETER in await monitor.parameters()
                           for monitor in (self.monitor, new)]
            self.transfer = here and there
            for device in self.devices.values():
                if device.driver.startswith('vhost-user'):
                    await self._try(device.name,
                                    self._check_device(device, here, there,
                                                       new))

    def _check_confinement(self, new: Confinement) -> None:
        """Refuse an update if the new QEMU would have other rights."""
        sandbox = any(
            is_on(option.keys().get('', option.keys().get('enable')))
            for option in self.options.named('sandbox'))
        differences = Confinement.of(self.process.pid).differences(
            new, self.drops_privileges, sandbox)
        if differences:
            raise Refused(
                'the new QEMU would run with other rights than process '
                f'{self.process.pid}: {"; ".join(differences)}; run this as '
                'root, and with the confinement that the VM was started with '
                '(by a systemd service, runcon or aa-exec)')

    async def _check_device(self, device: Device, here: bool, there: bool,
                            new: Monitor) -> None:
        """
        Refuse a device whose back-end cannot be handed over.

        @param here: does the old QEMU have backend-transfer?
        @param there: does the new QEMU have it?
        @param new: of the probe
        """
        what = f"the device '{device.name}' ({device.driver})"
        takes_part = await self.monitor.get(device.path, PROPERTY)
        if takes_part is None:
            if here:
                raise Refused(f'{what} cannot be moved with its back-end '
                              'yet; unplug it first')
            raise Refused(
                f'the running QEMU cannot hand over the back-end of {what}: '
                'it lacks backend-transfer; unplug the device first, or '
                'restart the VM with a QEMU that has it')
        if not there or PROPERTY not in (
                await new.properties(device.driver) or {}):
            raise Refused(f"'{self.binary}' cannot take over the back-end of "
                          f'{what}; take a QEMU that has backend-transfer')
        if not takes_part:
            self._output.check(
                device.name, 'warning', 'has backend-transfer=off: the new '
                'QEMU opens a second connection to its back-end, which the '
                'back-end must allow')
            return
        chardev = await self.monitor.get(device.path, 'chardev')
        state = (await self.monitor.chardevs())[chardev]
        if state['filename'].startswith('disconnected:'):
            raise Refused(
                f"the back-end of {what} is not connected: '{chardev}' is "
                f"{state['filename']}; start the back-end first")
        self._output.check(device.name, 'ok', f'{device.driver}, back-end at '
                           f'{state["filename"]}: handed over')

    async def _check_migration(self) -> None:
        state = await self.monitor.migration()
        if state.get('status') in UNDER_WAY:
            raise Refused('the VM is being migrated')
        reasons = state.get('blocked-reasons', [])
        if reasons:
            raise Refused('QEMU says that the VM cannot be migrated: ' +
                          '; '.join(reasons))

    def command(self) -> List[str]:
        """The command that starts the new QEMU."""
        words = self.options.words() + ['-incoming', 'defer']
        if self.mode.name == CPR:
            path = self.channel('cpr').replace(',', ',,')
            words += ['-incoming', 'cpr,addr.transport=socket,addr.type=unix,'
                      f'addr.path={path}']
        return [self.binary] + words

    @property
    def new_monitor(self) -> str:
        """The path of the new QEMU's monitor."""
        return self.channel(Path(self.monitor.path).name)

    def channel(self, name: str) -> str:
        """The path of one of private_files.CHANNELS, or of the monitor."""
        return str(self._channels / name)

    @property
    def drops_privileges(self) -> bool:
        """Will the new QEMU change its user by an option?"""
        return any(option.name == 'runas' or
                   option.name == 'run-with' and 'user' in option.keys()
                   for option in self.options)

    def describe(self) -> str:
        """What an update would do, in words."""
        return (f'migrate with {self.mode.name}' +
                (' and backend-transfer' if self.transfer else '') +
                ' to a new QEMU; move its sockets and pid file to the names '
                'of those of the old QEMU; and end the old QEMU')
