"""How people are told of a mapping."""

from __future__ import annotations

from typing import Any

from portproxy.mapping import endpoint
from portproxy.served import Active


def title(active: Active | None, record: dict[str, Any]) -> str:
    """Its name, or where it listens; ``record`` is the relay's."""
    if active is not None and active.spec is not None:
        return active.spec.title
    return f"{record['proto']}/{endpoint(record['host'], record['port'])}"


def where(active: Active) -> str:
    """``127.0.0.1:8080 -> 10.0.0.2:80`` with the port that the kernel has chosen."""
    if active.spec is None:
        return active.line
    mapping = active.spec.mapping
    listener = mapping.listener
    if mapping.port == 0 and not (mapping.listen_unix or mapping.listen_fd):
        listener = endpoint(mapping.bind, active.port)
    suffix = "" if mapping.protocol == "tcp" else f"/{mapping.protocol}"
    target = mapping.target
    if active.spec.container_pid:
        target = endpoint(active.spec.address, mapping.host_port)
    return f"{listener} -> {target}{suffix}"
