# SPDX-License-Identifier: GPL-2.0-or-later
"""
QEMU's command line: taken apart, and changed for the QEMU that comes next

Values are read only as far as an update has to know them; everything else is
passed on as it is.
"""
import json
import re
from typing import (Callable, Collection, Dict, Iterable, Iterator, List,
                    NamedTuple)

from .error import Refused


# Options whose value is a chardev in the short form: "unix:PATH,server=on".
CHARDEV_OPTIONS = {'serial', 'parallel', 'monitor', 'qmp', 'qmp-pretty',
                   'debugcon', 'gdb'}
# Options by which QEMU opens files.
OPENING_OPTIONS = CHARDEV_OPTIONS | {
    'chardev', 'netdev', 'nic', 'device', 'object', 'drive', 'blockdev'}
# What cannot be had twice, or cannot be seen from outside.
REFUSED_OPTIONS = {
    'snapshot': 'what the guest writes is in temporary files that only the '
                'old QEMU has',
    'readconfig': 'options in a file are not looked at',
    'add-fd': 'it passes a file descriptor that only the old QEMU has',
    'preconfig': 'the new QEMU would wait for its machine to be configured',
    'nographic': 'the new QEMU cannot share the terminal with the old one',
}


class Option(NamedTuple):
    """An option, without its dash, and its value; '' is no value."""
    name: str
    value: str = ''

    def words(self) -> List[str]:
        """What it is on a command line."""
        return [f'-{self.name}'] + ([self.value] if self.value else [])

    @property
    def parts(self) -> List[str]:
        """What stands between commas; "a,,b" is a part with a comma."""
        return [part.replace('\0', ',')
                for part in self.value.replace(',,', '\0').split(',')]

    def with_parts(self, parts: Iterable[str]) -> 'Option':
        """The same option with another value."""
        return self._replace(
            value=','.join(part.replace(',', ',,') for part in parts))

    def keys(self) -> Dict[str, object]:
        """
        The value's keys, whether it is written as JSON or with commas.

        A first word without "=" has the key ''; other ones mean "on".
        """
        if self.value.startswith('{'):
            try:
                parsed = json.loads(self.value)
            except json.JSONDecodeError:
                return {}
            return parsed if isinstance(parsed, dict) else {}
        words = [part.partition('=') for part in self.parts]
        result: Dict[str, object] = {
            key: value if equals else 'on' for key, equals, value in words}
        if not words[0][1]:
            del result[words[0][0]]
            result[''] = words[0][0]
        return result

    def changed(self, changes: Dict[str, str]) -> 'Option':
        """The same option, written with commas, with other values of keys."""
        kept = [part for part in self.parts
                if part.partition('=')[0] not in changes]
        return self.with_parts(
            kept + [f'{key}={value}' for key, value in changes.items()])

    @property
    def id(self) -> str:
        """The name of what it creates, if the user gave it one."""
        keys = self.keys()
        return str(keys.get('id', keys.get('node-name', '')))


def is_on(value: object) -> bool:
    """Does the value of a key mean yes?"""
    return value in (True, 'on', 'yes', 'true', 'y')


def _listens_on_tcp(option: Option, first: str) -> bool:
    """Does an option that needs no server=on listen on a port?"""
    if option.name == 'gdb':
        return first.startswith('tcp:')
    if option.name == 'vnc':
        return ':' in first and not first.startswith('unix:')
    return option.name == 's' or option.name == 'spice' and \
        bool(option.keys().keys() & {'port', 'tls-port'})


class CommandLine(List[Option]):
    """The options of a QEMU."""

    @classmethod
    def parse(cls, arguments: Iterable[str]) -> 'CommandLine':
        """Take arguments apart; the name of the program is not one."""
        result = cls()
        for word in arguments:
            value_of_any_form = result and result[-1] == Option('append')
            if word.startswith('-') and len(word) > 1 and \
                    not value_of_any_form:
                result.append(Option(word[2 if word[1] == '-' else 1:]))
            elif result and not result[-1].value:
                result[-1] = result[-1]._replace(value=word)
            else:
                raise Refused(
                    f"the command line has '{word}' where an option is "
                    'expected; give it anew after "--", with -drive for disk '
                    'images')
        return result

    def words(self) -> List[str]:
        """The arguments for a QEMU."""
        return [word for option in self for word in option.words()]

    def named(self, *names: str) -> Iterator[Option]:
        """All options of some names, in order."""
        return (option for option in self if option.name in names)

    def drop(self, *names: str) -> None:
        """Remove all options of some names."""
        self[:] = [option for option in self if option.name not in names]

    def check(self) -> None:
        """Refuse options that cannot be given to a second QEMU."""
        for option in self:
            whole = ' '.join(option.words())
            if option.name in REFUSED_OPTIONS:
                raise Refused(f"the VM has the option '{whole}', which "
                              'cannot be carried over: '
                              f'{REFUSED_OPTIONS[option.name]}')
            if option.name in CHARDEV_OPTIONS | {'chardev'} and \
                    option.parts[0] in ('stdio', 'mon:stdio'):
                raise Refused(
                    f"'{whole}' uses the terminal of the old QEMU, which two "
                    'QEMUs cannot share; start the VM with a UNIX socket in '
                    'its place')
            if option.name in OPENING_OPTIONS and any(
                    re.fullmatch('(vhost)?fds?', key) or
                    '/dev/fdset/' in str(value)
                    for key, value in option.keys().items()):
                raise Refused(
                    f"'{whole}' uses a file descriptor that was given to the "
                    'old QEMU; give the command line anew after "--", '
                    'without it')

    def set_machine(self, machine: str) -> None:
        """
        Name the type of the machine.

        A name without version, or none, is the newest version that a binary
        knows, and so another one with another binary.
        """
        for position, option in enumerate(self):
            if option.name not in ('machine', 'M'):
                continue
            rest = [part for part in option.parts if '=' in part and
                    not part.startswith('type=')]
            if len(rest) < len(option.parts):
                self[position] = Option('machine').with_parts(
                    [machine] + rest)
                return
        self.insert(0, Option('machine', machine))

    def rename(self, renamed: Callable[[str], str],
               others: Collection[str]) -> None:
        """
        Give other names to what QEMU creates in the file system.

        Nor does it wait for a client of a socket, then.

        @param renamed: says the other name of a path
        @param others: names of chardevs that stay as they are
        """
        for position, option in enumerate(self):
            keys = option.keys()
            first = str(keys.get('', ''))
            serves = is_on(keys.get('server')) and option.id not in others
            if option.name == 'pidfile':
                option = Option('pidfile', renamed(option.value))
            elif option.name == 'vnc' and first.startswith('unix:') or \
                    option.name in CHARDEV_OPTIONS and serves and \
                    re.match('(mon:)?unix:', first):
                kind, colon, path = first.rpartition('unix:')
                option = option.with_parts(
                    [kind + colon + renamed(path)] + option.parts[1:])
                if serves:
                    option = option.changed({'wait': 'off'})
            elif option.name == 'chardev' and serves and 'path' in keys:
                option = option.changed({
                    'path': renamed(str(keys['path'])), 'wait': 'off'})
            elif serves and option.name in CHARDEV_OPTIONS | {'chardev'} or \
                    _listens_on_tcp(option, first):
                raise Refused(
                    f"'{' '.join(option.words())}' listens on a TCP port, "
                    'which only one QEMU can; start the VM with a UNIX socket '
                    'in its place, or give the command line anew after "--", '
                    'without it')
            elif option.name == 'netdev' and serves:
                raise Refused(
                    f"'{' '.join(option.words())}' listens for another "
                    'process, which can be done by one QEMU only; give the '
                    'command line anew after "--", without it')
            self[position] = option

    def keep_files(self) -> None:
        """Add to files that the old QEMU writes, in place of emptying them."""
        result = CommandLine()
        for number, option in enumerate(self):
            keys = option.keys()
            if option.name in CHARDEV_OPTIONS and \
                    option.value.startswith('file:'):
                name = f'{option.name}-file-{number}'
                result.append(Option('chardev').with_parts(
                    ['file', f'id={name}',
                     'path=' + option.value[len('file:'):], 'append=on']))
                option = option._replace(value=f'chardev:{name}')
            elif option.name == 'chardev':
                if keys.get('') == 'file' and 'path' in keys:
                    option = option.changed({'append': 'on'})
                if 'logfile' in keys:
                    option = option.changed({'logappend': 'on'})
            result.append(option)
        self[:] = result
