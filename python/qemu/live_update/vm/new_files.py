# SPDX-License-Identifier: GPL-2.0-or-later
"""
Change the options by which QEMU creates files and sockets

The old QEMU has these files: the new one creates them under other names, or
appends to them.
"""
import re
from typing import Callable, Collection

from .cmdline import CommandLine, Option, is_on, pairs
from .exclusive import display_of_vnc


Renamed = Callable[[str], str]


def _renamed_short_chardev(option: Option, new: str) -> Option:
    """Give a path to a chardev in the short form, such as "unix:PATH"."""
    kind = re.match('(mon:)?(unix|pty):', option.value)
    assert kind
    if kind[2] == 'pty':
        return option._replace(value=kind[0] + new)
    # A value with "=" is taken for one without a key only after a key.
    parts = [f'path={new}' if '=' in new else new]
    parts += [f'{key}={value}'
              for key, value in pairs(option.value[kind.end():], True)
              if key not in ('', 'path', 'wait')]
    return option.with_parts(
        [kind[0] + parts[0], *parts[1:], 'wait=off'])


def _renamed_chardev(option: Option, renamed: Renamed,
                     renamed_link: Renamed) -> Option:
    """Rename the file that a chardev creates, if it creates one."""
    keys = option.chardev()
    path = str(keys.get('path', ''))
    listens = is_on(keys.get('server'))
    if not path or not (listens or keys['backend'] == 'pty'):
        return option
    new = renamed(path) if listens else renamed_link(path)
    if option.name != 'chardev':
        return _renamed_short_chardev(option, new)
    return option.changed({'path': new,
                           **({'wait': 'off'} if listens else {})})


def _renamed_display(option: Option, renamed: Renamed) -> Option:
    """Rename the UNIX socket of a VNC or SPICE server, if it has one."""
    keys = option.keys()
    if option.name == 'spice':
        if is_on(keys.get('unix')) and 'addr' in keys:
            return option.changed({'addr': renamed(str(keys['addr']))})
        return option
    address = display_of_vnc(option)
    if not address.startswith('unix:'):
        return option
    before = 'vnc=' if option.name == 'display' else ''
    vnc = Option('vnc', option.value[len(before):])
    new = 'unix:' + renamed(address[len('unix:'):])
    return option._replace(value=before + vnc.with_parts(
        [new if '=' not in new else f'vnc={new}', *(
            f'{key}={value}' for key, value in vnc.items()
            if key not in ('', 'vnc'))]).value)


def rename_files(options: CommandLine, renamed: Renamed,
                 renamed_file: Renamed, handed_over: Collection[str]) -> None:
    """
    Rename the sockets, the pid file and the links that QEMU creates.

    Sockets are opened with wait=off.  The new QEMU gets the sockets of
    chardevs that are handed over from the old one, with their names: with
    wait=on, it does not create them before.

    @param renamed: returns the new name of a socket
    @param renamed_file: that of the pid file or a link
    @param handed_over: ids of chardevs
    """
    for position, option in enumerate(options):
        if option.name == 'pidfile':
            options[position] = Option('pidfile', renamed_file(option.value))
        elif option.name == 'chardev' and option.id in handed_over:
            if is_on(option.keys().get('server')):
                options[position] = option.changed(
                    {'wait': 'on'}) if 'nowait' not in option.parts else \
                    option.with_parts([part for part in option.parts
                                       if part != 'nowait'])
        elif option.name in ('vnc', 'display', 'spice'):
            options[position] = _renamed_display(option, renamed)
        else:
            options[position] = _renamed_chardev(option, renamed, renamed_file)


def has_server(options: CommandLine, path: str) -> bool:
    """Does an option listen at this path?"""
    return any(is_on(keys.get('server')) and keys.get('path') == path
               for keys in map(Option.chardev, options))


def append_to_files(options: CommandLine) -> None:
    """Have the new QEMU append to the files that the old QEMU writes."""
    result = CommandLine()
    for number, option in enumerate(options):
        keys = option.chardev()
        is_short = option.name != 'chardev'
        if keys.get('backend') == 'file' and is_short:
            name = f'{option.name}-file-{number}'
            mux = ['mux=on'] if option.value.startswith('mon:') else []
            result.append(Option('chardev').with_parts(
                ['file', f'id={name}', f'path={keys["path"]}', *mux,
                 'append=on']))
            option = option._replace(value=f'chardev:{name}')
        elif keys.get('backend') == 'file' and 'path' in keys:
            option = option.changed({'append': 'on'})
        if 'logfile' in keys:
            option = option.changed({'logappend': 'on'})
        result.append(option)
    options[:] = result
