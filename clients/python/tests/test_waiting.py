"""Waiting with a limit of time."""

from __future__ import annotations

import asyncio

import pytest

from potluck.waiting import within


async def test_a_result_and_a_failure_are_passed_on() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> None:
        raise ValueError("wrong")

    assert await within(answer(), 1.0) == 7
    assert await within(answer(), None) == 7
    with pytest.raises(ValueError, match="wrong"):
        await within(fail(), 1.0)


async def test_what_takes_too_long_is_cancelled() -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await within(never, 0.01)
    assert never.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_is_not_lost_when_the_awaitable_ends_at_once(fails: bool) -> None:
    inner: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(within(inner, 10.0))
    await asyncio.sleep(0.01)
    if fails:
        inner.set_exception(ValueError("wrong"))
    else:
        inner.set_result(1)
    await asyncio.sleep(0)  # the task will wake up with the result
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
