"""The points at which a service may die: found in its source, and put into it.

A point is a call that has an effect outside of the service, or waits for a runtime's command: what
the service was doing may be left half done there.  Each has a moment before and one after.

The list comes from the source, so that a new effect is a new point by itself: whatever is called of
the operating system has one, but for the names in ``HARMLESS``.  A function of ours that does
several such things, or has others do them, has points at its callers too (``OURS``).
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    *("pyshim.service", "pyshim.events", "pyshim.stdio"),
    *("pyshim.runtime", "pyshim.cgroups"),
)
# What `delete` alone does, which is asked for again when it dies.
OF_DELETE = {"pyshim.cgroups.remains"}
HOOK = "__pyshim_point__"
BEFORE, AFTER = "before", "after"

# By the last part of their names.  A runtime's command has two points: where it begins (``spawn``)
# and where it is waited for.
OURS = {
    *("commit", "answer", "fail", "answer_and_quit", "queue", "spawn", "run", "outcome"),
    *("mount_all", "unmount_all", "remove_files", "write_file", "_write_hints", "kill", "_call"),
}
# What speaks to the operating system.
LIBRARIES = {"os", "shutil", "fcntl", "signal", "socket", "tempfile", "termios", "libc", "_libc"}
# Of those, what only looks, or changes nothing but the process that calls it.
HARMLESS = {
    # looking
    *("access", "fstat", "stat", "listdir", "readlink", "walk", "statvfs", "sysconf"),
    *("pread", "getpid", "strerror", "fsencode", "WIFSIGNALED", "WTERMSIG"),
    # our descriptors, which end with us
    *("close", "dup", "pipe2", "eventfd", "memfd_create", "pidfd_open"),
    *("fcntl", "socket"),
    # our place, our end, and our children, which end when we do (``runtime/idmap.py``)
    *("chdir", "setns", "unshare", "_exit", "fork", "waitpid"),
    # ``_call`` has the points
    "syscall",
}
# What the objects of the library do that stand for files, folders and sockets.
METHODS = {
    *("write", "writelines", "truncate", "write_text", "write_bytes", "touch", "chmod", "mkdir"),
    *("unlink", "rename", "replace", "rmdir", "symlink_to", "hardlink_to", "bind", "listen"),
}
# ``send`` has an effect where its receiver is the monitor's channel.
CHANNELS = {"link", "sock"}
# These only ask (ioctl_pipe(2), loop(4)), or make a mount that nobody else can see and that ends
# with its descriptor (open_tree(2), mount_setattr(2)).
QUESTIONS = {"FIONREAD", "LOOP_CTL_GET_FREE", "SYS_OPEN_TREE", "SYS_MOUNT_SETATTR"}
# Points that would be some by these rules, and why they are none.
NONE = {
    "service.commands:_keep_what_it_prints:ftruncate": "memory of ours",
    "service.log:_write:write": "a line that nobody may take",
}


def name_of(node: ast.expr) -> str:
    """The last part of what is called: ``commit`` for ``store.commit``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def has_effect(call: ast.Call, imported: set[str]) -> bool:
    """Whether ``call`` is a point, in a module that has the modules ``imported``."""
    name = name_of(call.func)
    if QUESTIONS & set(map(name_of, call.args)):
        return False
    if isinstance(call.func, ast.Name):
        return name in OURS or (name == "open" and is_for_writing(call))
    if not isinstance(call.func, ast.Attribute):
        return False
    receiver = call.func.value
    if isinstance(receiver, ast.Name) and receiver.id in LIBRARIES:
        if name == "open":
            return makes_a_file(call)
        return name not in HARMLESS
    if name in {"send", "sendmsg"}:
        return name_of(receiver) in CHANNELS
    if isinstance(receiver, ast.Name) and receiver.id in imported:
        return name in OURS
    return name in OURS | METHODS and not is_text(receiver)


def is_for_writing(call: ast.Call) -> bool:
    """Whether ``open`` makes or empties a file, by its mode; a descriptor is there already."""
    mode = next((k.value for k in call.keywords if k.arg == "mode"), (*call.args, None)[1:2][0])
    written = isinstance(mode, ast.Constant) and set("wax") & set(str(mode.value))
    return bool(written) and not isinstance(call.args[0], ast.Call)


def makes_a_file(call: ast.Call) -> bool:
    """Whether ``os.open`` may: it is told with which mode, or to."""
    return len(call.args) > 2 or any(word in ast.unparse(call) for word in ("O_CREAT", "O_TRUNC"))


def is_text(node: ast.expr) -> bool:
    """Whether ``node`` is text, whose ``replace`` has no effect."""
    return isinstance(node, ast.Constant) or name_of(node) in {"text", "value", "name"}


class Points(ast.NodeTransformer):
    """Wraps each point into two calls of ``HOOK``; ``found`` has their names."""

    def __init__(self, module: str, imported: set[str]) -> None:
        self.found: list[str] = []
        self._imported = imported
        self._module = module
        self._functions: list[str] = []
        self._seen: Counter[str] = Counter()

    def visit_If(self, node: ast.If) -> ast.AST:
        """What a child does after a fork is no part of the service."""
        if ast.unparse(node.test) != "child == 0":
            self.generic_visit(node)
        return node

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
        if not isinstance(called, ast.Call) or not has_effect(called, self._imported):
            self.generic_visit(node)
            return node
        name = self._name(name_of(called.func))
        self.generic_visit(called)
        return self._wrapped(name, node) if name not in NONE else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A point if it has an effect."""
        is_point = self._functions and has_effect(node, self._imported)
        name = self._name(name_of(node.func)) if is_point else ""
        self.generic_visit(node)
        return self._wrapped(name, node) if name and name not in NONE else node

    def _name(self, called: str) -> str:
        name = f"{self._module}:{'.'.join(self._functions)}:{called}"
        self._seen[name] += 1
        if self._seen[name] > 1:
            name += f"#{self._seen[name]}"
        if name not in NONE:
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
    points = Points(module.removeprefix("pyshim."), modules_of_ours(tree))
    points.visit(tree)
    return ast.fix_missing_locations(tree), points.found


def modules_of_ours(tree: ast.Module) -> set[str]:
    """By which names a module has other modules of ours."""
    lines = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    ours = [line for line in lines if (line.module or "").startswith("pyshim")]
    return {alias.asname or alias.name for line in ours for alias in line.names}


def modules() -> Iterator[tuple[str, Path]]:
    """The names and files of all modules that have points."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations is not None
        for module in pkgutil.iter_modules(found.submodule_search_locations):
            if module.name != "__main__" and f"{package}.{module.name}" not in OF_DELETE:
                folder = Path(found.submodule_search_locations[0])
                yield f"{package}.{module.name}", folder / f"{module.name}.py"


def all_points() -> list[str]:
    """The names of all points, in the order of the source."""
    return [
        name for module, path in modules() for name in transformed(module, path.read_bytes())[1]
    ]
