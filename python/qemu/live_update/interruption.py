# SPDX-License-Identifier: GPL-2.0-or-later
"""
What ends an update early: a signal, or the clock
"""
import asyncio
import contextlib
import signal
from typing import Any, Coroutine, Optional, TypeVar

from .error import Refused

T = TypeVar('T')
AGAIN = 0.5             # seconds


class Interrupted(Refused):
    """Somebody, or the clock, put an end to it."""


class Interruption:
    """
    Ends what is under guard(), and nothing else.

    @param timeout: seconds until the clock does
    """
    def __init__(self, timeout: float) -> None:
        self._why = ''
        self._task: Optional['asyncio.Task[Any]'] = None
        self._loop = asyncio.get_running_loop()
        # Not the loop's own handlers: they would go with the loop, and a late
        # signal would end a program that has done its work.
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(number, self._on_signal)
        self._loop.call_later(timeout, self._stop,
                              f'it took more than {timeout:g} s')

    def _on_signal(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):     # the loop has ended
            self._loop.call_soon_threadsafe(self._stop, 'interrupted')

    def _stop(self, why: str) -> None:
        self._why = self._why or why
        if self._task:
            self._task.cancel()
            # Before Python 3.12, asyncio.wait_for() may lose it.
            self._loop.call_later(AGAIN, self._stop, why)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something; raises Interrupted if it was not done to its end."""
        if self._why:
            work.close()
            raise Interrupted(self._why)
        task: 'asyncio.Task[T]' = asyncio.create_task(work)
        self._task = task
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted(self._why) from None
        finally:
            self._task = None
