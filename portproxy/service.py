"""The control plane: holds the configuration, and has the data plane and the kernel follow it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from portproxy import channel, systemd
from portproxy.accesslog import AccessLog
from portproxy.api import ApiError, Server
from portproxy.config import Config, ConfigError, load
from portproxy.dataplane import Confinement, DataPlane, DataPlaneError, adopt, start
from portproxy.engine import Change, Engine, EngineError, look_up
from portproxy.kernel import KernelMode
from portproxy.listeners import passed_sockets, remove_unix
from portproxy.mapping import MappingError
from portproxy.namespaces import NamespaceError
from portproxy.nft import NftError
from portproxy.report import title, where
from portproxy.settings import SettingError
from portproxy.spec import Spec, make

if TYPE_CHECKING:  # imported when they are needed: most instances do without
    from portproxy.health import Health
    from portproxy.metrics import Endpoint, Reading

FOLLOW_INTERVAL_S = 1.0
NAMES_INTERVAL_S = 60.0
LEAVE_MARGIN_S = 5.0


class ServiceError(Exception):
    """The service cannot begin or go on; the message is one line."""


def say(text: str) -> None:
    """One line for whoever watches stderr."""
    print(f"portproxy: {text}", file=sys.stderr, flush=True)


@dataclass
class Service:
    """One instance.  ``path`` is its control socket; without one its data plane ends with it."""

    config: Config
    path: str = ""
    config_path: str = ""
    announce: Callable[[str], None] = lambda line: None
    extra: list[Spec] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    reloads: int = 0
    failed_reloads: int = 0
    log: AccessLog | None = None
    stopping: bool = False

    async def run(self) -> None:
        """Serves until it is told to stop.  Raises ServiceError."""
        self.finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.tasks: list[asyncio.Task[None]] = []
        self.server = Server(self.handle)
        self.endpoint: Endpoint | None = None
        self.health: Health | None = None
        self.kernel = KernelMode(say)
        self.plane: DataPlane | None = None
        self.begun = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            await self._begin()
            reason = await self.finished
        except (ApiError, DataPlaneError, EngineError, NftError, OSError) as error:
            raise ServiceError(str(error)) from error
        finally:
            await self._end()
        if reason:
            raise ServiceError(reason)

    # --- Beginning and end ---------------------------------------------------------------------

    async def _begin(self) -> None:
        if self.path:
            await self.server.listen(self.path)
        if self.config.access_log:
            self.log = AccessLog(self.config.access_log, self.config.log_format)
        specs = [*self.config.specs, *self.extra]
        self.plane = self._plane(any(spec.needs_net_admin for spec in specs))
        await self.plane.begin()
        self.engine = Engine(self.plane, self.locate, passed_sockets(os.environ))
        await self.engine.take_over()
        if any(spec.mode != "user" for spec in specs):
            self.kernel.begin()
        change = await self._apply(specs)
        for name, port, why in change.failed:
            say(f"{name}: port {port} is left out: {why}")
        if self.log is not None:
            await self.plane.request(channel.simple("closes", self.config.log_sample))
        await self._observe()
        self.begun = True
        for active in self.engine.active.values():
            self.announce(where(active))
        systemd.notify("READY=1", f"STATUS={len(self.engine.active)} mappings")

    def _plane(self, net_admin: bool) -> DataPlane:
        """The relay of a former control plane, or a new one."""
        relay = f"{self.path}.relay" if self.path else ""
        if relay:
            found = adopt(relay, self._event, self._lost)
            if found is not None:
                return found
        confinement = Confinement(self.config.user, net_admin, self.config.seccomp)
        return start(confinement, self._event, self._lost, relay)

    async def _observe(self) -> None:
        """Metrics, health checks, names and containers, and systemd's watchdog."""
        if self.config.metrics:
            from portproxy.metrics import Endpoint

            self.endpoint = Endpoint(self._reading, self.unready)
            try:
                await self.endpoint.listen(self.config.metrics)
            except (OSError, ValueError) as error:
                raise ServiceError(
                    f"metrics: cannot listen on {self.config.metrics}: {error}"
                ) from error
        self.tasks.append(asyncio.ensure_future(self._follow()))
        if systemd.watchdog_s():
            self.tasks.append(asyncio.ensure_future(self._feed_watchdog()))

    async def _end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.health is not None:
            self.health.close()
        if self.endpoint is not None:
            self.endpoint.close()
        self.kernel.remove()
        if self.plane is not None:
            for key in self.engine.active if hasattr(self, "engine") else ():
                if "/unix:" in key:
                    remove_unix(key.partition("/unix:")[2])
            if self.plane.process is None and not self.plane.lost:
                with contextlib.suppress(OSError):
                    self.plane.socket.send(channel.drain(0))
            self.plane.kill()
            remove_unix(f"{self.path}.relay" if self.path else "")
        self.server.close()
        if self.log is not None:
            self.log.close()

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
        assert self.plane is not None
        self.kernel.remove()
        with contextlib.suppress(DataPlaneError):
            await self.plane.request(channel.drain(ms))
            await asyncio.sleep(ms / 1000 + LEAVE_MARGIN_S)
        self._finish("")

    def _finish(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_result(reason)

    def _lost(self) -> None:
        """The relay has gone: as it was told to, or by an accident that ends us too."""
        how = self.plane.ended_how() if self.plane is not None else ""
        self._finish("" if self.stopping else f"the data plane has ended {how}".rstrip())

    def _event(self, record: dict[str, Any]) -> None:
        if self.log is not None and record.get("event") == "close":
            self.log.write(record)

    # --- Changes -------------------------------------------------------------------------------

    async def _apply(self, specs: list[Spec]) -> Change:
        """Has all follow ``specs``.  Raises EngineError or NftError: nothing changes then."""
        assert self.plane is not None
        for spec in specs:
            if spec.needs_net_admin and not self.plane.has_net_admin():
                raise EngineError(
                    f"{spec.origin}: {spec.title} needs CAP_NET_ADMIN, which the data plane has "
                    "only if it was started, as root, with a mapping that needs it"
                )
        before = [active.spec for active in self.engine.active.values() if active.spec]
        change = await self.engine.apply(specs, self.config.drain_ms)
        wanted = {key: active.spec for key, active in self.engine.active.items() if active.spec}
        try:
            await self.kernel.put(wanted)
        except NftError:
            if before:
                await self.engine.apply(before, 0)
            raise
        if self.health is None and any(spec.check_ms for spec in wanted.values()):
            from portproxy.health import Health

            self.health = Health(self._mark)
        if self.health is not None:
            self.health.watch(wanted)
        return change

    async def _mark(self, key: str, index: int, up: bool) -> None:
        active = self.engine.active.get(key)
        if active is not None and self.plane is not None:
            await self.plane.request(channel.mark(active.serial, index, up))

    def _hang_up(self) -> None:
        if self.log is not None:
            with contextlib.suppress(OSError):
                self.log.reopen()
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
            config = load(self.config_path)
            before, self.config = self.config, config
            try:
                change = await self._apply([*config.specs, *self.extra])
            except BaseException:
                self.config = before
                raise
        except (ConfigError, EngineError, NftError, DataPlaneError) as error:
            self.failed_reloads += 1
            raise ApiError(str(error)) from error
        finally:
            systemd.notify("READY=1")
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
            specs = [active.spec for active in self.engine.active.values() if active.spec]
            moving = [spec for spec in specs if spec.container_pid]
            if since_names_s >= NAMES_INTERVAL_S:
                since_names_s = 0.0
                moving += [spec for spec in specs if not spec.mapping.unix]
            for spec in moving:
                with contextlib.suppress(EngineError):
                    if await self.locate(spec) != spec.address and not self.stopping:
                        await self._apply([*self.config.specs, *self.extra])
                        break

    async def _feed_watchdog(self) -> None:
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(systemd.watchdog_s())

    # --- What people ask -----------------------------------------------------------------------

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request of the control socket.  Raises ApiError."""
        if self.plane is None or self.plane.lost:
            raise ApiError("the data plane is not there yet, or not any more")
        do = request["do"]
        try:
            if do in {"status", "mappings"}:
                return await self._status()
            if do == "ps":
                *found, _ = await self.plane.records("connections")
                return {"connections": found}
            if do == "kill":
                return await self._plain(channel.simple("kill", int(request["serial"])))
            if do == "add":
                return await self._add(str(request["publish"]), request.get("options", {}))
            if do in {"rm", "drain"}:
                drain_ms = channel.FOREVER_MS if do == "drain" else int(request.get("ms", 0))
                return await self._remove(str(request["publish"]), drain_ms)
            if do == "reload":
                change = await self.reload()
                return asdict(change)
        except (EngineError, NftError, DataPlaneError) as error:
            raise ApiError(str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ApiError(f"{do}: {error}") from error
        raise ApiError(f"there is no request {do!r}")

    async def _plain(self, command: bytes) -> dict[str, Any]:
        assert self.plane is not None
        answer = await self.plane.request(command)
        if isinstance(answer, channel.Refused):
            raise ApiError(answer.text)
        return {}

    async def _add(self, publish: str, options: dict[str, object]) -> dict[str, Any]:
        try:
            specs = make(publish, options, "add")
        except (MappingError, SettingError) as error:
            raise ApiError(str(error)) from error
        change = await self._apply([*self.config.specs, *self.extra, *specs])
        self.extra += specs
        added = [where(self.engine.active[key]) for key in change.added]
        return {"added": added, "failed": change.failed}

    async def _remove(self, publish: str, drain_ms: int) -> dict[str, Any]:
        """Removes by name or by listener; connections have ``drain_ms``."""
        everything = [*self.config.specs, *self.extra]
        gone = [
            spec
            for spec in everything
            if publish in {spec.name, spec.key, spec.mapping.listener} and publish
        ]
        if not gone:
            raise ApiError(f"nothing is forwarded from {publish!r}; see portproxy status")
        before = self.config
        self.config = _with(before, [s for s in before.specs if s not in gone], drain_ms)
        extra, self.extra = self.extra, [spec for spec in self.extra if spec not in gone]
        try:
            change = await self._apply([*self.config.specs, *self.extra])
        except BaseException:
            self.config, self.extra = before, extra
            raise
        self.config = _with(before, list(self.config.specs), before.drain_ms)
        return {"removed": change.removed}

    async def _status(self) -> dict[str, Any]:
        assert self.plane is not None
        *mappings, process = await self.plane.records("list")
        by_serial = {active.serial: active for active in self.engine.active.values()}
        for record in mappings:
            active = by_serial.get(record["serial"])
            record["title"] = title(active, record)
            record["where"] = where(active) if active is not None else record["line"]
            key = next((k for k, a in self.engine.active.items() if a is active), "")
            record["kernel"] = key in self.kernel.keys
        return {
            "pid": os.getpid(),
            "relay": process["pid"],
            "ready": await self.unready() or "yes",
            "config": self.config_path,
            "reloads": self.reloads,
            "failed_reloads": self.failed_reloads,
            "mappings": mappings,
            "process": process,
        }

    async def unready(self) -> str:
        """Why the service is not ready; empty if it is."""
        if self.stopping:
            return "it is about to end"
        if self.config.ready and self.health is not None and self.health.down():
            return f"no backend is up of {', '.join(self.health.down())}"
        return ""

    async def _reading(self) -> Reading:
        from portproxy.metrics import Reading

        status = await self._status()
        own = {"reloads": self.reloads, "failed_reloads": self.failed_reloads}
        own["log_lines_lost"] = self.log.lost if self.log is not None else 0
        named = [(record["title"], record) for record in status["mappings"]]
        return Reading(named, status["process"], own)


def _with(config: Config, specs: list[Spec], drain_ms: int) -> Config:
    return replace(config, specs=tuple(specs), drain_ms=drain_ms)
