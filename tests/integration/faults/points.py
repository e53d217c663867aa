"""The points at which a service may die: found in its source, and put into it.

A point is a call that has an effect outside of the service, or waits for a runtime's command: what
the service was doing may be left half done there.  Each has a moment before and one after.  The
list comes from the source, so that a new effect is a new point by itself.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("pyshim.service", "pyshim.events", "pyshim.stdio")
HOOK = "__pyshim_point__"
BEFORE, AFTER = "before", "after"

# What changes something outside, by the last part of its name.  A runtime's command has two points:
# where it begins (``spawn``) and where it is waited for.
EFFECTS = {
    *("commit", "answer", "fail", "answer_and_quit", "queue", "spawn", "run", "outcome"),
    *("mount_all", "unmount_all", "remove_files", "write_file", "_write_hints", "unlink"),
    *("kill", "makedirs", "set_size", "enable_controllers", "rmtree", "copyfile", "unlink_socket"),
    *("fchown", "_leave_mark", "replace", "fsync", "bind"),
}
# ``send`` has an effect where its receiver is the monitor's channel.
CHANNELS = {"link", "sock"}


def name_of(node: ast.expr) -> str:
    """The last part of what is called: ``commit`` for ``store.commit``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def has_effect(call: ast.Call) -> bool:
    """Whether ``call`` is a point."""
    name = name_of(call.func)
    if name in {"send", "sendmsg"} and isinstance(call.func, ast.Attribute):
        return name_of(call.func.value) in CHANNELS
    return name in EFFECTS


class Points(ast.NodeTransformer):
    """Wraps each point into two calls of ``HOOK``; ``found`` has their names."""

    def __init__(self, module: str) -> None:
        self.found: list[str] = []
        self._module = module
        self._functions: list[str] = []
        self._seen: Counter[str] = Counter()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Points have the name of the function that they are in."""
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Likewise."""
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()
        return node

    def visit_Await(self, node: ast.Await) -> ast.AST:
        """What is awaited is over after the ``await``, not after the call."""
        called = node.value
        if not isinstance(called, ast.Call) or not has_effect(called):
            self.generic_visit(node)
            return node
        name = self._name(name_of(called.func))
        self.generic_visit(called)
        return self._wrapped(name, node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A point if it has an effect."""
        name = self._name(name_of(node.func)) if has_effect(node) and self._functions else ""
        self.generic_visit(node)
        return self._wrapped(name, node) if name else node

    def _name(self, called: str) -> str:
        name = f"{self._module}:{'.'.join(self._functions)}:{called}"
        self._seen[name] += 1
        if self._seen[name] > 1:
            name += f"#{self._seen[name]}"
        self.found.append(name)
        return name

    def _wrapped(self, name: str, node: ast.expr) -> ast.expr:
        """``HOOK(name, AFTER, (HOOK(name, BEFORE, None), node)[1])``."""
        pair = ast.Tuple([_hook(name, BEFORE, ast.Constant(None)), node], ast.Load())
        return _hook(name, AFTER, ast.Subscript(pair, ast.Constant(1), ast.Load()))


def _hook(name: str, when: str, value: ast.expr) -> ast.expr:
    arguments = [ast.Constant(name), ast.Constant(when), value]
    return ast.Call(ast.Name(HOOK, ast.Load()), arguments, [])


def transformed(module: str, source: bytes) -> tuple[ast.Module, list[str]]:
    """The tree of ``source`` with its points, and their names."""
    tree = ast.parse(source)
    points = Points(module.removeprefix("pyshim."))
    points.visit(tree)
    return ast.fix_missing_locations(tree), points.found


def modules() -> Iterator[tuple[str, Path]]:
    """The names and files of all modules that have points."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations is not None
        for module in pkgutil.iter_modules(found.submodule_search_locations):
            if module.name != "__main__":
                folder = Path(found.submodule_search_locations[0])
                yield f"{package}.{module.name}", folder / f"{module.name}.py"


def all_points() -> list[str]:
    """The names of all points, in the order of the source."""
    return [
        name for module, path in modules() for name in transformed(module, path.read_bytes())[1]
    ]
