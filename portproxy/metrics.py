"""The counters of the data plane for Prometheus, and readiness, over HTTP.

``/metrics`` asks the relay at the time of the question; ``/ready`` and ``/live`` are for
orchestrators.  prometheus-client is imported when the first listener is made, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MOST_LABELLED = 500  # mappings with samples of their own; the rest is one sample together
REQUEST_BOUND_S = 5.0
MOST_REQUEST_BYTES = 8192
OTHERS = "others"
COUNTERS = {
    "accepted": "Connections accepted.",
    "denied": "Connections and datagram sessions that the access rules refused.",
    "limited": "Connections that a limit refused.",
    "failed": "Attempts to reach a backend that failed.",
    "bad_headers": "PROXY headers that were wrong or late.",
    "shed": "Connections reset because descriptors had run out.",
    "pauses": "Times that accepting paused because descriptors had run out.",
    "up": "Bytes from clients.",
    "down": "Bytes from backends.",
    "spliced": "Bytes that went through a pipe and were not copied.",
    "evicted": "Datagram sessions that made room for others.",
    "datagrams_lost": "Datagrams that could not be sent on.",
    "datagrams_overflowed": "Datagrams that the kernel had no room for.",
    "pending_errors": "ICMP errors that earlier datagrams had left; what they met is sent again.",
    "other_ports": "Transparent connections with the client's address but another port.",
    "other_addresses": "Transparent connections that came from an address of this host.",
}
GAUGES = {
    "connections": "Connections that are open.",
    "sessions": "Datagram sessions that are open.",
    "open": "Ports that are open.",
}
PROCESS = {
    "links": "Connections of the whole process.",
    "pipes": "Pipes of the whole process.",
    "spare_pipes": "Pipes that nobody uses now.",
    "events_lost": "Reports of ended connections that nobody took in time.",
}


@dataclass(frozen=True)
class Reading:
    """One look at the relay: its mappings with their titles, its process, and our own counters."""

    mappings: list[tuple[str, dict[str, Any]]]
    process: dict[str, Any]
    own: dict[str, int]


def _folded(mappings: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """At most MOST_LABELLED and one for all others; those with one title are one."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for at, (title, record) in enumerate(mappings):
        name = title if at < MOST_LABELLED else OTHERS
        known = sums.setdefault((name, record["proto"]), {"proto": record["proto"]})
        for key in (*COUNTERS, *GAUGES, "dial_ms"):
            known[key] = known.get(key, 0) + record[key]
        before = known.get("dials", [0] * len(record["dials"]))
        known["dials"] = [a + b for a, b in zip(before, record["dials"], strict=True)]
    return [(name, record) for (name, _), record in sums.items()]


def exposition(reading: Reading) -> bytes:
    """The text that Prometheus scrapes."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

    folded = _folded(reading.mappings)

    class Source:
        """What the registry asks for samples."""

        def collect(self) -> Iterator[Metric]:
            for key, text in COUNTERS.items():
                family = CounterMetricFamily(f"portproxy_{key}", text, labels=["mapping", "proto"])
                for title, record in folded:
                    family.add_metric([title, record["proto"]], record[key])
                yield family
            for key, text in GAUGES.items():
                gauge = GaugeMetricFamily(f"portproxy_{key}", text, labels=["mapping", "proto"])
                for title, record in folded:
                    gauge.add_metric([title, record["proto"]], record[key])
                yield gauge
            dial = HistogramMetricFamily(
                "portproxy_dial_seconds", "Time to reach a backend.", labels=["mapping", "proto"]
            )
            for title, record in folded:
                dial.add_metric(
                    [title, record["proto"]], _buckets(record["dials"]), record["dial_ms"] / 1000
                )
            yield dial
            for key, text in PROCESS.items():
                yield GaugeMetricFamily(f"portproxy_process_{key}", text, reading.process[key])
            for key, count in reading.own.items():
                yield CounterMetricFamily(f"portproxy_{key}", f"{key} of the control plane.", count)

    registry = CollectorRegistry()
    registry.register(Source())
    return bytes(generate_latest(registry))


def _buckets(counts: Iterable[int]) -> list[tuple[str, float]]:
    """Cumulative buckets of classes that end at 1, 2, 4 … ms, the last one nowhere."""
    total = 0
    made: list[tuple[str, float]] = []
    counts = list(counts)
    for at, count in enumerate(counts):
        total += count
        bound = "+Inf" if at == len(counts) - 1 else str((1 << at) / 1000)
        made.append((bound, float(total)))
    return made


@dataclass
class Endpoint:
    """Answers HTTP; ``read`` makes a Reading, ``ready`` says why it is not (empty if it is)."""

    read: Callable[[], Awaitable[Reading]]
    ready: Callable[[], Awaitable[str]]
    server: asyncio.AbstractServer | None = None
    path: str = ""

    async def listen(self, where: str) -> None:
        """Listens on ADDRESS:PORT or at a path.  Raises OSError or ValueError."""
        if where.startswith("/"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where)
            self.server = await asyncio.start_unix_server(self._serve, where)
            self.path = where
            return
        host, _, port = where.rpartition(":")
        self.server = await asyncio.start_server(self._serve, host.strip("[]"), int(port))

    def close(self) -> None:
        """Stops listening."""
        if self.server is not None:
            self.server.close()
            self.server = None
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError
        ):
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_BOUND_S)
            words = raw[:MOST_REQUEST_BYTES].split(b"\r\n", 1)[0].decode("latin-1").split()
            status, kind, body = await self._answer(words)
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await asyncio.wait_for(writer.drain(), REQUEST_BOUND_S)
        writer.close()

    async def _answer(self, words: list[str]) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        if len(words) != 3 or words[0] not in {"GET", "HEAD"}:
            return "405 Method Not Allowed", plain, b"only GET\n"
        path = words[1].partition("?")[0]
        if path == "/metrics":
            try:
                text = exposition(await self.read())
            except Exception as error:
                return "503 Service Unavailable", plain, f"{error}\n".encode()
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", text
        if path == "/live":
            return "200 OK", plain, b"live\n"
        if path == "/ready":
            reason = await self.ready()
            status = "503 Service Unavailable" if reason else "200 OK"
            return status, plain, f"{reason or 'ready'}\n".encode()
        return "404 Not Found", plain, b"there are /metrics, /ready and /live\n"
