# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU, which runs the VM, takes the place of the old one
"""
import contextlib

from .error import NeedsPerson
from .monitor import Monitor, MonitorError
from .names import Names
from .output import Output
from .process import Process

PATIENCE = 10           # seconds for what normally takes milliseconds


async def take_place(old: Monitor, process: Process, names: Names,
                     output: Output) -> None:
    """
    End the old QEMU, and give the new one the names of its files.

    The order matters: a QEMU that ends removes its names.

    @param old: the monitor of the old QEMU, connected
    @param process: the old QEMU
    @param names: those of the new QEMU
    """
    names.adopt_modes()
    with contextlib.suppress(MonitorError):
        await old.ask('quit')
    if not await process.wait(PATIENCE):
        process.kill()
        if not await process.wait(PATIENCE):
            raise NeedsPerson(
                'the VM runs in the new QEMU, but the old one, process '
                f'{process.pid}, does not end; end it, and type the same '
                'command again')
    output.step('end', f'the old QEMU {process.pid} has ended')
    names.publish()
    output.step('names', 'the new QEMU has the names of its files')
