"""Waiting with a limit of time."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Optional, TypeVar

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: Optional[float]) -> T:
    """The result of an awaitable. Raises asyncio.TimeoutError if it takes longer.

    Before Python 3.12, asyncio.wait_for() forgets that its caller was cancelled if the awaitable
    ends at the same moment (https://github.com/python/cpython/issues/86296). A stream that sends
    something all the time then goes on after its download has ended. This function does not.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # nobody else asks for it
