"""Installations of pyshim beside the one under test, which differ from it in their build."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.containerd import BOUND_S

PROGRAMS = ("pyshim-monitor", "containerd-shim-pyshim-v2")
IDENTITY = re.compile(rb"pyshim-monitor \S+ ([0-9a-f]{16})\n")


@dataclass(frozen=True)
class Installation:
    """A virtual environment with pyshim of the build ``build``."""

    home: Path
    build: str

    @property
    def bin(self) -> Path:
        """The folder of its programs."""
        return self.home / "bin"

    @property
    def package(self) -> Path:
        """The folder of the Python modules."""
        return self.home / _packages().relative_to(sys.prefix) / "pyshim"

    def upgrade(self, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """`pyshim upgrade` of this installation."""
        code = "from pyshim.cli import main; main()"
        command = [str(self.bin / "python3"), "-I", "-c", code, "upgrade", *arguments]
        return subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * BOUND_S,
            check=False,
        )

    def upgraded(self, *patterns: str, env: dict[str, str]) -> list[dict[str, Any]]:
        """The records of one that went well."""
        done = self.upgrade("--json", *patterns, env=env)
        assert (done.returncode, done.stderr) == (0, ""), done
        records: list[dict[str, Any]] = json.loads(done.stdout)
        return records

    def become(self, build: str, programs: Path) -> Installation:
        """What `pip install -U` does with another build: new files in the old ones' place."""
        for name in PROGRAMS:
            _place(programs / name, self.bin / name, build)
        stamp = self.package / "_build.py"
        draft = stamp.with_suffix(".new")
        draft.write_text(f'BUILD_ID = "{build}"\n')
        draft.replace(stamp)
        # As pip: what is cached is told from its source by no more than a second and a size.
        shutil.rmtree(self.package / "__pycache__", ignore_errors=True)
        return Installation(self.home, build)


def install(home: Path, build: str, programs: Path) -> Installation:
    """A new environment in ``home``: the installed modules, and the programs in ``programs``."""
    made = Installation(home, build)
    made.bin.mkdir(parents=True)
    ours = Path(sys.prefix)
    shutil.copy(ours / "pyvenv.cfg", home / "pyvenv.cfg")
    (made.bin / "python3").symlink_to(Path(sys.executable).resolve())
    made.package.parent.mkdir(parents=True)
    for entry in _packages().iterdir():
        if entry.name != "pyshim":
            (made.package.parent / entry.name).symlink_to(entry)
    shutil.copytree(_packages() / "pyshim", made.package)
    return made.become(build, programs)


def with_broken_service(home: Path) -> None:
    """A version whose services all die at once."""
    (path,) = home.glob("lib/*/site-packages/pyshim/service/activation.py")
    path.write_text("raise SystemError\n")


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _place(source: Path, target: Path, build: str) -> None:
    """Puts a program there that says it is of another build; a running one keeps its file."""
    data = source.read_bytes()
    found = IDENTITY.search((source.parent / "pyshim-monitor").read_bytes())
    assert found, f"{source.parent}: the monitor does not say its build"
    assert len(build) == len(found[1])
    draft = target.with_name(f".{target.name}")
    draft.write_bytes(data.replace(found[1], build.encode()))
    draft.chmod(0o755)
    os.replace(draft, target)
