# SPDX-License-Identifier: GPL-2.0-or-later
"""
Parse the command line of a QEMU, and change it for the new QEMU

Only values that an update has to know are parsed.  All others are passed on
unchanged.
"""
import json
import re
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Tuple,
)

from ..error import Refused


# Options whose value is a chardev in the short form: "unix:PATH,server=on".
CHARDEV_OPTIONS = {'serial', 'parallel', 'monitor', 'qmp', 'qmp-pretty',
                   'debugcon', 'gdb'}
# Options by which QEMU opens files, sockets or devices.
OPENING_OPTIONS = CHARDEV_OPTIONS | {
    'chardev', 'netdev', 'nic', 'device', 'object', 'drive', 'blockdev'}
# Options that the new QEMU cannot be given, with the reason.
REFUSED_OPTIONS = {
    'snapshot': 'what the guest writes is in temporary files that only the '
                'old QEMU has',
    'readconfig': 'live-update does not read options in a file',
    'add-fd': 'it passes a file descriptor that only the old QEMU has',
    'preconfig': 'the new QEMU would wait for its machine to be configured',
    'nographic': 'the new QEMU cannot share the terminal with the old one',
}


def _flat(value: Dict[str, Any], prefix: str = '') -> Iterator[
        Tuple[str, object]]:
    """Flatten nested objects: {"a": {"b": 1}} has the key "a.b"."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f'{prefix}{key}.')
        else:
            yield prefix + key, item


def _has(value: object, word: str) -> bool:
    """Does a JSON value contain a string, at any depth?"""
    if isinstance(value, (list, tuple)):
        return any(_has(item, word) for item in value)
    if isinstance(value, dict):
        return _has(list(value.values()), word)
    return value == word


class Option(NamedTuple):
    """
    An option of the command line, without its dash.

    value: '' if the option has none
    is_empty: true if the option has a value, which is ''
    """
    name: str
    value: str = ''
    is_empty: bool = False

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

    def keys(self) -> Dict[str, object]:
        """
        Parse a value that has the form "a=b,c=d", or is a JSON object.

        In "socket,id=x,server", "socket" gets the key '', and "server" the
        value "on".  Keys of nested JSON objects are joined by dots.
        """
        if self.value.startswith('{'):
            try:
                parsed = json.loads(self.value)
            except json.JSONDecodeError:
                return {}
            return dict(_flat(parsed)) if isinstance(parsed, dict) else {}
        words = [part.partition('=') for part in self.parts]
        result: Dict[str, object] = {
            key: value if equals else 'on' for key, equals, value in words}
        if not words[0][1]:
            del result[words[0][0]]
            result[''] = words[0][0]
        return result

    def changed(self, changes: Dict[str, str]) -> 'Option':
        """The option with other values of some keys."""
        if self.value.startswith('{'):
            return self._replace(value=json.dumps(
                {**json.loads(self.value), **changes}))
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


def is_on(value: object) -> bool:
    """Is the value of a key one of those that mean "on"?"""
    return value in (True, 'on', 'yes', 'true', 'y')


def _listens_on_tcp(option: Option, first: str) -> bool:
    """Does an option listen on a TCP port without server=on?"""
    if option.name == 'gdb':
        return first.startswith('tcp:')
    if option.name == 'vnc':
        return ':' in first and not first.startswith('unix:')
    return option.name == 's' or option.name == 'spice' and \
        bool(option.keys().keys() & {'port', 'tls-port'})


def _truncates(option: Option) -> bool:
    """Would the new QEMU truncate a file that this option names?"""
    return option.name == 'D' and '%d' not in option.value or \
        option.name == 'trace' and 'file' in option.keys() or \
        (option.name, option.kind) in (('audiodev', 'wav'),
                                       ('object', 'filter-dump'))


def _binds(option: Option) -> bool:
    """Does a netdev bind a socket to an address that only one can have?"""
    keys = option.keys()
    if option.kind == 'socket':
        return 'localaddr' in keys and 'mcast' not in keys or 'listen' in keys
    remote = re.match(r'\d+(?=\.)', str(keys.get('remote.host', '')))
    is_multicast = remote and 224 <= int(remote[0]) < 240
    return option.kind == 'dgram' and not is_multicast and \
        keys.get('local.type') in ('inet', 'unix')


class CommandLine(List[Option]):
    """The command line of a QEMU, a list of options."""

    @classmethod
    def parse(cls, arguments: Iterable[str]) -> 'CommandLine':
        """Parse arguments, without the name of the program."""
        result = cls()
        for word in arguments:
            value_of_any_form = result and result[-1] == Option('append')
            if word.startswith('-') and len(word) > 1 and \
                    not value_of_any_form:
                result.append(Option(word[2 if word[1] == '-' else 1:]))
            elif result and not (result[-1].value or result[-1].is_empty):
                result[-1] = result[-1]._replace(value=word,
                                                 is_empty=not word)
            else:
                raise Refused(
                    f"the command line has '{word}' where an option is "
                    'expected; give it after "--", with -drive for disk '
                    'images')
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
            _has(value, name) for key, value in option.keys().items()
            if key not in ('id', 'node-name')))

    def drop(self, *names: str) -> None:
        """Remove the options that have one of these names."""
        self[:] = [option for option in self if option.name not in names]

    def check(self) -> None:
        """Raise Refused for an option that the new QEMU cannot be given."""
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
                    '/dev/fdset/' in str(value) or
                    key.endswith('.type') and value == 'fd'
                    for key, value in option.keys().items()):
                raise Refused(
                    f"'{whole}' uses a file descriptor that was given to the "
                    'old QEMU; give the command line after "--", '
                    'without it')
            if _truncates(option):
                raise Refused(
                    f"'{whole}' would have the new QEMU truncate a file of "
                    'the old one; give the command line after "--", without '
                    'this option or with the name of another file' + (
                        ', or remove it with "object-del"'
                        if option.name == 'object' else ''))
            if option.name == 'netdev' and _binds(option):
                raise Refused(
                    f"'{whole}' has a socket of its own, which the new QEMU "
                    'would take away from the old one at its start; unplug '
                    'the network card and delete its netdev, and plug them '
                    'again after the update')

    def set_machine(self, machine: str) -> None:
        """
        Set the type of the machine, with its version.

        Without a version, the new QEMU would create the newest version that
        it knows, which may differ from that of the VM.
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

    def rename_files(self, renamed: Callable[[str], str],
                     others: Collection[str]) -> None:
        """
        Rename the sockets, the pid file and the links that QEMU creates.

        Sockets are opened with wait=off.

        @param renamed: returns the new name of a path
        @param others: chardevs whose paths are not changed
        """
        for position, option in enumerate(self):
            keys = option.keys()
            first = str(keys.get('', ''))
            serves = is_on(keys.get('server')) and option.id not in others
            if serves and is_on(keys.get('abstract')):
                raise Refused(
                    f"'{' '.join(option.words())}' listens at an abstract "
                    'name, which only one QEMU can; start the VM with the '
                    'path of a UNIX socket in its place, or give the command '
                    'line after "--", without it')
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
            elif option.name == 'chardev' and first == 'pty' and \
                    'path' in keys:
                option = option.changed({'path': renamed(str(keys['path']))})
            elif option.name == 'chardev' and serves and 'path' in keys:
                option = option.changed({
                    'path': renamed(str(keys['path'])), 'wait': 'off'})
            elif serves and option.name in CHARDEV_OPTIONS | {'chardev'} or \
                    _listens_on_tcp(option, first):
                raise Refused(
                    f"'{' '.join(option.words())}' listens on a TCP port, "
                    'which only one QEMU can; start the VM with a UNIX socket '
                    'in its place, or give the command line after "--", '
                    'without it')
            elif option.name == 'netdev' and serves:
                raise Refused(
                    f"'{' '.join(option.words())}' listens for another "
                    'process, which can be done by one QEMU only; give the '
                    'command line after "--", without it')
            self[position] = option

    def append_to_files(self) -> None:
        """Have the new QEMU append to the files that the old QEMU writes."""
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
