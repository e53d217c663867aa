"""What the value of stdin, stdout or stderr names: a path as it is, or a URL.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from pyshim.ttrpc.status import Code, StatusError


@dataclass(frozen=True)
class Target:
    """``scheme`` is "" for a plain path; ``query`` holds a URL's parameters in their order."""

    scheme: str
    path: str
    query: tuple[tuple[str, str], ...] = ()


def parse(value: str) -> Target:
    """Reads ``value`` as containerd's shim does (Go's url.Parse): only a URL is decoded.

    Raises StatusError INVALID_ARGUMENT for what names no absolute path.
    """
    scheme, colon, rest = value.partition("://")
    if not colon or "/" in scheme:
        return Target("", _checked(value, value))
    where, _, query = rest.partition("#")[0].partition("?")
    path = unquote(where, errors="surrogateescape")
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    return Target(scheme.lower(), _checked(path, value), tuple(pairs))


def scheme_of(value: str) -> str:
    """The scheme alone, "" for a plain path and for nothing."""
    scheme, colon, _ = value.partition("://")
    return scheme.lower() if colon and "/" not in scheme else ""


def _checked(path: str, value: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise StatusError(Code.INVALID_ARGUMENT, f"{value!r}: not an absolute path")
    return path
