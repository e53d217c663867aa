"""Older versions of pyshim, made from this one by taking back what has changed since.

They are built like any other and run for real: what one leaves behind is what an upgrade finds.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import hatch_build
from tests.integration.installations import PROGRAMS, Installation, install

VERSION = "0.0.9"
SOURCES = ("native", "pyinit", "pyshim", "portproxy")
FLAGS = (
    "-std=gnu11 -O1 -w -ffunction-sections -Wl,--gc-sections -no-pie "
    # As in tests/sanitized.py: Cython's dead module set-up refers to a Python that is not there.
    "-Wl,--unresolved-symbols=ignore-all"
).split()
Changes = dict[str, tuple[tuple[str, str], ...]]


@dataclasses.dataclass(frozen=True)
class Version:
    """What was otherwise in it: per file what stands there now, and what stood there then."""

    build: str
    changes: Changes


# State 1; and a snapshot that says less of the monitor than it does now.
PREVIOUS = Version(
    "0" * 16,
    {
        "pyshim/__init__.py": ((f'"{hatch_build.version()}"', f'"{VERSION}"'),),
        "pyshim/service/migrations.py": (("STATE_VERSION = 2", "STATE_VERSION = 1"),),
        "pyshim/monitor/monitor.py": (
            (
                "OF_MONITOR, cython.address(body), cython.sizeof(body), ",
                "OF_MONITOR, cython.address(body), cython.sizeof(body) - 16, ",
            ),
        ),
    },
)
# Neither its monitor nor its services know of upgrades.
FIRST = Version(
    "f" * 16,
    {
        **PREVIOUS.changes,
        "pyshim/service/task.py": (('(CONTROL, "Upgrade")', '(CONTROL, "")'),),
        "pyshim/monitor/monitor.py": (
            ("    body.c = WELCOME_UPGRADES | WELCOME_EXECUTABLES\n", "    body.c = 0\n"),
            ("        return size == 8 and fds == 2\n    if kind == SPAWN", "    if kind == SPAWN"),
            ("    if kind == UPGRADE:\n", ""),
            ("    elif kind == UPGRADE:\n        error", "    elif kind == 0:\n        error"),
        ),
    },
)


def make(version: Version, folder: Path) -> Installation:
    """An installation of ``version``, in ``folder``."""
    root = folder / "source"
    for name in SOURCES:
        kept = shutil.ignore_patterns("__pycache__")
        shutil.copytree(hatch_build.ROOT / name, root / name, ignore=kept)
    for name, changes in version.changes.items():
        _change(root / name, changes)
    programs = folder / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        _build(root, name, programs / name)
    made = install(folder / "home", version.build, programs)
    for name in version.changes:
        if not name.endswith("monitor.py"):
            shutil.copy(root / name, made.home / made.package.parent / name)
    return made


def _change(path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    text = path.read_text()
    for now, then in changes:
        assert text.count(now) == 1, f"{path}: {now!r}"
        text = text.replace(now, then)
    path.write_text(text)


def _build(root: Path, name: str, target: Path) -> None:
    """A native program, by the system's compiler: what counts is what it does."""
    c_file = target.with_suffix(".c")
    hatch_build.translate(root / hatch_build.PROGRAMS[name], c_file, root)
    sources = [str(c_file), str(hatch_build.entry(root, name in hatch_build.BARE))]
    hatch_build.run(["gcc", *FLAGS, *hatch_build.source_flags(root), *sources, "-o", str(target)])
