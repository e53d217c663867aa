"""The data plane as a whole: one ``portproxy-relay`` for each worker.

They are told apart by numbers from 1 on.  All are started together; who dies is replaced by the
service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from portproxy import channel
from portproxy.config import MOST_WORKERS
from portproxy.dataplane import Confinement, DataPlane, DataPlaneError, adopt, start
from portproxy.listeners import remove_unix

Records = dict[int, list[dict[str, Any]]]


@dataclass
class Workers:
    """``path`` is where the first one listens for its control plane; empty if they end with it.

    ``on_event`` gets the number of one that reports something, ``on_lost`` that of one that has
    ended.  ``several`` says that there are, or have been, more than one: connections have IDs then
    that name their worker.
    """

    path: str
    on_event: Callable[[int, dict[str, Any]], None]
    on_lost: Callable[[int, DataPlane], None]
    planes: dict[int, DataPlane] = field(default_factory=dict)
    several: bool = False

    async def begin(self, count: int, confinement: Confinement) -> None:
        """Takes over what a former control plane has left, all of it, and starts what is lacking.

        Raises DataPlaneError.
        """
        for number in range(1, MOST_WORKERS + 1):
            where = self._where(number)
            found = adopt(where, self._hearing(number), self._losing(number)) if where else None
            if found is not None:
                self._take(number, found)
        for number in range(1, count + 1):
            if number not in self.planes:
                where = self._where(number)
                heard, lost = self._hearing(number), self._losing(number)
                self._take(number, start(confinement, heard, lost, where))
        for plane in list(self.planes.values()):
            await plane.begin()

    async def replace(self, number: int, confinement: Confinement) -> None:
        """Starts one in the place of one that has ended.  Raises DataPlaneError.

        It is one of us when it has answered; until then nobody hears of its end.
        """
        made = start(confinement, self._hearing(number), lambda: None, self._where(number))
        try:
            await made.begin()
        except BaseException:
            made.kill()
            raise
        made.on_lost = self._losing(number)
        self._take(number, made)

    def _take(self, number: int, plane: DataPlane) -> None:
        self.planes[number] = plane
        self.several = self.several or len(self.planes) > 1

    def _where(self, number: int) -> str:
        """Where a worker listens: the first one where a single one always has."""
        if not self.path:
            return ""
        return f"{self.path}.relay" if number == 1 else f"{self.path}.relay.{number}"

    def _hearing(self, number: int) -> Callable[[dict[str, Any]], None]:
        return lambda record: self.on_event(number, record)

    def _losing(self, number: int) -> Callable[[], None]:
        def lose() -> None:
            plane = self.planes.pop(number, None)
            if plane is not None:
                self.on_lost(number, plane)

        return lose

    async def request(
        self, number: int, data: bytes, fds: Sequence[int] = ()
    ) -> channel.Done | channel.Refused:
        """One command to one worker, and its answer.  Raises DataPlaneError."""
        if number not in self.planes:
            raise DataPlaneError("the relay has ended")
        return await self.planes[number].request(data, fds)

    async def share(self, number: int, serial: int) -> list[int]:
        """The listeners of a mapping, as ``DataPlane.share`` has it.  Raises DataPlaneError."""
        if number not in self.planes:
            raise DataPlaneError("the relay has ended")
        return await self.planes[number].share(serial)

    async def tell(self, places: dict[int, int], command: Callable[[int], bytes]) -> None:
        """Has each worker of a mapping do the ``command`` for its serial number there.

        Of those that have ended, or end now, nothing is expected.  Raises DataPlaneError if one
        does not answer.
        """
        for number, serial in list(places.items()):
            await self._tell(number, command(serial))

    async def tell_all(self, data: bytes) -> None:
        """The same of all workers."""
        for number in list(self.planes):
            await self._tell(number, data)

    async def _tell(self, number: int, data: bytes) -> None:
        try:
            await self.request(number, data)
        except DataPlaneError:
            if number in self.planes:
                raise

    async def records(self, word: str) -> Records:
        """What each worker answers to ``list`` or ``connections``.  Raises DataPlaneError.

        One that ends meanwhile is left out, unless it was the last.
        """
        found: Records = {}
        for number, plane in sorted(self.planes.items()):
            try:
                found[number] = await plane.records(word)
            except DataPlaneError:
                if not plane.lost:
                    raise
        if not found:
            raise DataPlaneError("the relay has ended")
        return found

    def have_net_admin(self) -> bool:
        """Whether all have CAP_NET_ADMIN."""
        return all(plane.has_net_admin() for plane in self.planes.values())

    def end(self) -> None:
        """Ends all at once; nothing of them stays."""
        for plane in list(self.planes.values()):
            if plane.process is None and not plane.lost:
                with contextlib.suppress(OSError):
                    plane.socket.send(channel.drain(0))
            plane.kill()
        self.planes.clear()
        if self.path:
            for number in range(1, MOST_WORKERS + 1):
                remove_unix(self._where(number))
