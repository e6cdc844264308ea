# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU, which runs the VM, takes the place of the old one
"""
from .error import NeedsPerson
from .names import Names
from .output import Output
from .process import Process

PATIENCE = 10           # seconds for what normally takes milliseconds


async def take_place(process: Process, names: Names, output: Output) -> None:
    """
    Give the new QEMU the names of its files, and end the old one.

    In this order the names are there at any time, and who looks at the pid
    file when the old QEMU ends (systemd) finds the new one.  The old one has
    handed over all it had, and is not asked to tidy up: it would remove the
    names, and take down what the VM uses, such as a network interface.

    @param process: the old QEMU
    @param names: those of the new QEMU
    """
    names.publish()
    output.step('names', 'the new QEMU has the names of its files')
    process.kill()
    if not await process.wait(PATIENCE):
        raise NeedsPerson(
            'the VM runs in the new QEMU, but the old one, process '
            f'{process.pid}, does not end; find out why')
    names.remove()
    output.step('end', f'the old QEMU {process.pid} has ended')
