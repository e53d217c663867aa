"""Docker's daemon.json with and without our runtime: text in, text out, no file is touched.

Members are added and removed in the text, so that the rest keeps its order and layout.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, NamedTuple

from pyshim.cli.containerd_config import RUNTIME_NAME, RUNTIME_TYPE, ConfigError, Edit

FIRST_WITH_FOREIGN_SHIMS, FIRST_WITH_RUNTIME_TYPE = 23, 24
OURS = {"runtimeType": RUNTIME_TYPE}
MARK_OF_ORDER = "\ufeff"
BLANKS = " \t\r\n"
STEP = "  "


class Member(NamedTuple):
    """Where a member of an object stands in the text."""

    key: str
    start: int
    value_start: int
    end: int


def install(text: str | None, major: int, *, default: bool = False) -> Edit:
    """``text`` with our runtime, as dockerd of the version ``major`` takes it.

    With ``default`` containers get it that ask for none.  Raises ConfigError for what is no JSON
    object, and for a default that this version cannot have.
    """
    if major < FIRST_WITH_FOREIGN_SHIMS:
        if default:
            raise ConfigError(
                f"Docker {major} takes no other shim as its default; --replace-runc-shim gives ours"
                " the name of its own"
            )
        return Edit(text, f"Docker {major} takes no other shim; see --replace-runc-shim")
    if text is not None and text.startswith(MARK_OF_ORDER):
        return _behind_mark(install(text[1:], major, default=default))
    said = ""
    named = RUNTIME_TYPE
    changed = text if text is not None and text.strip(BLANKS) else "{}"
    wanted = _parse(changed)
    if major >= FIRST_WITH_RUNTIME_TYPE:
        named = RUNTIME_NAME
        found = _object(wanted, "runtimes").get(RUNTIME_NAME, OURS)
        if found != OURS:
            said = f"has a runtime {RUNTIME_NAME} of another kind; left as it is"
        changed = _with_runtime(changed, wanted)
    else:
        said = f"Docker {major} needs nothing in it: docker run --runtime {RUNTIME_TYPE}"
    if default and wanted.get("default-runtime") != named:
        changed = _with_member(
            _without_member(changed, 0, "default-runtime"), 0, "default-runtime", named
        )
        wanted["default-runtime"] = named
    if changed == "{}":
        return Edit(text, said)
    assert json.loads(changed) == wanted
    return Edit(changed if changed.endswith("\n") or text else f"{changed}\n", said)


def uninstall(text: str, before: str | None) -> Edit:
    """``text`` without what is ours; ``before`` is what there was (None: unknown, or nothing).

    It becomes ``before`` again when nobody else has edited it.  Raises ConfigError for what is no
    JSON object.
    """
    if RUNTIME_NAME not in text:
        return Edit(text)  # nothing of ours, whatever it is
    if text.startswith(MARK_OF_ORDER):
        return _behind_mark(uninstall(text[1:], before and before.removeprefix(MARK_OF_ORDER)))
    for major in (FIRST_WITH_FOREIGN_SHIMS, FIRST_WITH_RUNTIME_TYPE):
        for default in (False, True):
            with contextlib.suppress(ConfigError):
                made = install(before, major, default=default).text
                if made == text and made != before:
                    return Edit(before)
    config = _parse(text)
    old: dict[str, Any] = {}
    with contextlib.suppress(ConfigError):
        old = _parse(before or "{}")
    runtimes = _object(config, "runtimes")
    if RUNTIME_NAME not in _object(old, "runtimes") and _is_ours(runtimes.get(RUNTIME_NAME)):
        if len(runtimes) == 1 and "runtimes" not in old:
            text = _without_member(text, 0, "runtimes")
        else:
            text = _without_member(text, _value_of(text, "runtimes"), RUNTIME_NAME)
    named = config.get("default-runtime")
    if named in (RUNTIME_NAME, RUNTIME_TYPE) and named != old.get("default-runtime"):
        text = _without_member(text, 0, "default-runtime")
        if "default-runtime" in old:
            text = _with_member(text, 0, "default-runtime", old["default-runtime"])
    return Edit(text)


def _behind_mark(edit: Edit) -> Edit:
    """An edit of a text that begins with a byte order mark, which dockerd skips too."""
    return edit._replace(text=MARK_OF_ORDER + (edit.text or ""))


def _is_ours(value: object) -> bool:
    return isinstance(value, dict) and value.get("runtimeType") == RUNTIME_TYPE


def _with_runtime(text: str, wanted: dict[str, Any]) -> str:
    """``text``, and what is ``wanted`` in it, with our runtime when there is none of its name."""
    runtimes = wanted.setdefault("runtimes", {})
    if RUNTIME_NAME in runtimes:
        return text
    runtimes[RUNTIME_NAME] = OURS
    if runtimes == {RUNTIME_NAME: OURS} and "runtimes" not in json.loads(text):
        return _with_member(text, 0, "runtimes", runtimes)
    return _with_member(text, _value_of(text, "runtimes"), RUNTIME_NAME, OURS)


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"it is no valid JSON: {error}; correct it first") from None
    if not isinstance(config, dict):
        raise ConfigError("it is no JSON object; correct it first")
    _object(config, "runtimes")
    return config


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"its {key!r} is no JSON object; correct it first")
    return found


# --- The text of an object -----------------------------------------------------------------------


def _members(text: str, at: int) -> tuple[list[Member], int, int]:
    """The members of the first object at or after ``at``, and where its braces stand."""
    decoder = json.JSONDecoder()
    opened = _skip(text, at)
    found: list[Member] = []
    at = _skip(text, opened + 1)
    while text[at] != "}":
        key, after = decoder.raw_decode(text, at)
        value_start = _skip(text, _skip(text, after) + 1)
        _, end = decoder.raw_decode(text, value_start)
        found.append(Member(key, at, value_start, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, opened, at


def _skip(text: str, at: int) -> int:
    """The first place from ``at`` on that is no blank."""
    while at < len(text) and text[at] in BLANKS:
        at += 1
    return at


def _value_of(text: str, key: str) -> int:
    """Where the value of the outer object's ``key`` begins: the last one, as parsers have it."""
    return [m.value_start for m in _members(text, 0)[0] if m.key == key][-1]


def _with_member(text: str, at: int, key: str, value: object) -> str:
    """``text`` with a member added to the object at ``at``, laid out as the one above it."""
    found, opened, closed = _members(text, at)
    if not found:
        member = f"{json.dumps(key)}: {json.dumps(value)}"
        if (opened, closed) == (0, 1):
            member = json.dumps({key: value}, indent=STEP)[1:-1]
        return text[: opened + 1] + member + text[opened + 1 :]
    last = found[-1]
    gap = text[len(text[: last.start].rstrip(BLANKS)) : last.start]
    step = re.match(r"\s*{\s*?\n([ \t]+)", text)
    indent = (step[1] if step else STEP) if "\n" in gap else None
    dumped = json.dumps(value, indent=indent).replace("\n", f"\n{gap.rpartition(chr(10))[2]}")
    return f"{text[: last.end]},{gap}{json.dumps(key)}: {dumped}{text[last.end :]}"


def _without_member(text: str, at: int, key: str) -> str:
    """``text`` without the member ``key`` of the object at ``at``."""
    found, opened, closed = _members(text, at)
    for number, member in enumerate(found):
        if member.key == key:
            if len(found) == 1:
                start, end = opened + 1, closed
            elif number:
                start, end = found[number - 1].end, member.end
            else:
                start, end = member.start, found[1].start
            return text[:start] + text[end:]
    return text
