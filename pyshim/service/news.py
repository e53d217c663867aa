"""How the tasks of a service wait for something to change, without a task or a lock for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class News:
    """Something that is told of, and those who wait for it."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Lets everyone who waits look again."""
        for future in self._waiting:
            _settle(future)
        self._waiting.clear()

    async def wait(self, timeout_s: float) -> None:
        """Waits for the next ``tell``, at most ``timeout_s``."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(timeout_s, _settle, future)
        self._waiting.add(future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``true()``; says whether it became so within ``timeout_s``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not true():
            left_s = deadline - loop.time()
            if left_s <= 0:
                return False
            await self.wait(left_s)
        return True


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
