"""Which control groups a bundle's config.json names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyshim.cgroups import remains


def bundle(folder: Path, text: str) -> Path:
    """A bundle with this config.json."""
    (folder / "config.json").write_text(text)
    return folder


def test_a_path_is_below_every_hierarchy(tmp_path: Path) -> None:
    found = remains.groups(bundle(tmp_path, json.dumps({"linux": {"cgroupsPath": "/a/b"}})))
    assert found
    assert all(path.startswith("/sys/fs/cgroup") and path.endswith("/a/b") for path in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "path", ["", "/", "//", "/..", "relative", "system.slice:docker:id", None, 5, ["/a"], "/\0"]
)
def test_where_nobody_can_say(tmp_path: Path, path: object) -> None:
    assert remains.groups(bundle(tmp_path, json.dumps({"linux": {"cgroupsPath": path}}))) == []


def test_no_path_leads_out(tmp_path: Path) -> None:
    text = json.dumps({"linux": {"cgroupsPath": "/../../../etc"}})
    assert all(path.startswith("/sys/fs/cgroup") for path in remains.groups(bundle(tmp_path, text)))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"linux": null}', '{"linux": 1}', "\xff"])
def test_a_config_that_says_nothing(tmp_path: Path, text: str) -> None:
    assert remains.groups(bundle(tmp_path, text)) == []


def test_no_config(tmp_path: Path) -> None:
    assert remains.groups(tmp_path) == []
