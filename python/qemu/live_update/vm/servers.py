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
from .cmdline import CommandLine, is_on


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


def gone(options: CommandLine, folder: str, handed_over: Collection[str]
         ) -> List[str]:
    """
    Why chardevs cannot connect to their UNIX sockets.

    @param folder: to which paths are relative
    @param handed_over: ids of chardevs to which a connection is handed over
    """
    found = []
    for option in options:
        keys = option.chardev()
        if keys.get('backend') != 'socket' or 'path' not in keys or \
                is_on(keys.get('server')) or is_on(keys.get('abstract')) or \
                option.name == 'chardev' and option.id in handed_over or \
                any(str(keys.get(key, '0')) != '0'
                    for key in ('reconnect', 'reconnect-ms')):
            continue
        path = os.path.join(folder, str(keys['path']))
        if is_gone(path):
            found.append(
                f"'{option}': nobody listens at '{path}', so that the new "
                'QEMU could not connect; start the server again, or give the '
                'command line after "--", with reconnect-ms=')
    return found


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
