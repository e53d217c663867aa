"""Reads ``portproxy --config FILE.toml``; what is wrong with it is told with the file and line.

Pure but for reading the file.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from portproxy.mapping import LAST_PORT, MappingError
from portproxy.settings import SettingError, milliseconds
from portproxy.spec import Spec, make

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

TABLE = re.compile(r"\s*\[\[?\s*([A-Za-z_]+)\s*\]\]?\s*(?:#.*)?")
KEY = re.compile(r"\s*(?:(defaults)\s*\.\s*)?[\"']?([A-Za-z_0-9-]+)[\"']?\s*=")
SYNTAX = re.compile(r"\(at line (\d+), column \d+\)")
TOP = (
    "user",
    "metrics",
    "access_log",
    "log_format",
    "log_sample",
    "drain",
    "exit_on_idle",
    "workers",
    "seccomp",
    "ready",
)
FORMATS = ("text", "json")
TIMES = {"drain": "drain_ms", "exit_on_idle": "exit_idle_ms"}
MOST_WORKERS = 64
# Asked once: a file that says nothing of workers means the same when it is read again.
USUAL_WORKERS = min(len(os.sched_getaffinity(0)), 4)
ENDPOINT = re.compile(r"/[!-~]{1,105}|(?:[A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class ConfigError(ValueError):
    """The file is wrong; the message is one line, ``FILE:LINE: reason``."""


@dataclass(frozen=True)
class Config:
    """What a file asks for.

    ``user``: as whom the data plane runs; ``metrics``: ADDRESS:PORT or a path, empty for none;
    ``access_log``: a path or ``-``, empty for none, of which one in ``log_sample`` connections is
    written in ``log_format``; ``drain_ms``: how long connections may outlive SIGTERM or their
    mapping; ``exit_idle_ms``: how long nobody may have been there before the service ends, 0 for
    ever; ``workers``: how many processes the data plane is; ``ready``: whether backends count for
    readiness; ``lines``: where in the file the settings before the tables stand.
    """

    specs: tuple[Spec, ...] = ()
    user: str = "nobody"
    metrics: str = ""
    access_log: str = ""
    log_format: str = "text"
    log_sample: int = 1
    drain_ms: int = 30_000
    exit_idle_ms: int = 0
    workers: int = USUAL_WORKERS
    seccomp: bool = True
    ready: bool = False
    lines: dict[str, int] = field(default_factory=dict, compare=False)


@dataclass
class _Lines:
    """Where tables and keys of a TOML text are, which tomllib does not say."""

    name: str
    places: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        seen: Counter[str] = Counter()
        table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if header := TABLE.fullmatch(line):
                table = header.group(1)
                seen[table] += 1
                self.places.setdefault((table, seen[table] - 1, ""), number)
            elif key := KEY.match(line):
                place = (key.group(1) or table, max(seen[table] - 1, 0), key.group(2))
                self.places.setdefault(place, number)

    def wrong(self, table: str, index: int, key: str, reason: object) -> ConfigError:
        # The last one is a table that is written as a value: mapping = [{ ... }].
        for place in ((table, index, key), (table, index, ""), ("", 0, table)):
            if place in self.places:
                return ConfigError(f"{self.name}:{self.places[place]}: {reason}")
        return ConfigError(f"{self.name}:1: {reason}")


def is_endpoint(text: str) -> bool:
    """Whether it is where metrics can be: empty, a path, or ADDRESS:PORT."""
    match = ENDPOINT.fullmatch(text)
    return not text or (match is not None and (not match[1] or int(match[1]) <= LAST_PORT))


def is_workers(value: object) -> bool:
    """Whether a data plane can have so many workers."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return 1 <= value <= MOST_WORKERS


def load(path: str) -> Config:
    """Reads a file.  Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path}:1: is not UTF-8 text") from None
    return read(text, path)


def read(text: str, name: str) -> Config:
    """Reads the text of the file ``name``.  Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        match = SYNTAX.search(reason)
        line = match.group(1) if match else str(text.count("\n") + 1)
        raise ConfigError(f"{name}:{line}: {reason.splitlines()[0]}") from None
    lines = _Lines(name)
    lines.note(text)
    defaults = data.pop("defaults", {})
    tables = data.pop("mapping", [])
    if not isinstance(defaults, dict) or not isinstance(tables, list):
        raise lines.wrong("mapping", 0, "", "the tables are [defaults] and [[mapping]]")
    specs: list[Spec] = []
    seen: dict[str, Spec] = {}
    for index, table in enumerate(tables):
        for spec in _mapping(lines, index, table, defaults):
            if spec.key in seen and not spec.key.endswith(":0"):
                reason = f"{spec.key} is already forwarded by {seen[spec.key].origin}"
                raise lines.wrong("mapping", index, "publish", reason)
            seen[spec.key] = spec
            specs.append(spec)
    return _top(lines, data, tuple(specs))


def _mapping(lines: _Lines, index: int, table: object, defaults: dict[str, object]) -> list[Spec]:
    """The specs of one ``[[mapping]]``."""
    if not isinstance(table, dict) or not isinstance(table.get("publish"), str):
        raise lines.wrong(
            "mapping", index, "publish", 'a mapping needs publish = "8080:10.0.0.2:80"'
        )
    options = {key: value for key, value in table.items() if key != "publish"}
    # One at a time first, so that the line is known of the one that is wrong.
    for place, some in (("defaults", defaults), ("mapping", options)):
        for key, value in some.items():
            try:
                make("1:127.0.0.1:1", {key: value}, "")
            except (MappingError, SettingError) as error:
                raise lines.wrong(place, index if some is options else 0, key, error) from None
    line = lines.places.get(("mapping", index, ""), 1)
    try:
        return make(table["publish"], {**defaults, **options}, f"{lines.name}:{line}")
    except (MappingError, SettingError) as error:
        raise lines.wrong("mapping", index, "publish", error) from None


def _expected(key: str, value: object) -> str:
    """What a setting before the tables has to be; empty if ``value`` is that."""
    if key in {"seccomp", "ready"}:
        return "" if isinstance(value, bool) else "true or false"
    if key == "workers":
        return "" if is_workers(value) else f"a number from 1 to {MOST_WORKERS}"
    if key == "log_sample":
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return "" if good else "a number from 1 on"
    wrong = ""
    if not isinstance(value, str):
        wrong = "a text"
    elif key == "log_format" and value not in FORMATS:
        wrong = "text or json"
    elif key == "metrics" and not is_endpoint(value):
        wrong = "ADDRESS:PORT or a path"
    elif key in {"user", "access_log"} and not value.isprintable():
        wrong = "a text that can be printed"
    return wrong


def _top(lines: _Lines, data: dict[str, object], specs: tuple[Spec, ...]) -> Config:
    """The settings that stand before all tables."""
    values: dict[str, object] = {}
    for key, value in data.items():
        if key not in TOP:
            raise lines.wrong("", 0, key, f"there is no setting {key!r} before the tables")
        expected = _expected(key, value)
        if expected:
            raise lines.wrong("", 0, key, f"{key}: {value!r} is not {expected}")
        if key in TIMES:
            try:
                values[TIMES[key]] = milliseconds(str(value))
            except SettingError as error:
                raise lines.wrong("", 0, key, f"{key}: {error}") from None
        else:
            values[key] = value
    values["lines"] = {key: lines.places.get(("", 0, key), 1) for key in data}
    return Config(specs, **values)  # type: ignore[arg-type]
