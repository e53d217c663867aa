"""Docker's daemon.json with and without our runtime."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyshim.cli.containerd_config import ConfigError
from pyshim.cli.docker_config import install, uninstall

TYPE = "io.containerd.pyshim.v2"
OURS = {"runtimeType": TYPE}
USUAL = (
    '{\n  "log-driver": "local",\n  "runtimes": {\n    "crun": {"path": "/usr/bin/crun"}\n  }\n}\n'
)


def installed(text: str | None, major: int = 28, *, default: bool = False) -> str:
    """What the file holds after the installation."""
    found = install(text, major, default=default).text
    assert found is not None
    return found


def test_a_runtime_is_added_beside_others() -> None:
    text = installed(USUAL)
    assert json.loads(text)["runtimes"] == {"crun": {"path": "/usr/bin/crun"}, "pyshim": OURS}
    assert text.startswith(USUAL[: USUAL.index("\n  }\n}")])
    assert install(text, 28).text == text


@pytest.mark.parametrize("text", [None, "", "\n", "{}", "{ }\n", '{"a": 1}'])
def test_a_file_without_runtimes(text: str | None) -> None:
    found = json.loads(installed(text))
    assert found.pop("runtimes") == {"pyshim": OURS}
    assert found == json.loads(text.strip() or "{}" if text else "{}")
    assert uninstall(installed(text), text).text == text


def test_an_absent_file_is_made_to_be_read() -> None:
    assert installed(None) == json.dumps({"runtimes": {"pyshim": OURS}}, indent=2) + "\n"


@pytest.mark.parametrize(("major", "name"), [(23, TYPE), (24, "pyshim"), (29, "pyshim")])
def test_the_default(major: int, name: str) -> None:
    before = '{"default-runtime": "crun", "debug": true}'
    text = installed(before, major, default=True)
    assert json.loads(text)["default-runtime"] == name
    assert json.loads(text)["debug"] is True
    assert uninstall(text, before).text == before
    edited = text.replace("true", "false")
    left = uninstall(edited, before).text
    assert left is not None
    assert json.loads(left) == {"default-runtime": "crun", "debug": False}


def test_a_byte_order_mark_stays() -> None:
    text = '\ufeff{"log-driver": "json-file"}'
    changed = install(text, 24).text
    assert changed is not None and changed.startswith('\ufeff{"log-driver"')
    assert uninstall(changed, text).text == text
    assert uninstall(changed, None).text == text


@pytest.mark.parametrize("text", ["", "[1]", "{,}", "null", "\ufeff{}"])
def test_what_has_nothing_of_ours_is_left_as_it_is(text: str) -> None:
    assert uninstall(text, None).text == text


def test_docker_23_needs_nothing() -> None:
    edit = install(None, 23)
    assert edit.text is None
    assert f"--runtime {TYPE}" in edit.said
    assert install(USUAL, 23).text == USUAL


def test_docker_20_takes_a_name_alone() -> None:
    edit = install(USUAL, 20)
    assert edit.text == USUAL
    assert "--replace-runc-shim" in edit.said
    with pytest.raises(ConfigError, match="--replace-runc-shim"):
        install(None, 20, default=True)


def test_a_runtime_by_hand_is_left() -> None:
    text = '{"runtimes": {"pyshim": {"path": "/somewhere"}}}'
    edit = install(text, 28)
    assert edit.text == text
    assert "another kind" in edit.said
    assert uninstall(text, None).text == text


def test_edits_of_others_stay() -> None:
    text = installed(USUAL).replace('"local"', '"journald"')
    left = uninstall(text, USUAL).text
    assert left == USUAL.replace('"local"', '"journald"')
    ours_edited = installed(None).replace("{", '{"debug": true, ', 1)
    left = uninstall(ours_edited, None).text
    assert left is not None
    assert json.loads(left) == {"debug": True}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1"),
        ("[]", "no JSON object"),
        ('{"runtimes": 1}', "'runtimes'"),
    ],
)
def test_what_cannot_be_changed(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        install(text, 28, default=True)
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "runtimes": st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
        "default-runtime": st.text(max_size=5),
        "a": VALUES,
        'ä\\"': VALUES,
    },
)
LAYOUTS = st.sampled_from([None, 0, 2, "\t"])
EDGES = st.text(" \t\r\n", max_size=3)


@settings(deadline=None)
@given(OBJECTS, LAYOUTS, EDGES, EDGES, st.sampled_from([23, 24]), st.booleans(), st.booleans())
def test_uninstall_undoes_install(
    config: dict[str, object],
    indent: int | str | None,
    before: str,
    after: str,
    major: int,
    default: bool,
    ascii_only: bool,
) -> None:
    text = before + json.dumps(config, indent=indent, ensure_ascii=ascii_only) + after
    changed = installed(text, major, default=default)
    wanted = json.loads(text)
    if major >= 24:
        wanted.setdefault("runtimes", {})["pyshim"] = OURS
    if default:
        wanted["default-runtime"] = "pyshim" if major >= 24 else TYPE
    assert json.loads(changed) == wanted
    assert install(changed, major, default=default).text == changed
    assert uninstall(changed, text).text == text
    left = uninstall(f"{changed} ", text).text
    assert left is not None
    assert json.loads(left) == config


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    for change in (lambda: install(text, 28), lambda: uninstall(text, None)):
        try:
            edit = change()
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert edit.text is not None
