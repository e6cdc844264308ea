# SPDX-License-Identifier: GPL-2.0-or-later
"""
Ports of the host that QEMU forwards to the guest (-netdev user,hostfwd=)

Only one QEMU can listen on a port.  The user can add and remove forwards while
the VM runs.
"""
import json
import re
from typing import (
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
)

from ..monitor import Monitor
from .cmdline import CommandLine, Option
from .qemu_json import parse_object


NETWORKS = 'netdev', 'nic', 'net'
PREFIX = 'hostfwd='
REMEDY = ('remove it with "hostfwd_remove" (HMP), and add it with '
          '"hostfwd_add" after the update')


class Port(NamedTuple):
    """A port that is forwarded; a UNIX socket has its path as the number."""
    protocol: str
    number: str

    def __str__(self) -> str:
        return f'{self.protocol}:{self.number}'


def _port(rule: str) -> Port:
    """The port in a rule: tcp:HOST:PORT-GUEST:PORT."""
    protocol, _, rest = rule.partition(':')
    address = rest.partition('-')[0] if protocol != 'unix' else \
        rest.rpartition('-')[0]
    return Port(protocol or 'tcp', address.rpartition(':')[2])


def _ports(option: Option) -> Iterator[Port]:
    for key, value in option.items():
        # In JSON, it is a list of objects with the key "str".
        if key.partition('.')[0] == 'hostfwd':
            yield _port(str(value))


async def forwarded(monitor: Monitor) -> Set[Port]:
    """The ports that the VM forwards now."""
    text = await monitor.ask('human-monitor-command',
                             command_line='info usernet')
    return {Port(protocol.lower(), number) for protocol, number in re.findall(
        r'(?m)^\s*(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)', text)}


def drop_removed(options: CommandLine, present: Set[Port]) -> None:
    """Drop the forwards that were removed while the VM ran."""
    def stays(rule: str) -> bool:
        return _port(rule) in present or _port(rule).protocol == 'unix'

    for position, option in enumerate(options):
        if option.name not in NETWORKS or not any(_ports(option)):
            continue
        if option.value.startswith('{'):
            keys = parse_object(option.value)
            keys['hostfwd'] = [rule for rule in keys['hostfwd']
                               if stays(rule['str'])]
            options[position] = option._replace(value=json.dumps(keys))
        else:
            options[position] = option.with_parts(
                part for part in option.parts
                if not part.startswith(PREFIX) or stays(part[len(PREFIX):]))


def reasons(options: CommandLine, present: Optional[Set[Port]] = None
            ) -> List[str]:
    """
    Why the new QEMU cannot have the forwards of these options.

    @param present: the ports that the VM forwards now; None: not known
    """
    return [f"'{option}' forwards {port} of the host, which only one QEMU can "
            f'listen on; {REMEDY}'
            for option in options.named(*NETWORKS) for port in _ports(option)
            if present is None or port in present or port.protocol == 'unix']


def added(options: CommandLine, present: Set[Port]) -> List[str]:
    """Why forwards that were added while the VM ran would be lost."""
    given = {port for option in options.named(*NETWORKS)
             for port in _ports(option)}
    return [f'{port} of the host is forwarded since the VM was started, and '
            f'would not be by the new QEMU; {REMEDY}'
            for port in sorted(present - given)]
