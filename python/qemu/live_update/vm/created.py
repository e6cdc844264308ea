# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the user has created in a running QEMU, and the options that create it

A QEMU that has the command query-created tells with which options things were
created.  IDs may have been used again since QEMU was started.
"""
import json
import re
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

from . import blocks
from ..error import Refused
from ..monitor import Monitor
from .cmdline import CommandLine, Option


QUERY = 'query-created'
# The options that create each kind of things.
OPTIONS = {'blockdev': ('blockdev',), 'chardev': ('chardev',),
           'device': ('device',), 'netdev': ('netdev', 'nic'),
           'object': ('object',)}
# Members of the ChardevBackend of each type, and the keys of -chardev that
# set them.
CHARDEV_KEYS: Dict[str, Dict[str, str]] = {
    'dbus': {'name': 'name'},
    'file': {'out': 'path', 'in': 'input-path', 'append': 'append'},
    'mux': {'chardev': 'chardev'},
    'parallel': {'device': 'path'},
    'pipe': {'device': 'path'},
    'pty': {'path': 'path'},
    'qemu-vdagent': {'mouse': 'mouse', 'clipboard': 'clipboard'},
    'ringbuf': {'size': 'size'},
    'memory': {'size': 'size'},
    'serial': {'device': 'path'},
    'socket': {name: name for name in (
        'server', 'wait', 'nodelay', 'telnet', 'tn3270', 'websocket',
        'reconnect-ms', 'tls-creds', 'tls-authz', 'path', 'abstract', 'tight',
        'host', 'port', 'to', 'ipv4', 'ipv6')},
    'spiceport': {'fqdn': 'name'},
    'spicevmc': {'type': 'name'},
    'udp': {name: name for name in (
        'host', 'port', 'ipv4', 'ipv6', 'localaddr', 'localport')},
    'vc': {name: name for name in ('width', 'height', 'cols', 'rows')},
    'hub': {f'chardevs.{number}': f'chardevs.{number}'
            for number in range(4)},
    **{name: {} for name in ('braille', 'console', 'msmouse', 'null',
                             'testdev', 'wctablet')},
}
COMMON_CHARDEV_KEYS = {'logfile': 'logfile', 'logappend': 'logappend'}
UNITS = {'': 1, 'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30,
         't': 1 << 40}


class Thing(NamedTuple):
    """An item of the answer of query-created."""
    kind: str
    id: str
    at_startup: bool
    changed: bool
    keyval: bool
    options: Dict[str, Any]

    def option(self) -> Option:
        """The option of the command line that creates it."""
        if self.kind == 'chardev':
            return chardev_option(self.id, self.options['backend'])
        if self.keyval:
            return Option(self.kind).with_parts(
                f'{key}={value}' for key, value in self.options.items())
        return Option(self.kind, json.dumps(self.options))


async def things(monitor: Monitor) -> Optional[List[Thing]]:
    """What the user has created, oldest first; None: QEMU cannot tell."""
    if QUERY not in (command['name'] for command
                     in await monitor.ask('query-commands')):
        return None
    return [Thing(item['kind'], item['id'], item['at-startup'],
                  item['changed'], item['keyval'], item['options'])
            for item in await monitor.ask(QUERY)]


def _members(backend: Dict[str, Any]) -> Iterator[Tuple[str, Any]]:
    """The members of a ChardevBackend, those of addresses included."""
    for name, value in backend['data'].items():
        if name in ('addr', 'remote', 'local'):
            if value['type'] not in ('unix', 'inet'):
                yield value['type'], True
                continue
            local = {'host': 'localaddr', 'port': 'localport'} \
                if name == 'local' else {}
            yield from ((local.get(key, key), item)
                        for key, item in value['data'].items())
        elif isinstance(value, list):
            yield from ((f'{name}.{number}', item)
                        for number, item in enumerate(value))
        else:
            yield name, value
    if backend['type'] == 'socket':
        # The defaults of QMP are not those of the command line.
        server = backend['data'].get('server', True)
        yield 'server', server
        if server:
            yield 'wait', backend['data'].get('wait', False)


def chardev_option(name: str, backend: Dict[str, Any]) -> Option:
    """
    The option that creates a chardev; raises Refused if there is none.

    @param backend: a ChardevBackend
    """
    kind = backend['type']
    known = CHARDEV_KEYS.get(kind)
    if known is None:
        raise Refused(
            f"the chardev '{name}' was added to the running VM, or changed; "
            f'the new QEMU cannot be given a chardev of the type {kind}; '
            'remove it, or give the command line after "--", without it')
    keys = {'id': name}
    for member, value in _members(backend):
        key = {**known, **COMMON_CHARDEV_KEYS}.get(member)
        if key:
            keys[key] = {True: 'on', False: 'off'}[value] \
                if isinstance(value, bool) else str(value)
        elif value not in (False, None):
            raise Refused(
                f"the chardev '{name}' was added to the running VM, or "
                f"changed, with the parameter '{member}', which the option "
                '-chardev lacks or which names a file of the old QEMU; '
                'remove the chardev, or give the command line after "--", '
                'without it')
    return Option('chardev').with_parts(
        [kind] + [f'{key}={value}' for key, value in keys.items()])


def _typed(value: str, kind: str) -> Any:
    """The JSON value of a property, from its string and type."""
    number = re.fullmatch(r'(0x[0-9a-fA-F]+|\d+)([bkmgt]?)', value,
                          re.IGNORECASE)
    if kind == 'bool':
        return value in ('on', 'yes', 'true', 'y')
    if kind == 'size' and number:
        return int(number[1], 0) * UNITS[number[2].lower()]
    if re.fullmatch(r'u?int\d*', kind) and re.fullmatch(
            r'-?(0x[0-9a-fA-F]+|\d+)', value):
        return int(value, 0)
    return value


async def typed_options(monitor: Monitor, thing: Thing
                        ) -> Optional[Dict[str, Any]]:
    """
    The options of a device in the form of QMP; None: not all are understood.

    QEMU creates the devices of options in JSON after all others.  A device
    that was plugged must be one of the last.
    """
    if not thing.keyval:
        return thing.options
    known = await monitor.properties(thing.options['driver']) or {}
    result = {}
    for key, value in thing.options.items():
        if key not in known and key not in ('driver', 'id', 'bus'):
            return None
        result[key] = _typed(value, known.get(key, {}).get('type', ''))
    return result


def flat(options: Dict[str, Any]) -> Dict[str, object]:
    """Options with the keys of nested ones joined by dots."""
    return Option('', json.dumps(options)).keys()


def changes_of(option: Option, thing: Thing) -> Dict[str, Any]:
    """The options of a device that "qom-set" has changed or added."""
    given = option.keys()
    now = flat(thing.options)
    return {key: value for key, value in now.items()
            if key != 'driver' and given.get(key) != value}


def sort_by_references(options: CommandLine, name: str) -> None:
    """Put each option of a name after those that it refers to."""
    positions = [position for position, option in enumerate(options)
                 if option.name == name]
    waiting = [options[position] for position in positions]
    result: List[Option] = []

    def place(option: Option) -> None:
        waiting.remove(option)
        for other in list(waiting):
            names = blocks.names_given([other]) | {other.id} - {''}
            if other in waiting and any(
                    any(CommandLine([option]).referring_to(word))
                    for word in names):
                place(other)
        result.append(option)

    while waiting:
        place(waiting[0])
    for position, option in zip(positions, result):
        options[position] = option
