"""The control plane: holds the configuration, and has the data plane and the kernel follow it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from portproxy import channel, systemd
from portproxy.api import ApiError, Server
from portproxy.config import Config, ConfigError, load
from portproxy.dataplane import Confinement, DataPlane, DataPlaneError
from portproxy.engine import Change, Engine, EngineError, look_up
from portproxy.flows import datagram_ports, forget_flows
from portproxy.idleness import Idleness
from portproxy.kernel import KernelMode
from portproxy.listeners import passed_sockets, remove_unix
from portproxy.namespaces import NamespaceError
from portproxy.nft import NftError
from portproxy.outlets import OutletError, Outlets
from portproxy.report import where
from portproxy.requests import Requests
from portproxy.spec import Spec
from portproxy.workers import Workers

if TYPE_CHECKING:  # imported when they are needed: most instances do without
    from portproxy.health import Health

FOLLOW_INTERVAL_S = 1.0
NAMES_INTERVAL_S = 60.0
LEAVE_MARGIN_S = 5.0
LAST_MOMENT_MS = 30_000
REPLACE_DELAY_S = 1.0
# What the data plane is given when it starts, and cannot be changed afterwards.
ONCE = ("user", "workers", "seccomp")
Wanted = tuple[Config, list[Spec]]


class ServiceError(Exception):
    """The service cannot begin or go on; the message is one line."""


def say(text: str) -> None:
    """One line for whoever watches stderr."""
    print(f"portproxy: {text}", file=sys.stderr, flush=True)


@dataclass
class Service:
    """One instance.  ``path`` is its control socket; without one its data plane ends with it.

    ``given`` are settings of the command line, which count more than the file's; ``extra`` are
    mappings that are not the file's.
    """

    config: Config
    path: str = ""
    config_path: str = ""
    announce: Callable[[str], None] = lambda line: None
    extra: list[Spec] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    reloads: int = 0
    failed_reloads: int = 0
    stopping: bool = False

    async def run(self) -> None:
        """Serves until it is told to stop.  Raises ServiceError."""
        self.finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.tasks: list[asyncio.Task[None]] = []
        self.changing = asyncio.Lock()
        requests = Requests(self)
        self.server = Server(requests.handle)
        self.outlets = Outlets(requests.reading, self.unready)
        self.health: Health | None = None
        self.kernel = KernelMode(say)
        self.workers = Workers(self.path, self._event, self._lost)
        self.begun = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            await self._begin()
            reason = await self.finished
        except (ApiError, DataPlaneError, EngineError, NftError, OutletError, OSError) as error:
            raise ServiceError(str(error)) from error
        finally:
            await self._end()
        if reason:
            raise ServiceError(reason)

    # --- Beginning and end ---------------------------------------------------------------------

    async def _begin(self) -> None:
        if self.path:
            await self.server.listen(self.path)
        self.outlets = await self.outlets.opened(self.config)
        specs = [*self.config.specs, *self.extra]
        await self.workers.begin(self.config.workers, self._confinement())
        self.engine = Engine(self.workers, self.locate, passed_sockets(os.environ))
        await self.engine.take_over()
        if any(spec.mode != "user" for spec in specs):
            await self.kernel.begin()
        change = await self.change(lambda config, extra: (config, extra))
        for name, port, why in change.failed:
            say(f"{name}: port {port} is left out: {why}")
        await self._report()
        self.tasks.append(asyncio.ensure_future(self._follow()))
        self.tasks.append(asyncio.ensure_future(self._end_when_idle()))
        if systemd.watchdog_s():
            self.tasks.append(asyncio.ensure_future(self._feed_watchdog()))
        self.begun = True
        for active in self.engine.active.values():
            self.announce(where(active))
        systemd.notify("READY=1", f"STATUS={len(self.engine.active)} mappings")

    def _confinement(self) -> Confinement:
        """The privileges that a worker starts with."""
        specs = [*self.config.specs, *self.extra]
        net_admin = any(spec.needs_net_admin for spec in specs)
        return Confinement(self.config.user, net_admin, self.config.seccomp)

    async def _report(self) -> None:
        """Has the workers report as many of the connections that end as the log wants."""
        await self.workers.tell_all(channel.simple("closes", self.outlets.reports_one_in))

    async def _end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.health is not None:
            self.health.close()
        await self.kernel.remove()
        specs = self.engine.specs if hasattr(self, "engine") else {}
        for key in specs:
            if "/unix:" in key:
                remove_unix(key.partition("/unix:")[2])
        self.workers.end()
        await asyncio.to_thread(forget_flows, datagram_ports(specs))
        self.server.close()
        self.outlets.close_beside(None)

    def _stop(self, number: int) -> None:
        """SIGTERM lets connections end, for as long as is configured; what comes next does not."""
        systemd.notify("STOPPING=1")
        at_once = number == signal.SIGINT or not self.config.drain_ms or not self.begun
        if self.stopping or at_once:
            self._finish("")
            return
        self.stopping = True
        self.tasks.append(asyncio.ensure_future(self._drain(self.config.drain_ms)))

    async def _drain(self, ms: int) -> None:
        await self.kernel.retire()
        with contextlib.suppress(DataPlaneError):
            await self.workers.tell_all(channel.drain(ms))
            await asyncio.sleep(ms / 1000 + LEAVE_MARGIN_S)
        self._finish("")

    def _finish(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_result(reason)

    def _lost(self, number: int, plane: DataPlane) -> None:
        """A worker has gone: as it was told to, or by an accident, which ends us if it was alone.

        The others go on, and serve what it had until there is another one in its place.
        """
        left = bool(self.workers.planes) and self.begun
        how = "" if self.stopping and left else plane.ended_how()
        if not left:
            self._finish("" if self.stopping else f"the data plane has ended {how}".rstrip())
        elif not self.stopping:
            ended = f"worker {number} of the data plane has ended {how}".rstrip()
            say(f"{ended}; the others go on")
            self.tasks.append(asyncio.ensure_future(self._replace(number)))

    async def _replace(self, number: int) -> None:
        """Has the others serve what a worker did that has ended, and then another one, too."""
        await self._restore()
        while not self.stopping and self.workers.planes:
            await asyncio.sleep(REPLACE_DELAY_S)
            try:
                await self.engine.forget_lost()
                await self.workers.replace(number, self._confinement())
                break
            except (DataPlaneError, OSError) as error:
                say(f"worker {number} of the data plane cannot be started again: {error}")
        await self._restore()
        with contextlib.suppress(DataPlaneError):
            await self._report()

    async def _restore(self) -> None:
        """Has the workers that there are serve everything; tries until that can be had."""
        while not self.stopping and self.begun and self.workers.planes:
            try:
                await self.change(lambda config, extra: (config, extra))
                return
            except (EngineError, NftError, DataPlaneError, OSError) as error:
                say(f"what a worker has left is not served: {error}")
                await asyncio.sleep(REPLACE_DELAY_S)

    def _event(self, number: int, record: dict[str, Any]) -> None:
        if self.outlets.log is not None and record.get("event") == "close":
            self.outlets.log.write(record)
        elif record.get("event") == "pause" and self.begun:
            task = asyncio.ensure_future(self._hand_on(number, record["serial"]))
            self.tasks.append(task)
            task.add_done_callback(self.tasks.remove)

    async def _hand_on(self, number: int, serial: int) -> None:
        """A worker is out of descriptors, and a client waits; the others may have some."""
        with contextlib.suppress(DataPlaneError):
            await self.engine.left_waiting(number, serial)

    # --- Changes -------------------------------------------------------------------------------

    async def change(
        self, wanted: Callable[[Config, list[Spec]], Wanted], drain_ms: int | None = None
    ) -> Change:
        """Has all follow what ``wanted`` makes of the configuration and of what was added to it.

        One change at a time, each from what the one before has left: two that come together lose
        nothing of each other, and what is refused has never been what others build on.
        Connections of what goes have ``drain_ms``, or what the configuration says.  Raises
        EngineError or NftError: nothing changes then.
        """
        async with self.changing:
            config, extra = wanted(self.config, self.extra)
            specs = [*config.specs, *extra]
            change = await self._apply(specs, config.drain_ms if drain_ms is None else drain_ms)
            self.config, self.extra = config, extra
        return change

    async def _apply(self, specs: list[Spec], drain_ms: int) -> Change:
        for spec in specs:
            if spec.needs_net_admin and not self.workers.have_net_admin():
                raise EngineError(
                    f"{spec.origin}: {spec.title} needs CAP_NET_ADMIN, which the data plane has "
                    "only if it was started, as root, with a mapping that needs it"
                )
        before = datagram_ports(self.engine.specs)
        change = await self.engine.apply(specs, drain_ms, self.kernel.put)
        wanted = self.engine.specs
        await asyncio.to_thread(forget_flows, before ^ datagram_ports(wanted))
        await self.kernel.try_out()
        if self.health is None and any(spec.check_ms for spec in wanted.values()):
            from portproxy.health import Health

            self.health = Health(self._mark)
        if self.health is not None:
            self.health.watch(wanted)
            await self.health.repeat(self.engine.joined)
        return change

    async def _mark(self, key: str, index: int, up: bool) -> None:
        active = self.engine.active.get(key)
        if active is not None:
            await self.workers.tell(active.places, lambda serial: channel.mark(serial, index, up))

    def _hang_up(self) -> None:
        self.outlets.reopen_log()
        if self.config_path and self.begun:
            self.tasks.append(asyncio.ensure_future(self._reload_and_say()))

    async def _reload_and_say(self) -> None:
        try:
            change = await self.reload()
        except ApiError as error:
            say(f"nothing was reloaded: {error}")
        else:
            counts = f"{len(change.added)} added, {len(change.changed)} changed"
            say(f"reloaded: {counts}, {len(change.removed)} removed")

    async def reload(self) -> Change:
        """Reads the file again and follows it.  Raises ApiError; nothing changes then."""
        if not self.config_path:
            raise ApiError("there is no file to reload: the service was started without --config")
        systemd.reloading()
        try:
            return await self._reload(replace(load(self.config_path), **self.given))
        except (ConfigError, EngineError, NftError, DataPlaneError, OutletError) as error:
            self.failed_reloads += 1
            raise ApiError(str(error)) from error
        finally:
            systemd.notify("READY=1")

    async def _reload(self, config: Config) -> Change:
        """Follows another configuration in everything, or in nothing."""
        for name in ONCE:
            if getattr(config, name) != getattr(self.config, name):
                line = config.lines.get(name, 1)
                reason = "is what the data plane was started with; it takes a restart"
                raise ConfigError(f"{self.config_path}:{line}: {name} {reason}")
        before = self.outlets
        fresh = await before.opened(config)
        try:
            change = await self.change(lambda _, extra: (config, extra))
        except BaseException:
            fresh.close_beside(before)
            raise
        self.outlets = fresh
        before.close_beside(fresh)
        await self._report()
        self.reloads += 1
        return change

    async def locate(self, spec: Spec) -> str:
        """The address of a spec's host; the last one that was good when it cannot be found now."""
        host = spec.container_pid or spec.mapping.host
        try:
            if spec.container_pid:
                from portproxy.container import address_of

                six = ":" in spec.mapping.bind
                self.known[host] = await asyncio.to_thread(address_of, host, six)
            else:
                self.known[host] = await look_up(spec)
        except (EngineError, NamespaceError) as error:
            if host not in self.known:
                raise EngineError(str(error)) from error
        return self.known[host]

    async def _follow(self) -> None:
        """Looks up names and containers again and again, and follows where they have gone."""
        since_names_s = 0.0
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            since_names_s += FOLLOW_INTERVAL_S
            specs = self.engine.specs.values()
            moving = [spec for spec in specs if spec.container_pid]
            if since_names_s >= NAMES_INTERVAL_S:
                since_names_s = 0.0
                moving += [spec for spec in specs if not spec.mapping.unix]
            with contextlib.suppress(EngineError, NftError, DataPlaneError):
                if await asyncio.to_thread(self.engine.has_moved) and not self.stopping:
                    await self.change(lambda config, extra: (config, extra))
            for spec in moving:
                with contextlib.suppress(EngineError, NftError, DataPlaneError):
                    if await self.locate(spec) != spec.address and not self.stopping:
                        await self.change(lambda config, extra: (config, extra))
                        break

    async def _end_when_idle(self) -> None:
        """Ends, as after SIGTERM, when nobody has been there for as long as is configured."""
        idleness = Idleness(time.monotonic())
        while not self.stopping:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            if not self.config.exit_idle_ms:
                continue
            with contextlib.suppress(DataPlaneError):
                mappings, process = await self.engine.listed()
                records = [*(record for _, record in mappings), process]
                idleness.see(records, time.monotonic())
            if idleness.lasts_s(time.monotonic()) >= self.config.exit_idle_ms / 1000:
                self.stopping = True
                systemd.notify("STOPPING=1", "STATUS=nobody has been there")
                # Whoever comes at the last moment is served to the end.
                await self._drain(max(self.config.drain_ms, LAST_MOMENT_MS))

    async def _feed_watchdog(self) -> None:
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(systemd.watchdog_s())

    async def unready(self) -> str:
        """Why the service is not ready; empty if it is."""
        if self.stopping:
            return "it is about to end"
        if self.config.ready and self.health is not None and self.health.down():
            return f"no backend is up of {', '.join(self.health.down())}"
        return ""
