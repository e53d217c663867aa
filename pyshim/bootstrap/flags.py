"""The command line that containerd gives a shim, in the manner of Go's flag package.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyshim.names import MAX_SHOWN_CHARS, is_name

TEXTS = ("namespace", "id", "address", "publish-binary", "bundle", "socket", "debug-socket")
SWITCHES = {
    "debug": "debug",
    "info": "info",
    "v": "version",
    "version": "version",
    "h": "help",
    "help": "help",
}
ACTIONS = ("start", "delete")
TRUE = ("1", "t", "T", "true", "TRUE", "True")
FALSE = ("0", "f", "F", "false", "FALSE", "False")

USAGE = """\
usage: containerd-shim-pyshim-v2 [flags] start|delete
  -namespace NAME        the containerd namespace (required)
  -id ID                 the container (required)
  -address SOCKET        containerd's gRPC socket
  -publish-binary PATH   containerd's own binary
  -bundle FOLDER         the container's bundle; default: the working directory
  -debug                 more in the log
  -info                  describe this runtime (protobuf) and exit
  -v, -version           print the version and exit
"""


class FlagError(ValueError):
    """A command line that cannot be obeyed; the message says why."""


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug_socket: str = ""
    debug: bool = False
    info: bool = False
    version: bool = False
    help: bool = False
    action: str = ""


def parse(arguments: Sequence[str]) -> Flags:
    """Reads ``-x value``, ``-x=value`` and ``--x`` up to the first other argument, the action."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "--":
            break
        name, equals, value = flag[2 if flag.startswith("--") else 1 :].partition("=")
        if name in SWITCHES:
            found[SWITCHES[name]] = truth(name, value) if equals else True
        elif name in TEXTS:
            if not equals and not rest:
                raise FlagError(f"flag needs an argument: -{name}; see -h")
            found[name.replace("-", "_")] = value if equals else rest.pop(0)
        else:
            raise FlagError(f"flag provided but not defined: -{name}; see -h")
    flags = Flags(action=rest[0] if rest else "", **found)
    check(flags, rest)
    return flags


def truth(name: str, value: str) -> bool:
    """A boolean as Go reads it."""
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise FlagError(f"invalid boolean value {value!r} for -{name}; give true or false")


def check(flags: Flags, rest: Sequence[str]) -> None:
    """Raises FlagError unless there is enough to act on."""
    if flags.info or flags.version or flags.help:
        return
    if not flags.action:
        raise FlagError("no action given; give start or delete, or see -h")
    if flags.action not in ACTIONS:
        raise FlagError(f"unknown action {flags.action!r}; give start or delete, or see -h")
    if len(rest) > 1:
        raise FlagError(f"unexpected argument {rest[1]!r} after {flags.action}; see -h")
    for name, value in (("namespace", flags.namespace), ("id", flags.id)):
        if not value:
            raise FlagError(f"-{name} is missing; give it before {flags.action}, or see -h")
        if not is_name(value):
            shown = value[:MAX_SHOWN_CHARS]
            raise FlagError(f"-{name} {shown!r} is no valid name; it must not be a path")
