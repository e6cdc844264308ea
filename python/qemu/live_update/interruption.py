# SPDX-License-Identifier: GPL-2.0-or-later
"""
A signal, or the option --timeout, ends an update early
"""
import asyncio
import contextlib
import signal
from typing import (
    Any,
    Coroutine,
    Optional,
    TypeVar,
)

from .error import Refused


T = TypeVar('T')
AGAIN = 0.5             # seconds from one attempt to cancel to the next


class Interrupted(Refused):
    """A signal, or the timeout, has ended the update."""


class Interruption:
    """
    Cancels the coroutine in may_end() at a signal or at the timeout.

    A coroutine that runs outside of may_end() is never cancelled; the next
    call of may_end() then raises Interrupted.

    @param timeout: seconds from now
    """
    def __init__(self, timeout: float) -> None:
        self._why = ''
        self._task: Optional['asyncio.Task[Any]'] = None
        self._loop = asyncio.get_running_loop()
        # Handlers of the event loop would be removed when the loop ends, and
        # a signal after that would end a program whose update has succeeded.
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(number, self._on_signal)
        self._loop.call_later(timeout, self._cancel,
                              f'the update took more than {timeout:g} s')

    def _on_signal(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):     # the loop has ended
            self._loop.call_soon_threadsafe(self._cancel, 'interrupted')

    def _cancel(self, why: str) -> None:
        self._why = self._why or why
        if self._task:
            self._task.cancel()
            # Before Python 3.12, asyncio.wait_for() may lose a cancellation.
            self._loop.call_later(AGAIN, self._cancel, why)

    async def may_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; raises Interrupted if it was cancelled."""
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
