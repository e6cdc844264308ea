# SPDX-License-Identifier: GPL-2.0-or-later
"""
Wait for a condition
"""
import asyncio
import math
from typing import Awaitable, Callable, TypeVar


POLL = 0.01             # seconds from one look at a condition to the next
T = TypeVar('T')


async def until(condition: Callable[[], Awaitable[T]],
                timeout: float = math.inf) -> T:
    """
    Wait until a condition is true.

    Returns its last value, which is false after a timeout.  An exception of
    the condition ends the wait.

    @param condition: is called at least once
    @param timeout: seconds.  Time that the condition takes does not count, so
                    that a QEMU which answers slowly is asked as often as
                    another one.
    """
    waited = 0.0
    while True:
        value = await condition()
        if value or waited >= timeout:
            return value
        await asyncio.sleep(POLL)
        waited += POLL
