"""docs/bounds.md lists every wait in the code, and no other; with the bounds that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/bounds.md"
PACKAGES = ("pyshim", "pyinit", "portproxy")
CONSTANT = re.compile(r"[A-Z][A-Z_]*_(?:S|MS)")
# A C enumeration's line.
DECLARED = re.compile(r"^ +([A-Z][A-Z_]*_(?:S|MS)) = (\d+)", re.MULTILINE)
# Whatever is called so may wait.
WAITS = {
    # for time, for what happens, and for processes, threads and tasks
    *("wait", "wait_for", "until", "poll", "select", "sleep", "settimeout", "call_later", "gather"),
    *("epoll_wait", "epoll_pwait", "sigtimedwait", "SYS_rt_sigtimedwait", "sigwait", "SYS_pause"),
    *("communicate", "waitpid", "waitid", "wait3", "wait4", "SYS_wait4", "join", "result"),
    *("subprocess.run", "check_call", "check_output", "getoutput", "system", "run_until_complete"),
    # for a lock
    *("flock", "lockf", "acquire"),
    # for a peer
    *("connect", "accept", "accept4", "create_connection", "open_connection", "getaddrinfo"),
    *("open_unix_connection", "urlopen", "getresponse", "gethostbyname"),
    *("recv", "recvmsg", "recvfrom", "recv_into", "recv_fds", "read", "readline", "readuntil"),
    *(
        "receive",
        "readexactly",
        "send",
        "sendall",
        "sendmsg",
        "sendto",
        "send_fds",
        "drain",
        "splice",
    ),
}
# Of those, what does not wait: a question that is answered at once.
AT_ONCE = re.compile(
    r"WNOHANG|DONTWAIT|LOCK_NB|SPLICE_F_NONBLOCK|at_once"
    r"|select\.poll\(\)|\.poll\(0?\)|poll\(.*, 1, 0\)|sleep\(0\)"
)
# What is called so of something else: text and paths that are joined, files that are read and
# methods of ours, which wait as their own bodies do.
ELSEWHERE = {
    "join": {"", "path", "posixpath"},
    "read": {"file", "spool", "self", "bare"},
    "send": {"link", "store", "self"},
    "receive": {"client", "self"},
    "connect": {"streams", "terminal", "self", "bare"},
    "drain": {"channel", "watch"},
}
# In these a call without a receiver is of C.
NATIVE = {
    *("pyinit/init.py", "portproxy/relay.py"),
    *("pyshim/monitor/monitor.py", "pyshim/launcher/launcher.py"),
}
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def sources() -> list[Path]:
    """Our Python, the native programs' included."""
    found = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if not path.name.endswith("_pb2.py")]


def constants() -> dict[str, float]:
    """Every module's constant that is a time, by file and name."""
    found: dict[str, float] = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if CONSTANT.fullmatch(name) and (value := number(node.value)) is not None:
                    found[f"{path.relative_to(ROOT)} {name}"] = value
    for name in PACKAGES:
        for path in sorted((ROOT / name).rglob("*.pxd")):
            for constant, value in DECLARED.findall(path.read_text()):
                found[f"{path.relative_to(ROOT)} {constant}"] = float(value)
    return found


def number(node: ast.expr) -> float | None:
    """A literal, or the default of what an administrator may set (``settings.seconds``).

    Of the smaller of two (``min``) the literal is listed.
    """
    if isinstance(node, ast.Constant):
        return float(node.value) if isinstance(node.value, int | float) else None
    if isinstance(node, ast.Call):
        name = callee(node)
        assert name in {"seconds", "min"}, f"how long is {ast.unparse(node)}?"
        return number(node.args[1] if name == "seconds" else node.args[0])
    return None


def waits() -> set[str]:
    """Every call that waits and names no such constant, by file, function and callee."""
    found: set[str] = set()
    for path in sources():
        look(ast.parse(path.read_text()), str(path.relative_to(ROOT)), [], found)
    return found


def look(node: ast.AST, path: str, inside: list[str], found: set[str]) -> None:
    """Adds the waits below ``node``, which is in the functions and classes ``inside``.

    What is waited for in the arguments of a wait has that one's bound.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        inside = [*inside, node.name]
    if isinstance(node, ast.Call) and (name := callee(node)) in WAITS and not is_other(node, path):
        text = ast.unparse(node)
        if not AT_ONCE.search(text) and not CONSTANT.search(text):
            found.add(f"{path} {'.'.join(inside)} {name}")
        return
    for child in ast.iter_child_nodes(node):
        look(child, path, inside, found)


def is_other(node: ast.Call, path: str) -> bool:
    """Whether ``node`` calls something of the same name as what waits."""
    receiver = "bare" if isinstance(node.func, ast.Name) else last_name(node.func)
    if receiver == "bare" and path in NATIVE:  # C has no methods
        return callee(node) in {"join", "receive"}  # of our own there
    return receiver in ELSEWHERE.get(callee(node), set())


@pytest.mark.parametrize(
    "text",
    [
        *(
            "thread.join()",
            "sock.recv(1)",
            "sock.accept()",
            "probe.connect(path)",
            "lock.acquire()",
        ),
        *("fcntl.flock(fd, fcntl.LOCK_EX)", "asyncio.gather(*tasks)", "process.wait()"),
        *("os.read(fd, 1)", "reader.readline()", "sock.sendall(data)", "future.result()"),
        *(
            "receive(sock, 9, 8, flags)",
            "process.communicate()",
            "writer.drain()",
            "sock.send(b'')",
        ),
    ],
)
def test_a_wait_is_found(text: str) -> None:
    found: set[str] = set()
    look(ast.parse(f"def act():\n    {text}\n"), "pyshim/x.py", [], found)
    assert len(found) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("', '.join(names)", "os.path.join(a, b)", "file.read()", "store.send(tag, b'', [])"),
        *("os.waitpid(pid, os.WNOHANG)", "fcntl.flock(fd, LOCK_EX | LOCK_NB)"),
        *("sock.recv(1, socket.MSG_DONTWAIT)", "thread.join(BOUND_S)", "poller.poll(0)"),
    ],
)
def test_what_does_not_wait_is_not_found(text: str) -> None:
    found: set[str] = set()
    look(ast.parse(f"def act():\n    {text}\n"), "pyshim/x.py", [], found)
    assert found == set()


def last_name(function: ast.expr) -> str:
    """What is before the last dot, by its own last part; "" for a literal or a call."""
    value = function.value if isinstance(function, ast.Attribute) else function
    return getattr(value, "attr", getattr(value, "id", ""))


def callee(node: ast.Call) -> str:
    """What is called; of a system call that the code makes itself, its number's name."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name == "kernel_call":
        return getattr(node.args[0], "id", "")
    return "subprocess.run" if ast.unparse(node.func) == "subprocess.run" else name


def listed() -> dict[str, str]:
    """The page's rows: what is waited at, and the bound."""
    rows = ROW.findall(PAGE.read_text())
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names)), "a row is there twice"
    return {name: bound.strip() for name, bound, _ in rows}


def in_words(name: str, value: float) -> str:
    """A bound as the page has it."""
    return f"{value:.10g} {'ms' if name.endswith('_MS') else 's'}"


def test_every_bound_is_listed_with_its_value() -> None:
    of_constants = {row: bound for row, bound in listed().items() if CONSTANT.search(row)}
    assert of_constants == {name: in_words(name, value) for name, value in constants().items()}


def test_every_other_wait_is_listed() -> None:
    assert {row for row in listed() if not CONSTANT.search(row)} == waits()
