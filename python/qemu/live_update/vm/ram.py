# SPDX-License-Identifier: GPL-2.0-or-later
"""
The RAM blocks of a QEMU, and what its process has mapped as each
"""
import re
from typing import List, NamedTuple, Optional

from ..host.process import FileRange, Mapping, Process
from ..monitor import Monitor


UNITS = {'B': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 'GiB': 1 << 30}
# A line of "info ramblock": name, page size, offset, used size, size, and from
# QEMU 8.1 on the address and whether it is ROM.
LINE = re.compile(
    r'^ *(?P<name>.*?) +(?P<number>[\d.]+) (?P<unit>B|[KMG]iB)'
    r' +0x\w+ +0x\w+ +0x(?P<size>\w+)(?: +0x(?P<address>\w+))?')


class RamBlock(NamedTuple):
    """
    A RAM block that QEMU migrates.

    mapping: None if this QEMU does not tell addresses
    file: that the mapping shows; None: the memory is anonymous
    """
    name: str
    size: int
    page_size: int
    mapping: Optional[Mapping] = None
    file: Optional[FileRange] = None


async def ram_blocks(monitor: Monitor, process: Process) -> List[RamBlock]:
    """
    The RAM blocks of a QEMU that have a name.

    QEMU does not migrate those that have none.
    """
    text = await monitor.ask('human-monitor-command',
                             command_line='info ramblock')
    mappings = process.mappings()
    found = []
    for line in text.splitlines():
        parts = LINE.match(line)
        if not parts or not parts['name']:
            continue
        block = RamBlock(parts['name'], int(parts['size'], 16),
                         int(float(parts['number']) * UNITS[parts['unit']]))
        if parts['address']:
            address = int(parts['address'], 16)
            mapping = next((mapping for mapping in mappings if
                            mapping.begin <= address < mapping.end), None)
            if mapping:
                block = block._replace(mapping=mapping,
                                       file=process.file_of(mapping))
        found.append(block)
    return found
