"""``python -I …/program.py FOLDER pyshim.zygote …``: a zygote with points.

What it forks dies (SIGKILL) at the point that the file ``FOLDER/armed`` names, once, and notes each
point that it comes to in ``FOLDER/seen``.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.machinery
import os
import pkgutil
import runpy
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

REPOSITORY = Path(__file__).parents[3]
sys.path.append(str(REPOSITORY))  # last: what is installed comes before the source

from tests.integration.faults import points  # noqa: E402

# Of the service's; the tests are no more patient than they need to be.
HURRIED = {
    "pyshim.service.commands": {"COMMAND_TIMEOUT_S": 2},
    "pyshim.service.exits": {"OPEN_TIMEOUT_S": 0.3, "DRAIN_TIMEOUT_S": 0.3},
    "pyshim.stdio.terminal": {"TERMINAL_TIMEOUT_S": 1},
    "pyshim.stdio.logger": {"END_TIMEOUT_S": 0.3, "TERM_TIMEOUT_S": 0.3},
    "pyshim.zygote.server": {"REHEARSALS": 0},  # a rehearsal comes to points too
    "pyshim.events.publisher": {"ANSWER_TIMEOUT_S": 2, "RETRY_MAX_MS": 500},
}


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its points in it; what is cached has none."""

    def get_code(self, fullname: str) -> CodeType:
        """The module's code."""
        path = self.get_filename(fullname)
        tree, _ = points.transformed(fullname, self.get_data(path))
        return compile(tree, path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the modules that have points."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that has points, None for all others."""
        if name.rpartition(".")[0] not in points.PACKAGES or name in points.OF_DELETE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin:
            spec.loader = Loader(name, spec.origin)
        return spec


def install(folder: Path) -> None:
    """Has every module that is imported from now on get its points."""
    (folder / "seen").touch()
    armed, raising, seen = (str(folder / name) for name in ("armed", "raising", "seen"))

    def hook(name: str, when: str, value: object) -> object:
        moment = f"{name} {when}"
        with open(seen, "a", encoding="ascii") as file:
            file.write(f"{moment}\n")
        where, _, error = text_of(raising).partition("\n")
        if where == moment:
            os.unlink(raising)
            raise pkgutil.resolve_name(error)(f"put in at {moment}")
        first, _, rest = text_of(armed).partition("\n")
        if first == moment:
            take(armed, rest)
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(builtins, points.HOOK, hook)
    sys.meta_path.insert(0, Finder())


def text_of(path: str) -> str:
    """What is in a file; "" when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def take(armed: str, rest: str) -> None:
    """Leaves ``rest`` armed."""
    os.unlink(armed)
    if rest:
        with open(f"{armed}.rest", "w", encoding="ascii") as file:
            file.write(rest)
        os.rename(f"{armed}.rest", armed)


def hurry() -> None:
    """Shortens the service's patience, where it is a module's constant and where a default."""
    for module, constants in HURRIED.items():
        loaded = importlib.import_module(module)
        for name, value in constants.items():
            assert hasattr(loaded, name), f"{module} has no {name} any more"
            setattr(loaded, name, value)
    commands = importlib.import_module("pyshim.service.commands")
    for function in (commands.run, commands.outcome):
        function.__defaults__ = (*function.__defaults__[:-1], commands.COMMAND_TIMEOUT_S)


def make_runc_known() -> None:
    """The zygote has looked at runc already: how Start goes must not depend on the time."""
    copies = importlib.import_module("pyshim.zygote.copies")
    found = shutil.which("runc")
    assert found

    class Copy(copies.Copy):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.runc = copies.identity(found)

    copies.Copy = Copy


def main() -> None:
    """Installs the points and runs the program."""
    folder, program = Path(sys.argv[1]), sys.argv[2]
    del sys.argv[:2]
    install(folder)
    hurry()
    make_runc_known()
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
