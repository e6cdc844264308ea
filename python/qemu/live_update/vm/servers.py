# SPDX-License-Identifier: GPL-2.0-or-later
"""
Servers to which the new QEMU connects when it starts

It does not start if a server is gone, or serves only the old QEMU.
"""
import errno
import os
import socket
from typing import (
    Collection,
    Dict,
    List,
)
from urllib.parse import urlsplit

from ..monitor import Monitor
from . import blocks
from .cmdline import CommandLine, Option, is_on


GREETING = b'NBDMAGIC'
PATIENCE = 3            # seconds in which an NBD server must greet


def is_gone(path: str) -> bool:
    """
    Is no UNIX socket bound to this path?

    The server sees nothing of this: the kernel does not connect a datagram
    socket to a stream socket, and its error tells whether there is one.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ECONNREFUSED)
    return False


def _connects(option: Option) -> str:
    """The path to which a chardev must connect at its start, or ''."""
    keys = option.chardev()
    if keys.get('backend') != 'socket' or any(
            is_on(keys.get(key)) for key in ('server', 'abstract')):
        return ''
    # With reconnect-ms, it may connect later.
    waits = (str(keys.get(key, '0')) for key in ('reconnect', 'reconnect-ms'))
    return '' if any(wait != '0' for wait in waits) else \
        str(keys.get('path', ''))


def gone(options: CommandLine, folder: str, others: Collection[str]
         ) -> List[str]:
    """
    Why chardevs cannot connect to their UNIX sockets.

    @param folder: to which paths are relative
    @param others: ids of chardevs that do not connect at the start
    """
    paths = [(option, os.path.join(folder, _connects(option)))
             for option in options if _connects(option) and not (
                 option.name == 'chardev' and option.id in others)]
    return [f"'{option}': nobody listens at '{path}', so that the new QEMU "
            'could not connect; start the server again, or give the command '
            'line after "--", with reconnect-ms='
            for option, path in paths if is_gone(path)]


def _greets(address: str) -> bool:
    """Does an NBD server greet another client?"""
    path = address.partition('?socket=')[2]
    url = urlsplit(address)
    try:
        with socket.socket(socket.AF_UNIX) if path else socket.socket(
                socket.AF_INET6 if ':' in (url.hostname or '')
                else socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            client.connect(path or (url.hostname, url.port or 10809))
            return client.recv(len(GREETING)) == GREETING
    except OSError:
        return False


async def busy_nbd_servers(monitor: Monitor) -> List[str]:
    """Why NBD servers cannot serve the new QEMU: they serve one client."""
    addresses: Dict[str, str] = {
        node['file']: name
        for name, node in (await blocks.nodes(monitor)).items()
        if node['drv'] == 'nbd' and node['file'].startswith('nbd')}
    return [f"the block node '{name}': the server of '{address}' does not "
            'serve another client while the old QEMU is connected; have it '
            'serve two (qemu-nbd --shared=2)'
            for address, name in addresses.items() if not _greets(address)]
