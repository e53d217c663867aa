"""The settings of a mapping that its data plane understands (docs/relay.md), checked before use.

Pure.  The relay checks them too; it cannot say in which line of which file they stood.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

DURATION = re.compile(r"[0-9]{1,9}(ms|s|m|h)?")
AMOUNT = re.compile(r"[0-9]{1,9}[kKMG]?")
BACKEND = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}|[/@][!-+\--~]{1,105}")
INTERFACE = re.compile(r"[!-~]{1,15}")
CONGESTION = re.compile(r"[a-z0-9_]{1,15}")
UNIT_MS = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000}

# What the tool does otherwise than docker-proxy, which the relay imitates.
DEFAULTS = {"reset": "propagate", "connect_timeout": "10s", "half_close_timeout": "1h"}


class SettingError(ValueError):
    """A setting does not exist or cannot have this value; the message is one line."""


def text_of(name: str, value: object) -> str:
    """The relay's spelling of a setting's ``value``, which TOML or a command line gave.

    Raises SettingError.
    """
    check = CHECKS.get(name)
    if check is None:
        raise SettingError(f"there is no setting {name!r}")
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list):
        text = ",".join(str(part) for part in value)
    else:
        text = str(value)
    if not check(text):
        raise SettingError(f"{name}: {value!r} is not {EXPECTED[name]}")
    return text


def milliseconds(text: str) -> int:
    """A time: ``500ms``, ``10s``, ``5m``, ``1h`` or ``10`` (seconds).  Raises SettingError."""
    match = DURATION.fullmatch(text)
    if match is None:
        raise SettingError(f"{text!r} is not a time such as 500ms, 10s, 5m or 1h")
    unit = match.group(1) or ""
    return int(text[: len(text) - len(unit)]) * UNIT_MS[unit]


def _is_duration(text: str) -> bool:
    return DURATION.fullmatch(text) is not None


def _is_amount(text: str) -> bool:
    return AMOUNT.fullmatch(text) is not None


def _is_flag(text: str) -> bool:
    return text in {"true", "false"}


def _is_address(text: str) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_networks(text: str) -> bool:
    try:
        for word in text.split(","):
            bare = word.removeprefix("!")
            if bare != "all":
                ipaddress.ip_network(bare, strict=False)
    except ValueError:
        return False
    return True


def _is_backends(text: str) -> bool:
    words = text.split(",")
    return len(words) < 8 and all(BACKEND.fullmatch(word) for word in words)


def _is_interface(text: str) -> bool:
    return INTERFACE.fullmatch(text) is not None


def _is_congestion_control(text: str) -> bool:
    return CONGESTION.fullmatch(text) is not None


def _one_of(*words: str) -> Callable[[str], bool]:
    return lambda text: text in words


_KINDS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    (
        "connect_timeout connect_retry half_close_timeout idle_timeout user_timeout udp_timeout "
        "udp_oneshot_timeout",
        _is_duration,
        "a time such as 500ms, 10s, 5m or 1h",
    ),
    (
        "keepalive mark tos max_connections max_per_client client_prefix_v4 client_prefix_v6 "
        "connections_per_second bytes_per_second bytes_per_second_each rcvbuf udp_sessions",
        _is_amount,
        "a number, or one with k, M or G",
    ),
    ("nodelay fast_open transparent", _is_flag, "true or false"),
    ("source", _is_address, "an IP address"),
    ("access proxy_in", _is_networks, "a list of [!]ADDRESS[/BITS] or [!]all"),
    ("backends", _is_backends, "a list of up to 7 of ADDRESS:PORT or a socket's path"),
    ("interface", _is_interface, "the name of an interface"),
    ("congestion", _is_congestion_control, "the name of a congestion control such as cubic"),
    ("reset", _one_of("propagate", "fin"), "propagate or fin"),
    ("refuse", _one_of("rst", "fin"), "rst or fin"),
    ("deny_with", _one_of("rst", "drop"), "rst or drop"),
    ("proxy_out", _one_of("off", "v1", "v2"), "off, v1 or v2"),
    (
        "balance",
        _one_of("first", "round-robin", "least", "source"),
        "first, round-robin, least or source",
    ),
)
CHECKS = {name: check for names, check, _ in _KINDS for name in names.split()}
EXPECTED = {name: expected for names, _, expected in _KINDS for name in names.split()}
# Without this capability the relay cannot do what these ask for.
NEED_NET_ADMIN = {"mark", "transparent"}
