"""containerd's config.toml with and without our runtime."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyshim.cli.containerd_config import BEGIN, END, ConfigError, install, uninstall

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLD, NEW = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
OURS = {"runtime_type": "io.containerd.pyshim.v2"}
DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"  # a comment
"""
BY_HAND = f"""\
version = 2
[plugins."{OLD}".containerd.runtimes.pyshim]
  runtime_type = "io.containerd.pyshim.v2"
  privileged_without_host_devices = true
"""


def installed(text: str | None, version: int = 2) -> str:
    """What the file holds after the installation."""
    found = install(text, version).text
    assert found is not None
    return found


def runtimes(text: str, plugin: str) -> dict[str, Any]:
    """The runtimes of a configuration."""
    found: dict[str, Any] = tomllib.loads(text)["plugins"][plugin]["containerd"]["runtimes"]
    return found


@pytest.mark.parametrize(("version", "plugin"), [(2, OLD), (3, NEW), (4, NEW)])
def test_the_table_of_each_version(version: int, plugin: str) -> None:
    text = installed(f"version = {version}\n")
    assert runtimes(text, plugin)["pyshim"] == OURS
    made = installed(None, version)
    assert tomllib.loads(made)["version"] == version
    assert runtimes(made, plugin)["pyshim"] == OURS


def test_runc_stays_the_default_when_no_runtime_was_named() -> None:
    """containerd 1.6's CRI plugin does not start without the default runtime's table."""
    assert runtimes(installed(DEBIAN), OLD)["runc"] == {"runtime_type": "io.containerd.runc.v2"}
    named = f'{DEBIAN}[plugins."{OLD}".containerd.runtimes.crun]\nruntime_type = "a.b.c"\n'
    assert set(runtimes(installed(named), OLD)) == {"crun", "pyshim"}


def test_all_else_stays() -> None:
    text = installed(DEBIAN)
    assert text.startswith(DEBIAN)
    assert uninstall(text).text == DEBIAN


def test_a_second_installation_changes_nothing() -> None:
    text = installed(DEBIAN)
    assert install(text).text == text
    moved = f"{text}[debug]\n  level = 'info'\n"
    assert install(moved).text == moved


def test_a_file_that_we_made_goes() -> None:
    text = installed(None, 3)
    assert uninstall(text).text is None
    assert (
        uninstall(f"{text}[debug]\n").text == "# Made by `pyshim install`.\nversion = 3\n[debug]\n"
    )


def test_what_was_written_below_stays_on_a_line_of_its_own() -> None:
    text = installed("version = 2 # no line end")
    assert uninstall(f"{text}[debug]\n").text == "version = 2 # no line end\n[debug]\n"


def test_a_migrated_file_gets_the_table_of_its_version() -> None:
    text = installed(DEBIAN).replace("version = 2", "version = 3", 1)
    moved = installed(text)
    assert moved.count(BEGIN) == moved.count(END) == 1
    assert runtimes(moved, NEW)["pyshim"] == OURS
    assert uninstall(moved).text == DEBIAN.replace("version = 2", "version = 3", 1)


def test_a_table_by_hand_is_left() -> None:
    edit = install(BY_HAND)
    assert edit.text == BY_HAND
    assert "did not write" in edit.said
    assert uninstall(BY_HAND).text == BY_HAND


@pytest.mark.parametrize("name", ["cri", OLD])
def test_version_1_without_cri_needs_nothing(name: str) -> None:
    text = f'disabled_plugins = ["{name}"]\n'
    edit = install(text)
    assert edit.text == text
    assert "disabled" in edit.said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "config migrate"),
        ("version = 1\n", "--no-containerd"),
        ("version = 5\n", "5"),
        ("version = '2'\n", "'2'"),
        ("version = true\n", "True"),
        ("version = 2\nplugins = 3\n", "plugins"),
        ("version = 2\nplugins = {}\n", "by hand"),
        ("version = 2\n[plugins\n", "line 2"),
        (f"version = 2\n{BEGIN}\n", "end"),
    ],
)
def test_what_cannot_be_changed(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        install(text)
    assert "\n" not in str(caught.value)


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    KEYS.map(lambda text: '"""\n' + text.replace("\\", "").replace('"', "'") + '"""'),
    st.lists(st.integers(0, 9)).map(str),
)


@st.composite
def configs(draw: st.DrawFn) -> str:
    """A valid configuration: tables, comments, blank lines, line ends of two kinds."""
    lines = [f"version = {draw(st.sampled_from([2, 3, 4]))}"]
    for number in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            plugin = draw(st.sampled_from([OLD, NEW, "other"]))
            lines.append(f'[plugins."{plugin}".t{number}]')
        comment = draw(KEYS)
        lines += draw(st.lists(st.sampled_from(["", "  ", f"# {comment}"]), max_size=3))
        lines.append(f"key{number} = {draw(VALUES)}")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + draw(st.sampled_from(["", end, end * 2, f"{end}# last"]))


@settings(deadline=None)
@given(configs())
def test_uninstall_undoes_install(text: str) -> None:
    changed = installed(text)
    assert changed != text
    assert install(changed).text == changed
    assert uninstall(changed).text == text
    before, after = tomllib.loads(text), tomllib.loads(changed)
    plugin = OLD if before["version"] == 2 else NEW
    del after["plugins"][plugin]["containerd"]
    for name in (plugin, "plugins"):
        holder = after["plugins"] if name == plugin else after
        old = before.get("plugins", {}) if name == plugin else before
        if name not in old:
            assert holder.pop(name) == {}
    assert after == before


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    for change in (install, uninstall):
        try:
            edit = change(text)
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert edit.text is not None
