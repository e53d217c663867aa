"""containerd's config.toml with and without our runtime: text in, text out, no file is touched.

What `install` adds is one block between two marks at the end; `uninstall` takes exactly that away.
Every other byte stays.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUNTIME_NAME = "pyshim"
RUNTIME_TYPE = "io.containerd.pyshim.v2"
BEGIN = "# >>> pyshim: `pyshim install` wrote this, `pyshim uninstall` removes it"
END = "# <<< pyshim"
MADE = "# Made by `pyshim install`.\nversion = {version}\n"
OLDEST_VERSION, FIRST_WITH_NEW_NAMES, NEWEST_VERSION = 2, 3, 4
OLD_PLUGIN, NEW_PLUGIN = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
CRI_NAMES = ("cri", OLD_PLUGIN, NEW_PLUGIN)
_BLOCK = re.compile(rf"\n?^{re.escape(BEGIN)}\r?\n(.*?)^{re.escape(END)}\r?\n?", re.M | re.S)


class ConfigError(ValueError):
    """Why a configuration cannot be changed, and what to do about it; without the file's name."""


class Edit(NamedTuple):
    """What a file should hold (None: it should not be there), and what there is to say of it."""

    text: str | None
    said: str = ""


def install(text: str | None, made_version: int = OLDEST_VERSION) -> Edit:
    """``text`` with our runtime; for an absent file, a new one of the version ``made_version``.

    Raises ConfigError for what is no TOML, has a version that has no place for us, or cannot be
    extended at its end.
    """
    if text is None:
        made = MADE.format(version=made_version)
        return Edit(made + _framed(_body(made_version, has_runtimes=False)))
    rest = _without_block(text)
    config = _parse(rest)
    version = _version(config)
    if version < OLDEST_VERSION:
        return _of_version_1(config, text)
    plugin = _plugin(version)
    runtimes = _table(config, "plugins", plugin, "containerd", "runtimes")
    if RUNTIME_NAME in runtimes:
        said = f"has a runtime {RUNTIME_NAME} that `pyshim install` did not write; left as it is"
        return Edit(text, said)
    body = _body(version, has_runtimes=bool(runtimes))
    found = _BLOCK.search(text)
    if found is not None and found[1].replace("\r\n", "\n") == body:
        return Edit(text)
    changed = rest + _framed(body)
    try:
        tomllib.loads(changed)
    except tomllib.TOMLDecodeError:
        lines = "; ".join(line for line in body.splitlines() if not line.startswith("#"))
        raise ConfigError(
            "its plugins stand in an inline table that nothing can be added to; add by hand:"
            f" {lines}"
        ) from None
    return Edit(changed)


def uninstall(text: str) -> Edit:
    """``text`` without our block; no file at all when we had made it and nobody has added to it.

    Raises ConfigError when the block has lost its end.
    """
    rest = _without_block(text)
    if rest == text:
        return Edit(text)
    made = [MADE.format(version=v) for v in range(OLDEST_VERSION, NEWEST_VERSION + 1)]
    return Edit(None if rest in made else rest)


def _of_version_1(config: dict[str, Any], text: str) -> Edit:
    """Nothing, when no CRI plugin would read it, as in the file of Docker's own packages."""
    disabled = config.get("disabled_plugins", [])
    if any(name in disabled for name in CRI_NAMES):
        return Edit(text, "its CRI plugin is disabled, and others find the shim by its name")
    raise ConfigError(
        "it is of version 1, which has no place for us; `containerd config migrate` prints it in a"
        " newer one; --no-containerd leaves it alone, which is enough for ctr and Docker"
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"it is no valid TOML: {error}; correct it first") from None
    return config


def _version(config: dict[str, Any]) -> int:
    """The version of the format; a file that does not say is of the first."""
    version = config.get("version", 1)
    if type(version) is not int or not 0 <= version <= NEWEST_VERSION:
        raise ConfigError(
            f"its version is {version!r}; known are 2 to {NEWEST_VERSION}; --no-containerd leaves"
            " it alone, and ctr and Docker need nothing in it"
        )
    return version


def _plugin(version: int) -> str:
    return NEW_PLUGIN if version >= FIRST_WITH_NEW_NAMES else OLD_PLUGIN


def _table(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """The table at a path of keys; {} when there is none.  Raises ConfigError when it is none."""
    table: Any = config
    for name in names:
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"its key {name!r} is no table; correct it first")
    assert isinstance(table, dict)
    return table


def _body(version: int, *, has_runtimes: bool) -> str:
    """The lines between the marks.

    containerd 1.x forgets its default, runc, as soon as a file names any runtime, and its CRI
    plugin does not start without it.
    """
    plugin = f"'{NEW_PLUGIN}'" if version >= FIRST_WITH_NEW_NAMES else f'"{OLD_PLUGIN}"'
    table = f"[plugins.{plugin}.containerd.runtimes."
    ours = f'{table}{RUNTIME_NAME}]\n  runtime_type = "{RUNTIME_TYPE}"\n'
    if has_runtimes:
        return ours
    default = "# The default, which goes when a file names any runtime.\n"
    return f'{ours}{default}{table}runc]\n  runtime_type = "io.containerd.runc.v2"\n'


def _framed(body: str) -> str:
    """The block, which begins with a line end: the text before it may have none."""
    return f"\n{BEGIN}\n{body}{END}\n"


def _without_block(text: str) -> str:
    found = _BLOCK.search(text)
    if found is None:
        if re.search(f"^{re.escape(BEGIN)}", text, re.M):
            raise ConfigError(f"the block that begins with {BEGIN!r} has lost its end; remove it")
        return text
    before, after = text[: found.start()], text[found.end() :]
    # Somebody has written on below: what stood above may have had no line end.
    joint = "\n" if before and after and not before.endswith("\n") else ""
    return before + joint + after
