"""Drives the built portproxy-relay and the portproxy command, over loopback only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import interpreter, plain_only

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 30
MIB = 1 << 20
LOW_FD_LIMIT = 24
NOTHING_LISTENS = 1  # tcpmux


@pytest.fixture
def binary(programs: Path) -> str:
    """The relay."""
    return str(programs / "portproxy-relay")


def eventually(true: Callable[[], object], what: str) -> None:
    """Polls until ``true()``; fails the test with ``what`` at the bound."""
    deadline = time.monotonic() + BOUND_S
    while not true():
        assert time.monotonic() < deadline, f"not within {BOUND_S} s: {what}"
        select.select([], [], [], 0.01)


def free_port(family: int = socket.AF_INET) -> int:
    """A port that nobody listens on."""
    with socket.socket(family) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options(host_port: int, port: int, host: str = "127.0.0.1") -> list[str]:
    """What an engine passes."""
    listen = ["-proto", "tcp", "-host-ip", host, "-host-port", str(host_port)]
    return [*listen, "-container-ip", "127.0.0.1", "-container-port", str(port)]


class Launched:
    """One relay, with a status pipe on fd 3."""

    def __init__(
        self,
        command: list[str],
        listener: int | None = None,
        first: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        # A shell puts the descriptors in place: Popen's own pipe may be number 3 in its child.
        self.pipe, low = os.pipe()
        theirs = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(low)
        passed = [theirs] if listener is None else [theirs, listener]
        place = f"exec 3>&{theirs} {theirs}>&-"
        if listener is not None:
            place += f" 4<&{listener}"
        script = f'{first} {place}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "sh", *command], pass_fds=passed, stderr=subprocess.PIPE, env=env
        )
        os.close(theirs)

    def answer(self) -> bytes:
        """Everything that the status pipe says."""
        said = b""
        while select.select([self.pipe], [], [], BOUND_S)[0]:
            part = os.read(self.pipe, 4096)
            if not part:
                return said
            said += part
        pytest.fail("the status pipe stays open")

    def memory_kb(self) -> int:
        """The most resident memory it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])

    def fds(self) -> int:
        """How many descriptors it holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> None:
        """Kills it if it still runs."""
        os.close(self.pipe)
        self.process.kill()
        self.process.communicate(timeout=BOUND_S)


class Forwarded:
    """A backend and a relay in front of it."""

    def __init__(
        self,
        binary: str,
        host: str = "127.0.0.1",
        first: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        self.backend = socket.create_server(("127.0.0.1", 0))
        self.backend.settimeout(BOUND_S)
        six = ":" in host
        self.where = (host, free_port(socket.AF_INET6 if six else socket.AF_INET))
        port = self.backend.getsockname()[1]
        self.relay = Launched([binary, *options(self.where[1], port, host)], first=first, env=env)
        self.sockets: list[socket.socket] = [self.backend]
        try:
            assert self.relay.answer() == b"0\n"
        except BaseException:
            self.end()
            raise

    def client(self, receive_bytes: int = 0) -> socket.socket:
        """A connection to the relay."""
        client = socket.socket(socket.AF_INET6 if ":" in self.where[0] else socket.AF_INET)
        self.sockets.append(client)
        client.settimeout(BOUND_S)
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect(self.where)
        return client

    def pair(self, receive_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
        """A client and what the backend accepted for it."""
        client = self.client(receive_bytes)
        accepted, _ = self.backend.accept()
        self.sockets.append(accepted)
        accepted.settimeout(BOUND_S)
        return client, accepted

    def end(self) -> None:
        """Leaves nothing behind."""
        self.relay.end()
        for each in self.sockets:
            each.close()


@pytest.fixture
def forwarded(binary: str) -> Iterator[Forwarded]:
    """A relay with IPv4 on both sides."""
    made = Forwarded(binary)
    yield made
    made.end()


@pytest.fixture
def propagating(binary: str) -> Iterator[Forwarded]:
    """The same, but a reset stays one."""
    made = Forwarded(binary, env={**os.environ, "PORTPROXY_RESET": "propagate"})
    yield made
    made.end()


def read_all(source: socket.socket) -> bytes:
    """Everything up to the FIN."""
    parts = []
    while part := source.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def send_and_finish(target: socket.socket, data: bytes) -> threading.Thread:
    """Sends in the background, then a FIN for this direction."""

    def work() -> None:
        with contextlib.suppress(OSError):
            target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def reset(target: socket.socket) -> None:
    """Closes with a reset."""
    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    target.close()


def digest(data: bytes) -> str:
    """What is compared instead of megabytes."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


# --- How it starts and ends ---------------------------------------------------------------------


def test_status_pipe_names_a_busy_port(binary: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        relay = Launched([binary, *options(port, 80)])
        try:
            where = f"127.0.0.1:{port}"
            text = f"1\nfailed to listen on {where}: listen tcp4 {where}: bind: "
            assert relay.answer().decode() == text + "address already in use"
            assert relay.process.wait(BOUND_S) == 1
            assert relay.process.stderr is not None
            assert relay.process.stderr.read() == b""
        finally:
            relay.end()


def test_success_is_one_write_of_two_bytes(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert client.recv(100) == b"answer"


def test_listener_from_the_engine(binary: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend, socket.socket() as listener:
        backend.settimeout(BOUND_S)
        listener.bind(("127.0.0.1", 0))  # not listening yet
        command = [binary, *options(9, backend.getsockname()[1]), "-use-listen-fd"]
        relay = Launched(command, listener.fileno())
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(listener.getsockname(), BOUND_S) as client:
                accepted, _ = backend.accept()
                with accepted:
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"
        finally:
            relay.end()


def test_listener_of_the_wrong_kind(binary: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        relay = Launched([binary, *options(9, 80), "-use-listen-fd"], wrong.fileno())
        try:
            assert relay.answer().startswith(b"1\nunexpected socket type for listener fd: ")
            assert relay.process.wait(BOUND_S) == 1
        finally:
            relay.end()


def test_an_unknown_protocol_fails_clearly(binary: str) -> None:
    relay = Launched([binary, *options(9, 80), "--proto=xyz"])
    try:
        assert relay.answer() == b"1\nunsupported protocol xyz"
        assert relay.process.wait(BOUND_S) == 1
    finally:
        relay.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_0(forwarded: Forwarded, number: int) -> None:
    forwarded.pair()
    forwarded.relay.process.send_signal(number)
    assert forwarded.relay.process.wait(BOUND_S) == 0


def test_starts_without_standard_descriptors(binary: str) -> None:
    made = Forwarded(binary, first="exec 0<&- 1>&- 2>&-;")
    try:
        client, accepted = made.pair()
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
    finally:
        made.end()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-nope"], "-nope"),
        (["-host-port"], "-host-port"),
        (["-host-port", "x"], '"x"'),
        (["-host-port=65536"], '"65536"'),
        (["--host-ip=web"], '"web"'),
        (["-use-listen-fd=maybe"], '"maybe"'),
        ([], "-container-ip"),
        (["-container-ip", "1.2.3.4", "-container-port", "80"], "-host-port"),
    ],
)
def test_usage_errors_are_one_line(binary: str, arguments: list[str], named: str) -> None:
    done = subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_version_has_dockers_shape(binary: str) -> None:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("docker-proxy (commit ")
    assert said.count("\n") == 1


# --- What it does with bytes --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_both_directions_and_their_half_closes(forwarded: Forwarded, seed: int) -> None:
    chance = random.Random(seed)
    client, accepted = forwarded.pair()
    up, down = (chance.randbytes(chance.randrange(6 * MIB)) for _ in range(2))
    threads = [send_and_finish(client, up)]
    assert digest(read_all(accepted)) == digest(up)
    # The other direction is still open, and starts only now.
    threads.append(send_and_finish(accepted, down))
    assert digest(read_all(client)) == digest(down)
    for thread in threads:
        thread.join(BOUND_S)


def test_the_container_may_finish_first(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    down, up = random.Random(1).randbytes(5 * MIB + 1), random.Random(2).randbytes(3 * MIB + 7)
    threads = [send_and_finish(accepted, down)]
    assert digest(read_all(client)) == digest(down)
    threads.append(send_and_finish(client, up))
    assert digest(read_all(accepted)) == digest(up)
    for thread in threads:
        thread.join(BOUND_S)


def test_many_at_once_in_uneven_pieces(forwarded: Forwarded) -> None:
    chance = random.Random(5)
    idle = forwarded.relay.fds()
    pairs = [forwarded.pair() for _ in range(20)]
    sent = [chance.randbytes(chance.randrange(MIB)) for _ in pairs]
    threads = [send_and_finish(a, data) for (a, _), data in zip(pairs, sent, strict=True)]
    for (_, accepted), data in zip(pairs, sent, strict=True):
        got = b""
        while part := accepted.recv(chance.randrange(1, 100_000)):
            got += part
        assert digest(got) == digest(data)
    for thread in threads:
        thread.join(BOUND_S)
    for each in [x for pair in pairs for x in pair]:
        each.close()
    spare_pipes = 2 * 16
    eventually(lambda: forwarded.relay.fds() <= idle + spare_pipes, "descriptors are given back")


@pytest.mark.parametrize("sender", ["client", "container"])
def test_a_reset_stays_a_reset_on_request(propagating: Forwarded, sender: str) -> None:
    client, accepted = propagating.pair()
    broken, other = (client, accepted) if sender == "client" else (accepted, client)
    broken.sendall(b"truncated")
    assert other.recv(9) == b"truncated"
    reset(broken)
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_a_reset_after_a_half_close(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    reset(client)

    def is_reset() -> bool:
        try:
            accepted.send(b"x")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    eventually(is_reset, "the container learns that the client is gone")


@pytest.mark.parametrize("sender", ["client", "container"])
def test_resets_become_fins_as_with_docker(forwarded: Forwarded, sender: str) -> None:
    client, accepted = forwarded.pair()
    broken, other = (client, accepted) if sender == "client" else (accepted, client)
    broken.sendall(b"truncated")
    assert other.recv(9) == b"truncated"
    reset(broken)
    assert other.recv(1) == b""


@plain_only
@pytest.mark.parametrize("reader", ["client", "container"])
def test_a_slow_reader_holds_the_writer_back(forwarded: Forwarded, reader: str) -> None:
    client, accepted = forwarded.pair(receive_bytes=8192)
    slow, writer = (client, accepted) if reader == "client" else (accepted, client)
    data = random.Random(3).randbytes(64 * MIB)
    before_kb = forwarded.relay.memory_kb()
    thread = send_and_finish(writer, data)
    # The writer has stalled when several polls in a row find no change.
    seen: list[str] = []

    def stalled() -> bool:
        seen.append(queued(writer))
        return len(seen) > 50 and len(set(seen[-50:])) == 1

    eventually(stalled, "the writer stalls")
    assert thread.is_alive()
    stalled_at = cpu_ticks(forwarded.relay.process.pid)
    eventually(stalled, "the writer stays stalled")
    assert cpu_ticks(forwarded.relay.process.pid) - stalled_at <= 1  # it does not spin
    assert forwarded.relay.memory_kb() - before_kb < 1024
    assert digest(read_all(slow)) == digest(data)
    thread.join(BOUND_S)


def queued(sender: socket.socket) -> str:
    """How much of what was sent has not been acknowledged, as the kernel says (SIOCOUTQ)."""
    return fcntl.ioctl(sender, termios.TIOCOUTQ, b"\0" * 4).hex()


def cpu_ticks(pid: int) -> int:
    """The processor time that ``pid`` has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_dead_container_closes_the_client(binary: str) -> None:
    port = free_port()
    relay = Launched([binary, *options(port, NOTHING_LISTENS)])
    try:
        assert relay.answer() == b"0\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                assert client.recv(1) == b""
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.stderr is not None
        said = relay.process.stderr.read().decode()
        assert said.startswith(
            f"portproxy-relay: cannot connect to 127.0.0.1:{NOTHING_LISTENS}: connection refused"
        )
    finally:
        relay.end()


def test_ipv6_in_front_of_ipv4(binary: str) -> None:
    made = Forwarded(binary, host="::1")
    try:
        client, accepted = made.pair()
        data = random.Random(4).randbytes(2 * MIB)
        thread = send_and_finish(client, data)
        assert digest(read_all(accepted)) == digest(data)
        thread.join(BOUND_S)
    finally:
        made.end()


def test_survives_a_lack_of_descriptors(binary: str) -> None:
    made = Forwarded(binary, first=f"ulimit -n {LOW_FD_LIMIT};")
    try:
        hard = resource.prlimit(made.relay.process.pid, resource.RLIMIT_NOFILE)[1]
        assert hard == LOW_FD_LIMIT
        clients = [made.client() for _ in range(LOW_FD_LIMIT)]
        eventually(lambda: made.relay.fds() == LOW_FD_LIMIT, "all descriptors are taken")
        data = random.Random(6).randbytes(MIB)
        # Served one after the other, also without a descriptor for a pipe.
        for client in clients:
            accepted, _ = made.backend.accept()
            accepted.settimeout(BOUND_S)
            with accepted:
                thread = send_and_finish(client, data)
                assert digest(read_all(accepted)) == digest(data)
                thread.join(BOUND_S)
            client.close()
        assert made.relay.process.poll() is None
    finally:
        made.end()


# --- The portproxy command ----------------------------------------------------------------------


class Tool:
    """A running ``portproxy``."""

    def __init__(self, programs: Path, *mappings: str) -> None:
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        flags = [word for mapping in mappings for word in ("-p", mapping)]
        self.process = subprocess.Popen(
            [interpreter(programs), "-m", "portproxy", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
        )

    def line(self) -> str:
        """The next line of the output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def relays(self) -> list[int]:
        """The pids of its children."""
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def finish(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        _, error = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, error


@pytest.fixture
def tools(programs: Path) -> Iterator[Callable[..., Tool]]:
    """Starts tools; they are gone afterwards."""
    started: list[Tool] = []

    def start(*mappings: str) -> Tool:
        started.append(Tool(programs, *mappings))
        return started[-1]

    yield start
    for tool in started:
        tool.process.kill()
        tool.process.communicate(timeout=BOUND_S)


def gone(pids: list[int]) -> bool:
    """Whether none of ``pids`` runs."""
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether ``pid`` exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def backend() -> Iterator[socket.socket]:
    """A listener to forward to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(BOUND_S)
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tool_forwards_until_told_to_stop(
    tools: Callable[..., Tool], backend: socket.socket, number: int
) -> None:
    port = backend.getsockname()[1]
    tool = tools(f"127.0.0.1:0:127.0.0.1:{port}", f"[::1]:0:localhost:{port}/tcp")
    for host, target in (("127.0.0.1", f"127.0.0.1:{port}"), ("::1", f"localhost:{port}")):
        where, _, to = tool.line().removeprefix("listening on ").partition(" -> ")
        assert to == target
        chosen = int(where.rpartition(":")[2])
        with socket.create_connection((host, chosen), BOUND_S) as client:
            if host == "::1" and socket.getaddrinfo("localhost", 1)[0][4][0] == "::1":
                continue  # the backend listens on IPv4 only
            accepted, _ = backend.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
    relays = tool.relays()
    assert len(relays) == 2
    tool.process.send_signal(number)
    code, _ = tool.finish()
    assert code == 0
    assert gone(relays)


def test_tool_takes_its_relays_along(tools: Callable[..., Tool], backend: socket.socket) -> None:
    tool = tools(f"127.0.0.1:0:127.0.0.1:{backend.getsockname()[1]}")
    assert tool.line().startswith("listening on 127.0.0.1:")
    relays = tool.relays()
    tool.process.kill()
    eventually(lambda: gone(relays), "the relays die with the tool")


def test_tool_ends_when_a_relay_does(tools: Callable[..., Tool], backend: socket.socket) -> None:
    tool = tools(*[f"127.0.0.1:0:127.0.0.1:{backend.getsockname()[1]}"] * 2)
    lines = [tool.line(), tool.line()]
    relays = tool.relays()
    os.kill(relays[0], signal.SIGKILL)
    code, error = tool.finish()
    assert code == 1
    what = lines[0].removeprefix("listening on ")
    assert error == f"portproxy: the relay of {what} has ended by SIGKILL\n"
    assert gone(relays)


def test_tool_names_a_busy_port(tools: Callable[..., Tool], backend: socket.socket) -> None:
    port = backend.getsockname()[1]
    tool = tools(f"127.0.0.1:0:127.0.0.1:{port}", f"127.0.0.1:{port}:127.0.0.1:{port}")
    code, error = tool.finish()
    assert code == 1
    assert error == f"portproxy: cannot listen on 127.0.0.1:{port}: address already in use\n"


@pytest.mark.parametrize("mapping", ["80", "web:80:h:80", "80:h:80/udp"])
def test_tool_refuses_what_is_no_mapping(tools: Callable[..., Tool], mapping: str) -> None:
    code, error = tools(mapping).finish()
    assert code == 2
    assert error.startswith(f"portproxy: {mapping!r}")
    assert error.count("\n") == 1


def test_tool_needs_a_mapping(tools: Callable[..., Tool]) -> None:
    code, error = tools().finish()
    assert code == 2
    assert error.count("\n") == 1
