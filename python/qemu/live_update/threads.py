# SPDX-License-Identifier: GPL-2.0-or-later
"""
The threads of a QEMU that the host may treat each in its own way
"""
from .confinement import Turn
from .error import Refused
from .monitor import Monitor

THREADS = {'query-cpus-fast': 'cpu-index', 'query-iothreads': 'id'}


async def treat_alike(old: Monitor, new: Monitor) -> None:
    """Give the threads of a QEMU the processors and priorities of another."""
    for command, key in THREADS.items():
        theirs = {item[key]: item['thread-id']
                  for item in await new.ask(command)}
        for item in await old.ask(command):
            try:
                Turn(item['thread-id']).give(theirs[item[key]])
            except (KeyError, OSError) as error:
                raise Refused(
                    f"the thread '{item[key]}' of the new QEMU cannot get "
                    'the processors and priority that it has in the old one: '
                    f'{error}; run this as root') from error
