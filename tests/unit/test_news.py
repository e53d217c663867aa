"""Waiting for news: told, in time, and not longer."""

from __future__ import annotations

import asyncio

from pyshim.service.news import News

SOON_S = 0.001
BOUND_S = 30


def test_everyone_who_waits_is_told_once() -> None:
    async def play() -> None:
        news = News()
        first, second = (asyncio.ensure_future(news.wait(BOUND_S)) for _ in range(2))
        await asyncio.sleep(0)
        news.tell()
        await asyncio.gather(first, second)
        later = asyncio.ensure_future(news.wait(BOUND_S))
        await asyncio.sleep(0)
        assert not later.done()
        later.cancel()
        await asyncio.wait([later])
        news.tell()  # nobody is there any more

    asyncio.run(play())


def test_a_wait_ends_at_its_bound() -> None:
    asyncio.run(asyncio.wait_for(News().wait(SOON_S), BOUND_S))


def test_until_looks_first_and_again_when_it_is_told() -> None:
    async def play() -> None:
        news = News()
        found: list[int] = []
        assert await news.until(lambda: True, 0)
        assert not await news.until(lambda: False, 0)
        assert not await news.until(lambda: False, SOON_S)
        waiting = asyncio.ensure_future(news.until(lambda: len(found) == 2, BOUND_S))
        for number in range(2):
            await asyncio.sleep(0)
            assert not waiting.done()
            found.append(number)
            news.tell()
        assert await waiting

    asyncio.run(play())
