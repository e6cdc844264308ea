# SPDX-License-Identifier: GPL-2.0-or-later
"""
Parse the command line of a QEMU

Only values that an update has to know are parsed.  All others are passed on
unchanged.
"""
import json
import re
from typing import (
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Tuple,
)

from .qemu_json import flatten, parse_object


# Options without an argument, of all versions of QEMU.  Any other option takes
# the next word as its argument, whatever that looks like.
FLAGS = set(
    'S alt-grab ctrl-grab curses daemonize enable-fips enable-hax enable-kvm '
    'enable-sync-profile full-screen h help jitdump mem-prealloc no-acpi '
    'no-fd-bootchk no-frame no-hpet no-kvm no-quit no-reboot no-shutdown '
    'no-user-config nodefaults nodefconfig nographic old-param '
    'one-insn-per-tb only-migratable perfmap portrait preconfig s sdl '
    'semihosting singlestep snapshot usb version win2k-hack xen-attach '
    'xen-create xen-domid-restrict'.split())
# Options whose argument begins with a key: "snapshot" means "snapshot=on".
# That of any other option may begin with the value of a key that it implies:
# "socket" means "backend=socket" after -chardev.
NO_IMPLIED_KEY = {'drive', 'run-with', 'spice'}
# Options whose value is a chardev in the short form: "unix:PATH,server=on".
# "guestfwd" is a key of -netdev, which exclusive.py takes for an option.
CHARDEV_OPTIONS = {'serial', 'parallel', 'monitor', 'qmp', 'qmp-pretty',
                   'debugcon', 'gdb', 'qtest', 'guestfwd'}


def _value(text: str) -> Tuple[str, str]:
    """Split off a value, which ends before a comma; ",," is a comma."""
    raw = re.match('(?:,,|[^,])*', text)
    assert raw
    return raw[0].replace(',,', ','), text[raw.end() + 1:]


def pairs(text: str, implied: bool) -> Iterator[Tuple[str, str]]:
    """
    Parse "a=b,c=d" as QEMU does.

    In "x,y,noz", "y" gets the value "on", and "z" the value "off".

    @param implied: is "x" a value?  It gets the key '' then.
    """
    while text:
        key = re.split('[=,]', text, maxsplit=1)[0]
        if text.startswith('=', len(key)):
            value, text = _value(text[len(key) + 1:])
        elif implied:
            key = ''
            value, text = _value(text)
        else:
            text = text[len(key) + 1:]
            value = 'on'
            if key.startswith('no'):
                key, value = key[2:], 'off'
        implied = False
        yield key, value


class Option(NamedTuple):
    """
    An option of the command line, without its dash.

    value: '' if the option has none
    is_empty: true if the option has a value, which is ''
    """
    name: str
    value: str = ''
    is_empty: bool = False

    def __str__(self) -> str:
        return ' '.join(self.words())

    def words(self) -> List[str]:
        """The option as arguments of a command."""
        return [f'-{self.name}'] + (
            [self.value] if self.value or self.is_empty else [])

    @property
    def parts(self) -> List[str]:
        """The parts of the value between commas; ",," is a comma."""
        return [part.replace('\0', ',')
                for part in self.value.replace(',,', '\0').split(',')]

    def with_parts(self, parts: Iterable[str]) -> 'Option':
        """The option with another value, of these parts."""
        return self._replace(
            value=','.join(part.replace(',', ',,') for part in parts))

    def items(self) -> List[Tuple[str, object]]:
        """
        Parse a value that has the form "a=b,c=d", or is a JSON object.

        In "socket,id=x,server", "socket" gets the key '', and "server" the
        value "on".  Keys of nested JSON objects are joined by dots.  A key may
        occur more than once.
        """
        if self.value.startswith('{'):
            try:
                return list(flatten(parse_object(self.value)))
            except ValueError:
                return []
        return list(pairs(self.value, self.name not in NO_IMPLIED_KEY))

    def keys(self) -> Dict[str, object]:
        """The keys and their values; of two values, the last one counts."""
        return dict(self.items())

    def changed(self, changes: Dict[str, str]) -> 'Option':
        """The option with other values of some keys."""
        if self.value.startswith('{'):
            return self._replace(value=json.dumps(
                {**parse_object(self.value), **changes},
                ensure_ascii=False))
        kept = [part for part in self.parts
                if part.partition('=')[0] not in changes]
        return self.with_parts(
            kept + [f'{key}={value}' for key, value in changes.items()])

    @property
    def id(self) -> str:
        """The value of "id" or "node-name"; '': it has neither."""
        keys = self.keys()
        return str(keys.get('id', keys.get('node-name', '')))

    @property
    def kind(self) -> str:
        """The driver, type or back-end that it names, or ''."""
        keys = self.keys()
        return str(next((keys[key] for key in (
            '', 'driver', 'qom-type', 'type', 'backend') if key in keys), ''))

    def chardev(self) -> Dict[str, object]:
        """
        The keys of the chardev that the option creates, or {}.

        The short form "unix:PATH,server=on" has the keys of
        "socket,path=PATH,server=on".
        """
        if self.name == 'chardev':
            keys = self.keys()
            return {'backend': keys.pop('', ''), **keys}
        if self.name == 's':
            return _short_chardev('tcp::1234,server=on')
        if self.name not in CHARDEV_OPTIONS:
            return {}
        if self.name == 'gdb' and self.value.startswith('tcp:'):
            return _short_chardev(f'{self.value},server=on')
        return _short_chardev(self.value)


def _short_chardev(text: str) -> Dict[str, object]:
    """Parse the short form of a chardev."""
    if text.startswith('mon:'):
        text = text[len('mon:'):]
    kind, colon, rest = text.partition(':')
    if kind == 'unix':
        found = dict(pairs(rest, True))
        path = {'path': found.pop('')} if '' in found else {}
        return {'backend': 'socket', **path, **found}
    if kind in ('tcp', 'telnet', 'tn3270', 'websocket'):
        address, _, more = rest.partition(',')
        host, _, port = address.rpartition(':')
        return {'backend': 'socket', 'host': host, 'port': port,
                **dict(pairs(more, False))}
    if kind == 'udp':
        local = rest.partition('@')[2]
        return {'backend': 'udp', **({'local': local} if local else {})}
    if colon and kind in ('file', 'pipe', 'pty'):
        return {'backend': kind, 'path': rest}
    if text.startswith('/dev/'):
        return {'backend': 'parallel' if text.startswith(
            ('/dev/parport', '/dev/ppi')) else 'serial', 'path': text}
    return {} if kind in ('chardev', 'none') else {'backend': kind}


def is_on(value: object) -> bool:
    """Is the value of a key one of those that mean "on"?"""
    return value in (True, 'on', 'yes', 'true', 'y')


class CommandLine(List[Option]):
    """The command line of a QEMU, a list of options."""

    @classmethod
    def parse(cls, arguments: Iterable[str]) -> 'CommandLine':
        """Parse arguments, without the name of the program."""
        result = cls()
        rest = iter(arguments)
        for word in rest:
            if not word.startswith('-'):
                # QEMU takes a word without an option as an image.
                result.append(Option('hda', word, not word))
                continue
            name = word[2 if word.startswith('--') else 1:]
            value = None if name in FLAGS else next(rest, None)
            result.append(Option(name, value or '', value == ''))
        return result

    def words(self) -> List[str]:
        """The options as arguments of a command."""
        return [word for option in self for word in option.words()]

    def named(self, *names: str) -> Iterator[Option]:
        """The options that have one of these names, in order."""
        return (option for option in self if option.name in names)

    def referring_to(self, name: str) -> Iterator[Option]:
        """The options that refer to the object of this name."""
        return (option for option in self if any(
            value == name for key, value in option.items()
            if key not in ('id', 'node-name')))

    def drop(self, *names: str) -> None:
        """Remove the options that have one of these names."""
        self[:] = [option for option in self if option.name not in names]

    def set_machine(self, machine: str) -> None:
        """
        Set the type of the machine, with its version.

        Without a version, the new QEMU would create the newest version that
        it knows, which may differ from that of the VM.  Several options may
        name a type: the last one counts.
        """
        last = None
        for position, option in enumerate(self):
            if option.name not in ('machine', 'M'):
                continue
            rest = [part for part in option.parts if '=' in part and
                    not part.startswith('type=')]
            if len(rest) < len(option.parts):
                last = position
                self[position] = Option('machine').with_parts(rest)
        if last is None:
            self.insert(0, Option('machine', machine))
        else:
            value = self[last].value
            self[last] = Option('machine', f'{machine},{value}' if value
                                else machine)
        self[:] = [option for option in self if option != Option('machine')]
