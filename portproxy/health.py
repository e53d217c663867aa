"""Tries the backends of mappings that ask for it, and tells the relay which are down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from portproxy.spec import Spec

LONGEST_TRY_S = 5.0
Mark = Callable[[str, int, bool], Awaitable[None]]


@dataclass
class Health:
    """One task for each mapping that is checked; ``mark`` gets (key, number of the backend, up)."""

    mark: Mark
    tasks: dict[str, tuple[Spec, asyncio.Task[None]]] = field(default_factory=dict)
    states: dict[str, list[bool | None]] = field(default_factory=dict)

    def watch(self, specs: dict[str, Spec]) -> None:
        """Checks exactly these mappings from now on."""
        wanted = {
            key: spec for key, spec in specs.items() if spec.check_ms and not spec.mapping.netns
        }
        for key in [key for key in self.tasks if self.tasks[key][0] != wanted.get(key)]:
            self.tasks.pop(key)[1].cancel()
            self.states.pop(key, None)
        for key, spec in wanted.items():
            if key not in self.tasks:
                self.states[key] = [None] * len(spec.backends())
                self.tasks[key] = (spec, asyncio.ensure_future(self._check(key, spec)))

    async def repeat(self, keys: Iterable[str]) -> None:
        """Says again what is known of the backends of these, to those who have not heard it."""
        for key in keys:
            for at, up in enumerate(self.states.get(key, [])):
                if up is not None:
                    with contextlib.suppress(Exception):
                        await self.mark(key, at, up)

    def close(self) -> None:
        """Checks nothing any more."""
        self.watch({})

    def down(self) -> list[str]:
        """The mappings none of whose backends is known to be up."""
        return [key for key, states in self.states.items() if not any(states)]

    async def _check(self, key: str, spec: Spec) -> None:
        while True:
            for at, where in enumerate(spec.backends()):
                up = await reachable(where, min(spec.check_ms / 1000, LONGEST_TRY_S))
                if up != self.states[key][at]:
                    self.states[key][at] = up
                    with contextlib.suppress(Exception):
                        await self.mark(key, at, up)
            await asyncio.sleep(spec.check_ms / 1000)


async def reachable(where: str, bound_s: float) -> bool:
    """Whether ADDRESS:PORT, or a socket's path, takes a connection within ``bound_s`` seconds."""
    try:
        if where.startswith(("/", "@")):
            path = "\0" + where[1:] if where.startswith("@") else where
            opening = asyncio.open_unix_connection(path)
        else:
            host, _, port = where.rpartition(":")
            opening = asyncio.open_connection(host.strip("[]"), int(port))
        _, writer = await asyncio.wait_for(opening, bound_s)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True
