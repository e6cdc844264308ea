# SPDX-License-Identifier: GPL-2.0-or-later
"""
Options that the new QEMU cannot be given while the old one runs

Each rule of RULES has a kind of option, and the reason.  WARNINGS has options
that the new QEMU gets, but with a loss.
"""
import re
from typing import (
    Callable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    Tuple,
)

from .cmdline import CHARDEV_OPTIONS, CommandLine, Option, is_on


CHARDEVS = ' '.join(sorted(CHARDEV_OPTIONS | {'chardev', 's'}))
IMAGES = 'drive blockdev hda hdb hdc hdd cdrom fda fdb pflash sd mtdblock'
NETWORKS = 'netdev nic net'
OPENING = f'{CHARDEVS} {NETWORKS} {IMAGES} device object fsdev virtfs'
# Networks whose host device can be open in one process only.
EXCLUSIVE_NETWORKS = 'tap', 'bridge', 'vhost-vdpa', 'af-xdp', 'netmap'
# Devices that have a device or an address of the host for themselves.
EXCLUSIVE_DEVICES = ('vfio-pci', 'vfio-ap', 'vfio-ccw', 'usb-host',
                     'virtio-input-host', 'vhost-vsock', 'vhost-scsi',
                     'vhost-vdpa')
REPLUG = ('unplug the network card and delete its netdev, and plug them '
          'again after the update')
WITHOUT = 'give the command line after "--", without it'
SOCKET_INSTEAD = ('start the VM with a UNIX socket in its place, or '
                  f'{WITHOUT}')


class Rule(NamedTuple):
    """
    A kind of option.

    names: of the options, separated by blanks
    applies: to an option of one of these names?
    reason: goes after the option; it says what to do, too
    """
    names: str
    applies: Callable[[Option, CommandLine], object]
    reason: str


def _always(_option: Option, _options: CommandLine) -> bool:
    return True


def _is(*kinds: str) -> Callable[[Option, CommandLine], object]:
    """Is the option's kind one of these?"""
    return lambda option, _: option.kind in kinds


def _key(*names: str) -> Callable[[Option, CommandLine], object]:
    """Does the option have one of these keys?"""
    return lambda option, _: option.keys().keys() & set(names)


def _backend(*kinds: str) -> Callable[[Option, CommandLine], object]:
    """Is the back-end of the option's chardev one of these?"""
    return lambda option, _: option.chardev().get('backend') in kinds


def _uses_terminal(_option: Option, options: CommandLine) -> bool:
    """
    Is a port of a VM with -nographic at the terminal?

    It is not if there are no default ports, or if options replace them.
    """
    if any(options.named('nodefaults')):
        return False
    has_serial = any(options.named('serial')) or any(
        option.kind in ('isa-serial', 'xen-console')
        for option in options.named('device'))
    has_monitor = any(options.named('monitor', 'qmp', 'qmp-pretty', 'mon')) \
        or any(option.value.startswith('mon:')
               for option in options.named('serial', 'parallel'))
    return not (has_serial and has_monitor)


def _has_fd(option: Option, _: CommandLine) -> bool:
    """Does the option name a file descriptor?"""
    keys = {**option.keys(), **option.chardev()}
    return any(re.fullmatch('(vhost)?fds?', key) or
               '/dev/fdset/' in str(value) or
               key.rpartition('.')[2] == 'type' and value == 'fd'
               for key, value in keys.items())


def _is_server(option: Option) -> bool:
    return is_on(option.chardev().get('server'))


def _listens_on_port(option: Option, _: CommandLine) -> bool:
    """Does a chardev listen at an address that is no path?"""
    return _is_server(option) and \
        not option.chardev().keys() & {'path', 'fd'}


def display_of_vnc(option: Option) -> str:
    """The address of a VNC server that the option creates, or ''."""
    if option.name == 'display':
        if not option.value.startswith('vnc='):
            return ''
        option = Option('vnc', option.value[len('vnc='):])
    keys = option.keys()
    if option.name != 'vnc' or is_on(keys.get('reverse')):
        return ''
    return str(keys.get('', keys.get('vnc', '')))


def _shows_on_port(option: Option, _: CommandLine) -> bool:
    """Does a VNC server listen on a TCP port?"""
    address = display_of_vnc(option)
    return ':' in address and not address.startswith('unix:')


def _needs_password(option: Option, _: CommandLine) -> bool:
    """Does the user set the password of a display through the monitor?"""
    if option.name == 'spice':
        keys = option.keys()
        return not is_on(keys.get('disable-ticketing')) and \
            not keys.keys() & {'password', 'password-secret'}
    keys = Option('vnc', option.value).keys()
    return bool(display_of_vnc(option)) and is_on(keys.get('password')) and \
        'password-secret' not in keys


def _binds(option: Option, _: CommandLine) -> bool:
    """Does a network bind a socket to an address that only one can have?"""
    keys = option.keys()
    if option.kind == 'socket':
        return 'localaddr' in keys and 'mcast' not in keys or 'listen' in keys
    remote = re.match(r'\d+(?=\.)', str(keys.get('remote.host', '')))
    is_multicast = remote and 224 <= int(remote[0]) < 240
    return option.kind == 'l2tpv3' or option.kind == 'dgram' and \
        not is_multicast and keys.get('local.type') in ('inet', 'unix')


def _reconnects(option: Option) -> bool:
    keys = option.keys()
    return any(str(keys.get(key, 0)) != '0'
               for key in ('reconnect', 'reconnect-ms'))


def _is_client(option: Option) -> bool:
    """Does a network connect to a server?"""
    keys = option.keys()
    return option.kind == 'stream' and not is_on(keys.get('server')) or \
        option.kind == 'socket' and 'connect' in keys


def _waits_for_backend(option: Option, options: CommandLine) -> bool:
    """Does a vhost-user device that is not handed over wait for a client?"""
    keys = option.keys()
    return option.kind.startswith('vhost-user') and \
        keys.get('backend-transfer', True) in (False, 'off', 'no', 'false',
                                               'n') and any(
            _is_server(other) for other in options.named('chardev')
            if other.id == keys.get('chardev'))


def _truncates_log(option: Option, _: CommandLine) -> bool:
    return '%d' not in option.value


def _writes_wave(option: Option, _: CommandLine) -> bool:
    return 'wav' in (option.kind, option.keys().get('driver'))


TRUNCATES = ('would have the new QEMU truncate a file of the old one; give '
             'the command line after "--", without this option or with the '
             'name of another file')
RULES: Sequence[Rule] = (
    # What only the old QEMU has
    Rule('snapshot', _always, 'has what the guest writes in temporary files '
         f'that only the old QEMU has; {WITHOUT}'),
    Rule(IMAGES, lambda option, _: is_on(option.keys().get('snapshot')),
         'has what the guest writes in a temporary file that only the old '
         f'QEMU has; {WITHOUT}'),
    Rule('add-fd', _always, 'passes a file descriptor that only the old QEMU '
         f'has; {WITHOUT}'),
    Rule(OPENING, _has_fd, 'uses a file descriptor that was given to the old '
         f'QEMU; {WITHOUT}'),
    Rule('icount', lambda option, _: option.keys().get('rr', 'none') !=
         'none', 'records the run of the VM, or replays it, '
         f'which a new QEMU cannot continue; {WITHOUT}'),
    # The way in which QEMU is started
    Rule('readconfig', _always, 'has options in a file, which live-update '
         'does not read; give the command line after "--", with these '
         'options'),
    Rule('preconfig', _always, 'would have the new QEMU wait for its machine '
         f'to be configured; {WITHOUT}'),
    Rule('run-with', lambda option, _: is_on(
        option.keys().get('exit-with-parent')),
         'would end the new QEMU when live-update ends, which starts it; '
         f'{WITHOUT}'),
    Rule('chroot', _always, 'would keep the two QEMUs from the sockets by '
         'which they talk; start the VM without it'),
    Rule('run-with', _key('chroot'), 'would keep the two QEMUs from the '
         'sockets by which they talk; start the VM without chroot='),
    # The terminal
    Rule('nographic', _uses_terminal, 'has the serial port or the monitor at '
         'the terminal of the old QEMU, which two QEMUs cannot share; start '
         'the VM with -serial and -monitor elsewhere'),
    Rule(CHARDEVS, _backend('stdio'), 'uses the terminal of the old QEMU, '
         'which two QEMUs cannot share; start the VM with a UNIX socket in '
         'its place'),
    Rule('curses', _always, 'uses the terminal of the old QEMU, which two '
         'QEMUs cannot share; start the VM with another display'),
    Rule('display', _is('curses'), 'uses the terminal of the old QEMU, which '
         'two QEMUs cannot share; start the VM with another display'),
    # What both QEMUs would read
    Rule(CHARDEVS, _backend('pipe'), 'would have both QEMUs read from one '
         'FIFO, so that each gets a part of the data; start the VM with a '
         'UNIX socket in its place'),
    Rule(CHARDEVS, _backend('serial', 'tty', 'parallel', 'parport'),
         'would have both QEMUs read from one device, so that each gets a '
         f'part of the data; {WITHOUT}'),
    # Files that the new QEMU would empty
    Rule('D', _truncates_log, TRUNCATES),
    Rule('qtest-log', _always, TRUNCATES),
    Rule('trace', _key('file'), TRUNCATES),
    Rule('audiodev audio', _writes_wave, TRUNCATES),
    Rule('object', _is('filter-dump'),
         TRUNCATES + ', or remove it with "object-del"'),
    Rule('device', _key('pcap'), TRUNCATES + ', or unplug the device'),
    # Addresses at which only one can listen
    Rule(CHARDEVS, lambda option, _: _is_server(option) and is_on(
        option.chardev().get('abstract')),
         'listens at an abstract name, which only one QEMU can; start the VM '
         f'with the path of a UNIX socket in its place, or {WITHOUT}'),
    Rule(CHARDEVS, _listens_on_port,
         f'listens on a TCP port, which only one QEMU can; {SOCKET_INSTEAD}'),
    Rule('guestfwd', lambda option, _: _is_server(option),
         'listens for what is to talk to the guest, which only one QEMU can; '
         f'{WITHOUT}'),
    Rule('vnc display', _shows_on_port,
         f'listens on a TCP port, which only one QEMU can; {SOCKET_INSTEAD}'),
    Rule('spice', _key('port', 'tls-port'),
         f'listens on a TCP port, which only one QEMU can; {SOCKET_INSTEAD}'),
    Rule('device', _waits_for_backend,
         'has backend-transfer=off and a chardev that listens for the '
         'back-end, which is connected to the old QEMU; unplug the device'),
    # Networks
    Rule(NETWORKS, lambda option, _: is_on(option.keys().get('server')),
         'listens for another process, which can be done by one QEMU only; '
         f'{WITHOUT}'),
    Rule(NETWORKS, _binds, 'has a socket of its own, which the new QEMU would '
         f'take away from the old one at its start; {REPLUG}'),
    Rule(NETWORKS, _is(*EXCLUSIVE_NETWORKS), 'cannot be opened by the new '
         f'QEMU while the old one has it; {REPLUG}'),
    Rule(NETWORKS, _is('vhost-user'), 'has a back-end that cannot be moved '
         f'yet; {REPLUG}'),
    Rule(NETWORKS, lambda option, _: _is_client(option) and
         not _reconnects(option),
         'would have the new QEMU connect to the server while the old one is '
         'connected; a server with one client would end that connection, and '
         'QEMU would not connect again; give the command line after "--", '
         'with reconnect-ms='),
    Rule(NETWORKS, lambda option, _: option.kind == 'passt' and
         {key.partition('.')[0] for key in option.keys()} &
         {'tcp-ports', 'udp-ports'},
         'forwards ports of the host, which only one process can listen on; '
         f'{REPLUG}'),
    # Devices of the host, and servers with one client
    Rule('device', lambda option, _: option.kind.startswith(
        EXCLUSIVE_DEVICES),
         'has a device or an address of the host, which only one QEMU can '
         'have; unplug the device, and plug it again after the update'),
    Rule('object', _is('cryptodev-vhost-user', 'vhost-user-backend'),
         'has a back-end that cannot be moved yet; unplug the device that '
         'uses it, and remove it with "object-del"'),
    Rule('tpmdev', _always, 'is a TPM, which serves one QEMU at a time; '
         'remove the TPM from the VM'),
)
WARNINGS: Sequence[Rule] = (
    Rule(NETWORKS, _is('user', 'passt'),
         'connections of the guest over it will end'),
    Rule(NETWORKS, lambda option, _: _is_client(option) and
         _reconnects(option),
         'the guest has this network when the server accepts the new QEMU, '
         'at the latest when the old one has ended'),
    Rule('vnc display spice', _needs_password,
         'a password that was set through the monitor will be gone; set it '
         'again after the update'),
)


def _with_guest_forwards(options: CommandLine
                         ) -> Iterator[Tuple[Option, Option]]:
    """All options, and the chardevs in them, which are options, too."""
    for option in options:
        yield option, option
        if option.name not in NETWORKS.split():
            continue
        for key, value in option.items():
            if key.partition('.')[0] == 'guestfwd':
                # tcp:SERVER:PORT-CHARDEV
                device = str(value).partition('-')[2]
                if not device.startswith('cmd:'):
                    yield option, Option('guestfwd', device)


def _found(rules: Sequence[Rule], options: CommandLine
           ) -> Iterator[Tuple[Option, str]]:
    for option, part in _with_guest_forwards(options):
        for rule in rules:
            if part.name in rule.names.split() and \
                    rule.applies(part, options):
                yield option, rule.reason
                break       # one reason for an option is enough


def reasons(options: CommandLine) -> List[str]:
    """Why the new QEMU cannot be given these options: all reasons."""
    return [f"'{option}' {reason}"
            for option, reason in _found(RULES, options)]


def warnings(options: CommandLine) -> List[str]:
    """What the VM loses."""
    return [f"'{option}': {reason}"
            for option, reason in _found(WARNINGS, options)]
