"""What is a point at which a service may die (tests/integration/faults): all that has an effect."""

from __future__ import annotations

import ast

import pytest

from tests.integration.faults.points import (
    HARMLESS,
    NONE,
    OF_DELETE,
    all_points,
    modules,
    transformed,
)

POINTS = [
    *("os.mkdir(path)", "os.rename(a, b)", "os.symlink(a, b)", "os.truncate(path, 0)"),
    *("os.write(fd, data)", "os.link(a, b)", "os.something_new(path)", "os.read(fd, 1)"),
    *("os.open(path, FLAGS, 0o600)", "os.open(path, os.O_WRONLY | os.O_TRUNC)", "open(path, 'w')"),
    *("open(path, mode='xb')", "file.write(data)", "file.truncate(5)", "path.write_text('x')"),
    *("shutil.move(a, b)", "fcntl.flock(fd, 2)", "fcntl.ioctl(fd, LOOP_SET_FD, 1)"),
    *("signal.pidfd_send_signal(fd, 9)", "tempfile.mkdtemp()", "sock.bind(path)", "sock.listen()"),
    *("_libc.mount(a, b)", "path.replace(other)", "store.link.send(messages)", "path.mkdir()"),
]
NO_POINTS = [
    *("os.close(fd)", "os.stat(path)", "os.path.join(a, b)", "os.open(path, os.O_RDONLY)"),
    *("open(path)", "open(path, 'rb')", "open(os.open(path, F), 'wb')", "text.replace('a', 'b')"),
    *("fcntl.ioctl(fd, termios.FIONREAD, data)", "file.read()", "len(data)", "store.new_tag()"),
]


def points_of(statement: str) -> list[str]:
    return transformed("pyshim.m", f"def act():\n    {statement}\n".encode())[1]


@pytest.mark.parametrize("statement", POINTS)
def test_an_effect_is_a_point(statement: str) -> None:
    assert len(points_of(statement)) == 1


@pytest.mark.parametrize("statement", NO_POINTS)
def test_what_is_harmless_is_none(statement: str) -> None:
    assert points_of(statement) == []


def test_what_a_child_does_is_none() -> None:
    assert points_of("if child == 0: os.write(fd, data)") == []
    assert len(points_of("if child == 1: os.write(fd, data)")) == 1


def test_a_point_calls_before_and_after() -> None:
    tree, names = transformed("pyshim.m", b"async def act():\n    await run(1)\n    run(2)\n")
    assert names == ["m:act:run", "m:act:run#2"]
    assert ast.unparse(tree).count("__pyshim_point__('m:act:run', 'before', None)") == 1
    assert ast.unparse(tree).count("await run(1)") == 1


def test_every_exception_is_of_something_that_is_there() -> None:
    """A name that nobody calls any more would let something else of that name pass."""
    called = set()
    names = []
    for module, path in modules():
        tree = ast.parse(path.read_bytes())
        called |= {n.func.attr for n in ast.walk(tree) if is_method(n)}
        names += transformed(module, path.read_bytes())[1]
    assert called >= HARMLESS
    assert names == all_points()
    assert not NONE.keys() & set(names)


def test_no_service_does_what_delete_does() -> None:
    names = {name.rpartition(".")[2] for name in OF_DELETE}
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert not names & {alias.name.rpartition(".")[2] for alias in node.names}, path


def is_method(node: ast.AST) -> bool:
    """Whether ``node`` calls something by a dot."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
