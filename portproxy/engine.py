"""Brings what the relays do to what is asked for, in one step or not at all.

New listeners are opened before anything old is touched, and let nobody in until all of them are
open; then what has changed is changed, and what is no longer asked for goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from portproxy import channel
from portproxy.dataplane import DataPlaneError
from portproxy.listeners import ListenerError, passed_socket, remove_unix, unix_listener
from portproxy.namespaces import Identity, NamespaceError, identity, identity_of, open_namespace
from portproxy.reasons import cannot_listen, reason, told
from portproxy.served import Active, Served
from portproxy.spec import Spec
from portproxy.spreading import Record, is_spread, least_loaded, merged
from portproxy.workers import Workers

Locate = Callable[[Spec], Awaitable[str]]
Between = Callable[[dict[str, Spec]], Awaitable[None]]


async def _nothing(_: dict[str, Spec]) -> None:
    pass


class EngineError(Exception):
    """What was asked for cannot be had, and nothing has changed; the message is one line."""


@dataclass
class Change:
    """What an ``apply`` has done, by key; ``failed`` are (title, port, reason) left out."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class Engine:
    """The mappings of a data plane, by the key of their listener.

    ``locate`` finds the address of a spec's host; ``passed`` are systemd's sockets; ``joined`` are
    those that the last ``apply`` has opened, or that it has had more workers serve.
    """

    workers: Workers
    locate: Locate
    passed: dict[str, int] = field(default_factory=dict)
    served: Served = field(default_factory=Served)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    joined: set[str] = field(default_factory=set)

    @property
    def active(self) -> dict[str, Active]:
        """What is served now, by key."""
        return self.served.active

    @property
    def specs(self) -> dict[str, Spec]:
        """What was asked for, by key."""
        return {key: active.spec for key, active in self.active.items() if active.spec}

    async def take_over(self) -> None:
        """Learns what the workers already serve.  Raises DataPlaneError."""
        self.served.learn(await self.workers.records("list"))

    async def listed(self) -> tuple[list[tuple[int, Record]], Record]:
        """The record of each mapping, with its group, and that of the data plane.

        Raises DataPlaneError.
        """
        found = await self.workers.records("list")
        self.served.prune(found)
        return merged(found, self.served.groups, self.workers.several)

    async def forget_lost(self) -> None:
        """Forgets what workers that have ended have served, before others have their numbers.

        Raises DataPlaneError.
        """
        async with self.lock:
            await self._forget_lost()

    async def _forget_lost(self) -> None:
        for active in self.served.keep(self.workers.planes.keys()):
            await self._look_again(active)

    async def left_waiting(self, worker: int, serial: int) -> None:
        """Has the others look for clients that this worker cannot take.  Raises DataPlaneError."""
        group = self.served.groups.get((worker, serial))
        for active in list(self.active.values()):
            if active.group == group:
                await self._look_again(active, worker)

    async def _look_again(self, active: Active, but: int = 0) -> None:
        """Has workers look for clients of which the kernel has told one that did not take them.

        It tells one worker of a client, and goes on to the next when another client comes.
        """
        others = {worker: serial for worker, serial in active.places.items() if worker != but}
        await self.workers.tell(others, channel.start)

    async def apply(
        self, specs: Iterable[Spec], drain_ms: int, between: Between = _nothing
    ) -> Change:
        """Serves exactly ``specs``.  Raises EngineError; then everything is as it was.

        Connections of what goes have ``drain_ms`` milliseconds (channel.FOREVER_MS: as they like).
        ``between`` gets all specs, with addresses, when the new ones are open and before any goes;
        what it raises undoes everything.
        """
        async with self.lock:
            return await self._apply(await self._resolved(specs), drain_ms, between)

    def has_moved(self) -> bool:
        """Whether the name of a backend's namespace means another one by now.

        So it is when a container has been started again.  Not for the event loop: it may look
        through all processes.
        """
        return any(_moved(self.active.copy()))

    async def _resolved(self, specs: Iterable[Spec]) -> dict[str, Spec]:
        wanted: dict[str, Spec] = {}
        for spec in specs:
            key, again = spec.key, 1
            while key in wanted:
                if spec.mapping.port != 0 or spec.mapping.listen_unix or spec.mapping.listen_fd:
                    raise EngineError(f"{spec.origin}: {spec.key} is asked for twice")
                again += 1
                key = f"{spec.key}#{again}"
            wanted[key] = spec if spec.mapping.unix else spec.resolved(await self.locate(spec))
        return wanted

    async def _apply(self, wanted: dict[str, Spec], drain_ms: int, between: Between) -> Change:
        await self._forget_lost()
        change = Change()
        fresh: dict[str, Active] = {}
        kept: dict[str, Active] = {}
        joined: dict[str, dict[int, int]] = {}
        moved = set(await asyncio.to_thread(lambda: list(_moved(self.active.copy()))))
        try:
            for key, spec in wanted.items():
                if key not in self.active:
                    number = self._worker_for([*self.active.values(), *fresh.values()], spec)
                    fresh[key] = await self._add(spec, number, change)
                    await self._spread(fresh[key], spec, {})
            for key, spec in wanted.items():
                if key in fresh:
                    continue
                kept[key] = active = self.active[key]
                if key in moved or active.line != self._line(spec):
                    await self._update(active, spec)
                    change.changed.append(key)
                joined[key] = {}
                await self._spread(active, spec, joined[key])
            for active in fresh.values():
                await self._start(active.places, active.spec)
            for places in joined.values():
                await self._start(places, None)
            await between(wanted)
        except BaseException:
            await self._undo(fresh, change.changed, joined)
            raise
        self.joined = {*fresh, *(key for key, places in joined.items() if places)}
        await self._settle(kept, wanted, change, drain_ms)
        self.active.update(fresh)
        change.added = list(fresh)
        return change

    async def _settle(
        self, kept: dict[str, Active], wanted: dict[str, Spec], change: Change, drain_ms: int
    ) -> None:
        """Does what cannot fail any more, when all that is wanted can be had."""
        for key, active in kept.items():
            active.spec = wanted[key]
            if key in change.changed:
                active.line = self._line(wanted[key])
            if len(active.places) > 1 and not is_spread(wanted[key]):
                await self._gather(active)
        for key in [key for key in self.active if key not in wanted]:
            await self._remove(self.active.pop(key).places, drain_ms)
            if "/unix:" in key:
                remove_unix(key.partition("/unix:")[2])
            change.removed.append(key)

    async def _undo(
        self, fresh: dict[str, Active], updated: list[str], joined: dict[str, dict[int, int]]
    ) -> None:
        """Takes back what an ``apply`` that fails has done so far."""
        for active in fresh.values():
            await self._remove(active.places, 0)
            if active.spec is not None:
                remove_unix(active.spec.mapping.listen_unix)
        for key, places in joined.items():
            await self._remove(places, channel.FOREVER_MS)
            for number in places:
                self.active[key].places.pop(number, None)
        for key in updated:
            before = self.active[key]
            if before.spec is not None:
                with contextlib.suppress(Exception):
                    await self._update(before, before.spec)

    async def _remove(self, places: dict[int, int], ms: int) -> None:
        """Removes a mapping where it is served; who cannot do it any more has ended."""
        for number, serial in list(places.items()):
            with contextlib.suppress(Exception):
                await self.workers.request(number, channel.remove(serial, ms))

    async def _start(self, places: dict[int, int], spec: Spec | None) -> None:
        """Lets clients in.  Raises EngineError."""
        for number, serial in places.items():
            await self._done(number, channel.start(serial), spec)

    # --- Who serves what -----------------------------------------------------------------------

    def _worker_for(self, others: Iterable[Active], spec: Spec) -> int:
        """The worker that opens the ports of a new mapping.  Raises DataPlaneError."""
        numbers = sorted(self.workers.planes)
        if not numbers:
            raise DataPlaneError("the relay has ended")
        if is_spread(spec):
            return numbers[0]
        return least_loaded(numbers, [active.places for active in others])

    async def _spread(self, active: Active, spec: Spec, came: dict[int, int]) -> None:
        """Has all workers serve a mapping that all can; where it is opened now goes into ``came``.

        A worker that cannot is left out: the others serve its clients.  Raises EngineError or
        DataPlaneError.
        """
        missing = sorted(self.workers.planes.keys() - active.places.keys())
        if not missing or not is_spread(spec):
            return
        source = min(active.places)
        shared = await self.workers.share(source, active.places[source])
        fds: list[int] = []
        try:
            if shared and spec.mapping.netns:
                fds.append(open_namespace(spec.mapping.netns))
            words = {"backend_netns": 0, "shared": 1} if fds else {"shared": 0}
            line = spec.line(words)
            for number in missing if shared else []:
                command = channel.add(line)
                answer = await self.workers.request(number, command, [*fds, *shared])
                if isinstance(answer, channel.Done):
                    self.served.place(active, number, answer.number)
                    came[number] = answer.number
        except (NamespaceError, channel.ChannelError) as error:
            raise EngineError(told(spec, str(error))) from error
        finally:
            for fd in (*fds, *shared):
                os.close(fd)

    async def _gather(self, active: Active) -> None:
        """Leaves a mapping to one worker; connections that others have go on there."""
        others = [each.places for each in self.active.values()]
        stays = least_loaded(sorted(active.places), others)
        for number in active.places.keys() - {stays}:
            await self._remove({number: active.places.pop(number)}, channel.FOREVER_MS)
        with contextlib.suppress(DataPlaneError):
            await self._look_again(active)

    # --- One mapping ---------------------------------------------------------------------------

    def _line(self, spec: Spec) -> str:
        """The line of a spec, as the relay shows it."""
        return spec.line({purpose: at for at, purpose in enumerate(_purposes(spec))})

    async def _add(self, spec: Spec, number: int, change: Change) -> Active:
        """Has a worker open the ports of a spec."""
        fds: list[int] = []
        inside: Identity | None = None
        try:
            for purpose in _purposes(spec):
                fds.append(self._descriptor(spec, purpose))
                if purpose == "backend_netns":
                    inside = identity(fds[-1])
            line = self._line(spec)
            done = await self._done(number, channel.add(line), spec, fds)
        except (ListenerError, NamespaceError, channel.ChannelError) as error:
            raise EngineError(told(spec, str(error))) from error
        finally:
            for fd in fds:
                os.close(fd)
        for port, why in done.failed_ports():
            change.failed.append((spec.title, port, reason(spec, port, why)))
        active = self.served.new(line, done.other, spec, inside)
        self.served.place(active, number, done.number)
        return active

    async def _update(self, active: Active, spec: Spec) -> None:
        """Gives a mapping other settings and targets, with all its workers or with none."""
        done: list[int] = []
        try:
            for number in active.places:
                active.inside = await self._update_at(number, active, spec)
                done.append(number)
        except BaseException:
            for number in done:
                if active.spec is not None:
                    with contextlib.suppress(Exception):
                        active.inside = await self._update_at(number, active, active.spec)
            raise

    async def _update_at(self, number: int, active: Active, spec: Spec) -> Identity | None:
        """The same with one worker; the namespace of the backends."""
        fds: list[int] = []
        try:
            # The listener stays as it is, but its word must find a descriptor.
            inside: Identity | None = None
            for purpose in _purposes(spec):
                if purpose == "backend_netns":
                    fds.append(open_namespace(spec.mapping.netns))
                    inside = identity(fds[-1])
                else:
                    fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            command = channel.update(active.places[number], self._line(spec))
            await self._done(number, command, spec, fds)
            return inside
        except (NamespaceError, channel.ChannelError) as error:
            raise EngineError(told(spec, str(error))) from error
        finally:
            for fd in fds:
                os.close(fd)

    def _descriptor(self, spec: Spec, purpose: str) -> int:
        mapping = spec.mapping
        if purpose == "listen_netns":
            return open_namespace(mapping.listen_netns)
        if purpose == "backend_netns":
            return open_namespace(mapping.netns)
        if mapping.listen_unix:
            return unix_listener(mapping.listen_unix).detach()
        return passed_socket(mapping.listen_fd, self.passed)

    async def _done(
        self, number: int, command: bytes, spec: Spec | None, fds: Iterable[int] = ()
    ) -> channel.Done:
        """Has a worker carry out a command.  Raises EngineError in people's words."""
        answer = await self.workers.request(number, command, list(fds))
        if isinstance(answer, channel.Done):
            return answer
        if spec is None or not answer.number:
            raise EngineError(told(spec, answer.text))
        raise EngineError(told(spec, cannot_listen(spec, answer.port, answer.number)))


def _moved(active: dict[str, Active]) -> Iterable[str]:
    """The keys of those whose backends are elsewhere now."""
    known: dict[str, Identity | None] = {}
    for key, each in active.items():
        name = each.spec.mapping.netns if each.spec is not None else ""
        if name:
            if name not in known:
                known[name] = identity_of(name)
            if known[name] not in {None, each.inside}:
                yield key


def _purposes(spec: Spec) -> list[str]:
    """What descriptors go with a spec's line, in order."""
    mapping = spec.mapping
    wanted = [("listen_netns", mapping.listen_netns), ("backend_netns", mapping.netns)]
    wanted.append(("fd", mapping.listen_unix or mapping.listen_fd))
    return [purpose for purpose, value in wanted if value]


async def look_up(spec: Spec) -> str:
    """The address of a spec's host, by the system's resolver.  Raises EngineError."""
    host = spec.mapping.host
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, spec.mapping.host_port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise EngineError(f"cannot find host {host}: {error.strerror}".rstrip()) from error
    return str(found[0][4][0])
