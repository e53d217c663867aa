"""What one mapping is to be: where it listens, where it leads, and with which settings.

Pure.  ``Spec.line`` is what the relay is told; two specs with the same ``key`` have the same
listener, so that one can take the place of the other without closing it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote

from portproxy.mapping import ANY_ADDRESS, Mapping, endpoint, parse_all
from portproxy.settings import DEFAULTS, NEED_NET_ADMIN, SettingError, milliseconds, text_of

MODES = ("user", "auto", "nft")
# What the control plane itself does with a mapping; the rest is the relay's.
OWN = ("name", "mode", "check", "partial", "container_pid", "loopback")


@dataclass(frozen=True)
class Spec:
    """One mapping.

    ``origin`` says where it was asked for ("ports.toml:12", "-p"); ``mode`` is how it is
    forwarded, ``check_ms`` how often its backends are tried (0: never), ``partial`` whether ports
    that cannot be opened are left out, ``container_pid`` whose address replaces the host's,
    ``loopback`` whether the kernel forwards connections to 127.0.0.0/8, too.
    """

    mapping: Mapping
    settings: tuple[tuple[str, str], ...] = ()
    origin: str = "-p"
    name: str = ""
    mode: str = "user"
    check_ms: int = 0
    partial: bool = False
    container_pid: str = ""
    loopback: bool = False
    address: str = ""  # what the host has been resolved to

    @property
    def key(self) -> str:
        """What identifies the listener."""
        return f"{self.mapping.protocol}/{self.mapping.listener}"

    @property
    def title(self) -> str:
        """How people are told of it."""
        return self.name or f"{self.key}"

    @property
    def needs_net_admin(self) -> bool:
        """Whether the relay must keep CAP_NET_ADMIN for it."""
        return any(
            (name in NEED_NET_ADMIN and value not in {"false", "0"})
            or (name, value) == ("deny_with", "drop")
            for name, value in self.settings
        )

    def backends(self) -> list[str]:
        """Every place that it leads to, the first one first, as ADDRESS:PORT or a path."""
        first = self.mapping.unix or endpoint(self.address, self.mapping.host_port)
        more = [value for name, value in self.settings if name == "backends"]
        return [first, *(more[0].split(",") if more else [])]

    def line(self, fds: dict[str, int]) -> str:
        """The relay's line; ``fds`` says which descriptor goes with it for which purpose."""
        mapping = self.mapping
        bind, port = mapping.bind, str(mapping.port)
        if mapping.listen_unix or mapping.listen_fd:
            bind, port = ANY_ADDRESS, "0"
        elif mapping.ports > 1:
            port = f"{mapping.port}-{mapping.port + mapping.ports - 1}"
        target = mapping.unix or self.address
        to = "0" if mapping.unix else str(mapping.host_port)
        if mapping.spread:
            to = f"{mapping.host_port}-{mapping.host_port + mapping.ports - 1}"
        words = [mapping.protocol, bind, port, target, to]
        words += [f"{name}={value}" for name, value in self.settings]
        words += ["partial=true"] if self.partial else []
        words += [f"{purpose}={place}" for purpose, place in fds.items()]
        words.append(f"label={quote(self.key, safe='/:@!.,-_[]')}")
        return " ".join(words)

    def resolved(self, address: str) -> Spec:
        """The same with the host's address."""
        return replace(self, address=address)


def make(publish: str, options: dict[str, object], origin: str) -> list[Spec]:
    """The specs (two for ``/both``) of one text and its options.

    Raises MappingError or SettingError, whose message does not name the origin.
    """
    own = {name: options[name] for name in OWN if name in options}
    settings = dict(DEFAULTS)
    for name, value in options.items():
        if name not in OWN:
            settings[name] = text_of(name, value)
    mode = str(own.get("mode", "user"))
    if mode not in MODES:
        raise SettingError(f"mode: {mode!r} is not {', '.join(MODES[:-1])} or {MODES[-1]}")
    try:
        check_ms = milliseconds(str(own.get("check", "0")))
    except SettingError as error:
        raise SettingError(f"check: {error}") from None
    for flag in ("partial", "loopback"):
        if not isinstance(own.get(flag, False), bool):
            raise SettingError(f"{flag}: {own[flag]!r} is not true or false")
    name = str(own.get("name", ""))
    if not name.isprintable():
        raise SettingError(f"name: {name!r} has something in it that cannot be printed")
    pid = str(own.get("container_pid", ""))
    process = pid.partition(":")[0]
    if pid and not process.isdecimal() and not process.startswith("/"):
        raise SettingError(f"container_pid: {pid!r} is not PID[:INTERFACE] or /FILE[:INTERFACE]")
    return [
        Spec(
            mapping,
            tuple(sorted(settings.items())),
            origin,
            name,
            mode,
            check_ms,
            bool(own.get("partial", False)),
            pid,
            bool(own.get("loopback", False)),
        )
        for mapping in parse_all(publish)
    ]
