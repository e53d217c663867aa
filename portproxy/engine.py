"""Brings what a relay does to what is asked for, in one step or not at all.

New listeners are opened before anything old is touched, and let nobody in until all of them are
open; then what has changed is changed, and what is no longer asked for goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from portproxy import channel
from portproxy.dataplane import DataPlane
from portproxy.holder import holder_of
from portproxy.listeners import ListenerError, passed_socket, remove_unix, unix_listener
from portproxy.mapping import endpoint
from portproxy.namespaces import Identity, NamespaceError, identity, identity_of, open_namespace
from portproxy.spec import Spec

LABEL = re.compile(r" label=(\S+)$")
Locate = Callable[[Spec], Awaitable[str]]
Between = Callable[[dict[str, Spec]], Awaitable[None]]


async def _nothing(_: dict[str, Spec]) -> None:
    pass


class EngineError(Exception):
    """What was asked for cannot be had, and nothing has changed; the message is one line."""


@dataclass
class Active:
    """A mapping that the relay serves; ``spec`` is None if a former control plane asked for it.

    ``inside`` is the namespace of its backends, if they are in one and it is known which.
    """

    serial: int
    line: str
    port: int
    spec: Spec | None = None
    inside: Identity | None = None


@dataclass
class Change:
    """What an ``apply`` has done, by key; ``failed`` are (title, port, reason) left out."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[tuple[str, int, str]] = field(default_factory=list)


@dataclass
class Engine:
    """The mappings of one relay, by the key of their listener.

    ``locate`` finds the address of a spec's host; ``passed`` are systemd's sockets.
    """

    plane: DataPlane
    locate: Locate
    passed: dict[str, int] = field(default_factory=dict)
    active: dict[str, Active] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take_over(self) -> None:
        """Learns what the relay already serves."""
        *mappings, _ = await self.plane.records("list")
        for record in mappings:
            label = LABEL.search(record["line"])
            if label is not None and record["state"] != "draining":
                key = unquote(label.group(1))
                self.active[key] = Active(record["serial"], record["line"], record["port"])

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
        return any(self._moved(self.active, known={}))

    def _moved(self, keys: Iterable[str], known: dict[str, Identity | None]) -> Iterable[str]:
        """Those of ``keys`` whose backends are elsewhere now; ``known`` is what is looked up."""
        for key in keys:
            active = self.active[key]
            name = active.spec.mapping.netns if active.spec is not None else ""
            if name:
                if name not in known:
                    known[name] = identity_of(name)
                if known[name] not in {None, active.inside}:
                    yield key

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
        change = Change()
        lines: dict[str, str] = {}
        fresh: dict[str, Active] = {}
        updated: list[str] = []
        moved = set(await asyncio.to_thread(lambda: list(self._moved([*self.active], {}))))
        try:
            for key, spec in wanted.items():
                if key not in self.active:
                    fresh[key] = await self._add(spec, change)
            for key, spec in wanted.items():
                if key not in self.active:
                    continue
                if key in moved or self.active[key].line != self._line(spec):
                    await self._update(self.active[key], spec)
                    updated.append(key)
                    lines[key] = self._line(spec)
            for active in fresh.values():
                await self._done(channel.start(active.serial), active.spec)
            await between(wanted)
        except BaseException:
            await self._undo(fresh, updated)
            raise
        for key in updated:
            self.active[key].line = lines[key]
        for key in wanted.keys() & self.active.keys():
            self.active[key].spec = wanted[key]
        for key in [key for key in self.active if key not in wanted]:
            gone = self.active.pop(key)
            with contextlib.suppress(EngineError):
                await self._done(channel.remove(gone.serial, drain_ms), gone.spec)
            if "/unix:" in key:
                remove_unix(key.partition("/unix:")[2])
            change.removed.append(key)
        self.active.update(fresh)
        change.added, change.changed = list(fresh), updated
        return change

    async def _undo(self, fresh: dict[str, Active], updated: list[str]) -> None:
        """Takes back what an ``apply`` that fails has done so far."""
        for active in fresh.values():
            with contextlib.suppress(Exception):
                await self.plane.request(channel.remove(active.serial, 0))
            if active.spec is not None:
                remove_unix(active.spec.mapping.listen_unix)
        for key in updated:
            before = self.active[key]
            if before.spec is not None:
                with contextlib.suppress(Exception):
                    await self._update(before, before.spec)

    def _line(self, spec: Spec) -> str:
        """The line of a spec, as the relay shows it."""
        return spec.line({purpose: at for at, purpose in enumerate(_purposes(spec))})

    async def _add(self, spec: Spec, change: Change) -> Active:
        """Opens the ports of a spec."""
        fds: list[int] = []
        inside: Identity | None = None
        try:
            for purpose in _purposes(spec):
                fds.append(self._descriptor(spec, purpose))
                if purpose == "backend_netns":
                    inside = identity(fds[-1])
            line = self._line(spec)
            done = await self._done(channel.add(line), spec, fds)
        except (ListenerError, NamespaceError, channel.ChannelError) as error:
            raise EngineError(_told(spec, str(error))) from error
        finally:
            for fd in fds:
                os.close(fd)
        for port, number in done.failed_ports():
            change.failed.append((spec.title, port, _reason(spec, port, number)))
        return Active(done.number, line, done.other, spec, inside)

    async def _update(self, active: Active, spec: Spec) -> None:
        """Gives a mapping other settings and targets."""
        purposes = _purposes(spec)
        fds: list[int] = []
        try:
            # The listener stays as it is, but its word must find a descriptor.
            inside: Identity | None = None
            for purpose in purposes:
                if purpose == "backend_netns":
                    fds.append(open_namespace(spec.mapping.netns))
                    inside = identity(fds[-1])
                else:
                    fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            await self._done(channel.update(active.serial, self._line(spec)), spec, fds)
            active.inside = inside
        except (NamespaceError, channel.ChannelError) as error:
            raise EngineError(_told(spec, str(error))) from error
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
        self, command: bytes, spec: Spec | None, fds: Iterable[int] = ()
    ) -> channel.Done:
        """Has the relay carry out a command.  Raises EngineError in people's words."""
        answer = await self.plane.request(command, list(fds))
        if isinstance(answer, channel.Done):
            return answer
        if spec is None or not answer.number:
            raise EngineError(_told(spec, answer.text))
        raise EngineError(_told(spec, _cannot_listen(spec, answer.port, answer.number)))


def _told(spec: Spec | None, text: str) -> str:
    return text if spec is None or spec.origin == "-p" else f"{spec.origin}: {text}"


def _purposes(spec: Spec) -> list[str]:
    """What descriptors go with a spec's line, in order."""
    mapping = spec.mapping
    wanted = [("listen_netns", mapping.listen_netns), ("backend_netns", mapping.netns)]
    wanted.append(("fd", mapping.listen_unix or mapping.listen_fd))
    return [purpose for purpose, value in wanted if value]


def _cannot_listen(spec: Spec, port: int, number: int) -> str:
    where = endpoint(spec.mapping.bind, port)
    return f"cannot listen on {where}: {_reason(spec, port, number)}"


def _reason(spec: Spec, port: int, number: int) -> str:
    """What an errno means for a listener, and who is to blame if that can be found out."""
    protocol = spec.mapping.protocol
    if number == errno.EPROTONOSUPPORT:
        return f"this kernel has no {protocol}; load the module {protocol}"
    if number == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n, LimitNOFILE=)"
    text = os.strerror(number).lower()
    if number == errno.EADDRINUSE and not spec.mapping.listen_netns:
        holder = holder_of(protocol, port)
        return f"{text} (by {holder})" if holder else text
    if number == errno.EACCES and port < 1024:
        return f"{text}; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return text


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
