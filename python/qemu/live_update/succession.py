# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU, which runs the VM, takes the place of the old one
"""
from typing import Any, Dict

from .error import NeedsPerson
from .monitor import Monitor, MonitorError
from .names import Names
from .output import Output
from .process import Process

PATIENCE = 10           # seconds for what normally takes milliseconds
# States of a migration, and of a VM that comes to a QEMU or goes from it.
ENDS = 'completed', 'failed', 'cancelled'
AWAY = 'inmigrate', 'finish-migrate', 'postmigrate'


async def has_got(new: Monitor) -> bool:
    """Has the new QEMU got the VM, in whatever state?"""
    return await new.status() not in AWAY


async def has_failed(new: Monitor) -> bool:
    """Did it get the VM and not start it?  Then it has never run there."""
    # In this order: a VM starts before its migration is completed.
    state = (await new.migration()).get('status')
    return state in ENDS and not await has_got(new)


async def settings(monitor: Monitor, *parameters: str) -> Dict[str, Any]:
    """The settings of migration that an update changes."""
    known = await monitor.parameters()
    return {'capabilities': await monitor.capabilities(),
            'parameters': {name: known[name] for name in parameters
                           if name in known}}


async def restore(monitor: Monitor, values: Dict[str, Any]) -> None:
    """
    Give a QEMU settings of migration, as far as it knows them.

    They are not only for migrations: with x-ignore-shared, a snapshot has no
    memory.
    """
    known = await monitor.capabilities()
    await monitor.set_capabilities(**{
        name: state for name, state in values['capabilities'].items()
        if known.get(name, state) != state})
    known = await monitor.parameters()
    await monitor.ask('migrate-set-parameters', **{
        name: value for name, value in values['parameters'].items()
        if known.get(name, value) != value})


async def restore_new(new: Monitor, values: Dict[str, Any],
                      output: Output) -> None:
    """The same, for the new QEMU, which runs the VM."""
    try:
        await restore(new, values)
    except MonitorError as error:
        output.check('migration', 'warning', 'the new QEMU keeps settings of '
                     f'migration that the update has made: {error}; see '
                     'query-migrate-capabilities before a snapshot')


async def take_back(old: Monitor, status: str) -> None:
    """
    Have the old QEMU run the VM that it has sent.

    @param status: the run state that the VM is to be in
    """
    await old.ask('cont')
    if status != 'running':
        await old.ask('stop')


async def take_place(process: Process, names: Names, new: Monitor,
                     output: Output) -> None:
    """
    Give the new QEMU the names of its files, and end the old one.

    In this order the names are there at any time, and who looks at the pid
    file when the old QEMU ends (systemd) finds the new one.  The old one has
    handed over all it had, and is not asked to tidy up: it would remove the
    names, and take down what the VM uses, such as a network interface.

    Raises MonitorError if the new QEMU has ended before the old one was; then
    the old one has its names again.

    @param process: the old QEMU
    @param names: those of the new QEMU
    @param new: the new QEMU
    """
    await new.status()
    names.publish()
    try:
        output.step('names', 'the new QEMU has the names of its files')
        await new.status()
    except MonitorError:
        names.withdraw()
        raise
    process.kill()
    if not await process.wait(PATIENCE):
        raise NeedsPerson(
            'the VM runs in the new QEMU, but the old one, process '
            f'{process.pid}, does not end; find out why')
    names.remove()
    output.step('end', f'the old QEMU {process.pid} has ended')


async def check_alive(new: Monitor) -> None:
    """The new QEMU must be there when the user is told so."""
    try:
        await new.status()
    except MonitorError as error:
        raise NeedsPerson(
            'the VM was moved to the new QEMU, which has ended then '
            f'({error}): look for its last messages, and start the VM anew'
        ) from error
