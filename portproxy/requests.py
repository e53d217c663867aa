"""What people ask of a running service, over its control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from portproxy import channel, spreading
from portproxy.api import ApiError
from portproxy.dataplane import DataPlaneError
from portproxy.engine import EngineError
from portproxy.mapping import MappingError
from portproxy.nft import NftError
from portproxy.report import title, where
from portproxy.settings import SettingError
from portproxy.spec import Spec, make

if TYPE_CHECKING:
    from portproxy.config import Config
    from portproxy.metrics import Reading
    from portproxy.service import Service
    from portproxy.workers import Workers

Json = dict[str, Any]
MOST_NUMBER = 2**31 - 1


class Requests:
    """Carries requests out on one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.known: dict[str, Callable[[Json], Awaitable[Json]]] = {
            "status": self._status,
            "ps": self._ps,
            "kill": self._kill,
            "add": self._add,
            "rm": self._rm,
            "drain": self._drain,
            "reload": self._reload,
        }

    async def handle(self, request: Json) -> Json:
        """One request.  Raises ApiError."""
        if not self.service.begun or not self.workers.planes:
            raise ApiError("the data plane is not there yet, or not any more")
        do = request["do"]
        if do not in self.known:
            raise ApiError(f"there is no request {do!r}")
        try:
            return await self.known[do](request)
        except (EngineError, NftError, DataPlaneError, MappingError, SettingError) as error:
            raise ApiError(str(error)) from error
        except KeyError as error:
            raise ApiError(f"{do} needs {error}") from error

    @property
    def workers(self) -> Workers:
        """The data plane of a service that has begun."""
        return self.service.workers

    async def _status(self, _: Json) -> Json:
        return await self.status()

    async def status(self) -> Json:
        """Every mapping with its counters, the process, and whether the service is ready."""
        service = self.service
        mappings, process = await service.engine.listed()
        by_group = {active.group: (key, active) for key, active in service.engine.active.items()}
        for group, record in mappings:
            key, active = by_group.get(group, ("", None))
            record["title"] = title(active, record)
            record["where"] = where(active) if active is not None else record["line"]
            record["kernel"] = key in service.kernel.keys
        return {
            "pid": os.getpid(),
            "relay": process["pid"],
            "ready": await service.unready() or "yes",
            "config": service.config_path,
            "reloads": service.reloads,
            "failed_reloads": service.failed_reloads,
            "mappings": [record for _, record in mappings],
            "process": process,
            "workers": {number: plane.pid for number, plane in self.workers.planes.items()},
        }

    async def reading(self) -> Reading:
        """The same for the metrics."""
        from portproxy.metrics import Reading

        status = await self.status()
        own = {name: status[name] for name in ("reloads", "failed_reloads")}
        log = self.service.outlets.log
        own["log_lines_lost"] = log.lost if log is not None else 0
        named = [(record["title"], record) for record in status["mappings"]]
        return Reading(named, status["process"], own)

    async def _ps(self, _: Json) -> Json:
        listed = await self.workers.records("connections")
        groups, several = self.service.engine.served.groups, self.workers.several
        return {"connections": spreading.connections(listed, groups, several)}

    async def _kill(self, request: Json) -> Json:
        worker, serial = self._connection(request)
        if worker not in self.workers.planes:
            raise ApiError("there is no such connection")
        answer = await self.workers.request(worker, channel.simple("kill", serial))
        if isinstance(answer, channel.Refused):
            raise ApiError(answer.text)
        return {}

    def _connection(self, request: Json) -> spreading.Place:
        """The worker and the number there of a connection.  Raises ApiError, or KeyError."""
        if not self.workers.several:
            return min(self.workers.planes), _number(request, "serial")
        place = spreading.place_of(request["serial"])
        if place is None:
            shown = request["serial"]
            raise ApiError(f"there is no such connection: {shown!r} is not WORKER.NUMBER as in ps")
        return place

    async def _add(self, request: Json) -> Json:
        options = request.get("options", {})
        if not isinstance(options, dict):
            raise ApiError("add: options is an object of settings")
        specs = make(_text(request, "publish"), options, "add")
        change = await self.service.change(lambda config, extra: (config, [*extra, *specs]))
        added = [where(self.service.engine.active[key]) for key in change.added]
        return {"added": added, "failed": change.failed}

    async def _rm(self, request: Json) -> Json:
        return await self._remove(request, _number(request, "ms") if "ms" in request else 0)

    async def _drain(self, request: Json) -> Json:
        return await self._remove(request, channel.FOREVER_MS)

    async def _remove(self, request: Json, drain_ms: int) -> Json:
        """Removes by name or by listener; connections have ``drain_ms``."""
        publish = _text(request, "publish")

        def is_meant(spec: Spec) -> bool:
            return publish in {spec.name, spec.key, spec.mapping.listener} and publish != ""

        def without(config: Config, extra: list[Spec]) -> tuple[Config, list[Spec]]:
            if not any(is_meant(spec) for spec in (*config.specs, *extra)):
                raise ApiError(f"nothing is forwarded from {publish!r}; see portproxy status")
            specs = tuple(spec for spec in config.specs if not is_meant(spec))
            return replace(config, specs=specs), [spec for spec in extra if not is_meant(spec)]

        change = await self.service.change(without, drain_ms)
        return {"removed": change.removed}

    async def _reload(self, _: Json) -> Json:
        return asdict(await self.service.reload())


def _text(request: Json, name: str) -> str:
    """A text of a request.  Raises ApiError, or KeyError if it is not there."""
    value = request[name]
    if not isinstance(value, str):
        raise ApiError(f"{request['do']}: {name} is a text")
    return value


def _number(request: Json, name: str) -> int:
    """A number of a request, not below 0.  Raises ApiError, or KeyError if it is not there."""
    value = request[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_NUMBER:
        raise ApiError(f"{request['do']}: {name} is a whole number from 0 on")
    return value
