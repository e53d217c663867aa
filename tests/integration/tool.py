"""Runs the ``portproxy`` tool between sockets of the test, over loopback and in namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.integration.conftest import interpreter
from tests.integration.relays import BOUND_S

ROOT = Path(__file__).resolve().parents[2]


class Tool:
    """A running ``portproxy``; ``control`` is where it is asked, if it listens."""

    def __init__(
        self,
        programs: Path,
        *options: str,
        control: Path | None = None,
        netns: str = "",
        env: dict[str, str] | None = None,
        first: tuple[str, ...] = (),
    ) -> None:
        path = os.pathsep.join([str(programs), os.environ["PATH"], "/usr/sbin:/sbin"])
        self.programs = programs
        self.env = {**os.environ, "PATH": path, **(env or {})}
        self.control = control
        self.descendants: set[int] = set()
        self.said = b""  # and not taken yet
        words = list(options)
        if (programs.parent / "reports").exists():
            # A sanitizer's runtime needs more system calls, and leaves its report as root.
            words += ["--no-seccomp", "--user", "0:0"]
        if control is not None:
            words += ["--control", str(control)]
        enter = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        self.process = subprocess.Popen(
            [*enter, *first, interpreter(programs), "-m", "portproxy", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.env,
        )

    def line(self) -> str:
        """The next line of the output; fails, with what stderr says, if there is none in time."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self.said:
            assert select.select([fd], [], [], BOUND_S)[0], "it says nothing"
            part = os.read(fd, 4096)
            assert part, self.finish()
            self.said += part
        line, _, self.said = self.said.partition(b"\n")
        return line.decode()

    def port(self) -> int:
        """The port that the next line of the output names."""
        return int(self.line().partition(" -> ")[0].rpartition(":")[2])

    def children(self) -> list[int]:
        """The pids of its descendants: the relay and the relay's broker."""
        found: list[int] = []
        todo = [self.process.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                todo += [int(word) for word in text.split()]
                found += [int(word) for word in text.split()]
        self.descendants.update(found)
        return found

    def ask(self, *words: str, code: int = 0) -> str:
        """What a subcommand prints; ``code`` is how it must end."""
        done = self.ask_any(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def ask_any(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A subcommand, however it ends."""
        return subprocess.run(
            [interpreter(self.programs), "-m", "portproxy", *words, "--control", str(self.control)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.env,
            check=False,
            timeout=BOUND_S,
        )

    def status(self) -> dict[str, Any]:
        """What ``status --json`` says."""
        done = self.ask_any("status", "--json")
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def finish(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        _, error = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, error

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Tells it to end, and waits."""
        self.process.send_signal(number)
        return self.finish()

    def end(self) -> None:
        """Leaves nothing behind, whatever happened; also a relay that outlives its tool."""
        self.children()
        self.process.kill()
        for pid in self.descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=BOUND_S)


class Echo:
    """A backend that sends back what it gets, behind a name that it says first."""

    def __init__(self, name: str = "", family: int = socket.AF_INET, at: object = None) -> None:
        self.name = name.encode()
        if family == socket.AF_UNIX:
            self.server = socket.socket(family)
            self.server.bind(at)  # type: ignore[arg-type]
            self.server.listen()
        else:
            self.server = socket.create_server(at or ("127.0.0.1", 0), family=family)  # type: ignore[arg-type]
        self.clients: list[socket.socket] = []
        self.peers: list[str] = []  # who has connected
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server.getsockname()[1])

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, peer = self.server.accept()
                self.peers.append(peer[0] if peer else "")
                self.clients.append(client)
                threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    def answer(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.sendall(self.name)
            while data := client.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for client in self.clients:
            client.close()
        self.thread.join(BOUND_S)


@contextlib.contextmanager
def echo(name: str = "", family: int = socket.AF_INET, at: object = None) -> Iterator[Echo]:
    """An Echo that ends."""
    made = Echo(name, family, at)
    try:
        yield made
    finally:
        made.end()


Run = Callable[..., Tool]


@contextlib.contextmanager
def tools(programs: Path) -> Iterator[Run]:
    """Starts tools by their options; they are gone afterwards."""
    with contextlib.ExitStack() as started:

        def start(*options: str) -> Tool:
            tool = Tool(programs, *options)
            started.callback(tool.end)
            return tool

        yield start


def says(where: object, family: int = socket.AF_INET) -> str:
    """The name of the Echo that a connection reaches; fails unless it echoes, too."""
    with socket.socket(family) as client:
        client.settimeout(BOUND_S)
        client.connect(where)  # type: ignore[arg-type]
        client.sendall(b"|ping")
        client.shutdown(socket.SHUT_WR)
        got = b""
        while part := client.recv(4096):
            got += part
    name, bar, rest = got.partition(b"|")
    assert bar + rest == b"|ping", got
    return name.decode()
