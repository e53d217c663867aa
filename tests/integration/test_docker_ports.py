"""Published ports of dockerd 20.10 and 28.5 lead through our relay, and leave nothing behind.

dockerd's rules do not take connections from the host to 127.0.0.1 and ::1: those are the relay's.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.compat.docker_host import PeerDockerd
from tests.compat.peers import Unreachable
from tests.integration.conftest import BOUND_S, Containerd, eventually, mounts_below, processes_of
from tests.integration.docker_ports import Api, dockerd_of, open_ports, rules, within
from tests.integration.dockerd import IMAGE

# The servers are sockets of the test in its namespace.  As PID 1 it would ignore SIGTERM.
PROGRAM = ("--stop-signal", "KILL", IMAGE, "sleep", "100000")
LISTENER_GIVEN_SINCE = 28
RANGE = 100
CYCLES = 200
AT_ONCE = 4
V4, V6 = "127.0.0.1", "::1"


@pytest.fixture(scope="module", params=["installed", "sid"])
def daemon(
    request: pytest.FixtureRequest, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PeerDockerd]:
    """A running dockerd with an image; nothing of it is left afterwards."""
    containerd = Containerd(tmp_path_factory.mktemp("p"), rootfs)
    try:
        started = dockerd_of(request.param, containerd)
    except Unreachable as error:
        pytest.skip(f"NOT TESTED: dockerd of {request.param}: {error}")
    started.space += "-ports"
    try:
        started.make_namespace()
        containerd.start()
        started.start()
        started.import_image(rootfs)
        yield started
    finally:
        started.remove()
    assert processes_of(containerd.home) == {}
    assert mounts_below(containerd.home) == []
    assert not namespace(started).exists()


def namespace(docker: PeerDockerd) -> Path:
    """The network namespace that dockerd is in."""
    return Path("/run/netns") / docker.space


@pytest.fixture
def docker(daemon: PeerDockerd) -> Iterator[PeerDockerd]:
    """The dockerd: each test leaves its ports, rules, relays and interfaces as it found them."""
    before = state(daemon)
    try:
        yield daemon
    finally:
        remove_all(daemon)
    eventually(lambda: not daemon.relays(), "the relays have ended")
    eventually(lambda: daemon.interfaces() == {"lo", "docker0"}, "the veth pairs have gone")
    assert state(daemon) == before


def state(docker: PeerDockerd) -> tuple[set[tuple[str, str]], list[str]]:
    """Open ports and rules."""
    path = str(namespace(docker))
    return open_ports(path), rules(path)


def remove_all(docker: PeerDockerd) -> None:
    """Removes all containers."""
    names = docker.containers()
    if names:
        assert docker.docker("rm", "--force", *names).returncode == 0


def published(docker: PeerDockerd, *ports: str, flags: tuple[str, ...] = ()) -> str:
    """A container with these ports published; its id."""
    words = [word for port in ports for word in ("--publish", port)]
    return docker.started(*flags, *words, *PROGRAM)


def server(
    docker: PeerDockerd, name: str, port: int, kind: int = socket.SOCK_STREAM, host: str = "0.0.0.0"
) -> socket.socket:
    """A server in a container: a socket of ours in its namespace."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.settimeout(BOUND_S)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    return within(network_of(docker, name), make)


def network_of(docker: PeerDockerd, name: str) -> str:
    """The path of a container's network namespace."""
    return f"/proc/{docker.pid(name)}/ns/net"


def connected(
    docker: PeerDockerd, port: int, host: str = V4, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """A socket of the host that is connected to a published port."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        made.settimeout(BOUND_S)
        made.connect((host, port))
        return made

    return docker.inside(make)


def carries(docker: PeerDockerd, listener: socket.socket, port: int, host: str = V4) -> None:
    """A connection to the published port reaches the server, both ways."""
    with connected(docker, port, host) as client:
        client.sendall(b"question")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(BOUND_S)
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert client.recv(100) == b"answer"


def tentative(docker: PeerDockerd) -> str:
    """The addresses that somebody else might have."""
    command = ["ip", "-n", docker.space, "-6", "address", "show", "tentative"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=True)
    return done.stdout


def options(pid: int) -> list[str]:
    """A relay's command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def test_tcp(docker: PeerDockerd) -> None:
    name = published(docker, f"{V4}:21080:80")
    with server(docker, name, 80) as listener:
        for _ in range(3):
            carries(docker, listener, 21080)
    (relay,) = docker.relays()
    assert ("-use-listen-fd" in options(relay)) == (docker.version >= LISTENER_GIVEN_SINCE)


def test_udp(docker: PeerDockerd) -> None:
    name = published(docker, f"{V4}:21053:53/udp")
    with server(docker, name, 53, socket.SOCK_DGRAM) as served:
        clients = [connected(docker, 21053, kind=socket.SOCK_DGRAM) for _ in range(3)]
        for size in (5, 0, 1400, 9000):
            for client in clients:
                client.send(b"q" * size)
                got, seen = served.recvfrom(65536)
                assert got == b"q" * size
                served.sendto(b"a" * size, seen)
                assert client.recv(65536) == b"a" * size
        for client in clients:
            client.close()
    (relay,) = docker.relays()
    assert options(relay)[1:3] == ["-proto", "udp"]


def test_a_range_of_a_hundred_ports(docker: PeerDockerd) -> None:
    name = published(docker, f"{V4}:20000-{20000 + RANGE - 1}:8000-{8000 + RANGE - 1}")
    assert len(docker.relays()) == RANGE

    def listen() -> list[socket.socket]:
        return [socket.create_server(("0.0.0.0", 8000 + at)) for at in range(RANGE)]

    with contextlib.ExitStack() as stack:
        for at, listener in enumerate(within(network_of(docker, name), listen)):
            stack.enter_context(listener).settimeout(BOUND_S)
            carries(docker, listener, 20000 + at)


def test_ipv6_leads_to_a_container_without_it(docker: PeerDockerd) -> None:
    name = published(docker, "21081:80")
    assert sorted(options(pid)[4] for pid in docker.relays()) == ["0.0.0.0", "::"]
    with server(docker, name, 80) as listener:
        carries(docker, listener, 21081, V6)
        carries(docker, listener, 21081, V4)


def test_ipv6_leads_to_a_container_with_it(docker: PeerDockerd) -> None:
    made = docker.docker("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "six")
    assert made.returncode == 0, made.stderr
    try:
        name = published(docker, f"[{V6}]:21082:80", flags=("--network", "six"))
        # Until the bridge has its address for sure, the kernel would send from ::1.
        eventually(lambda: not tentative(docker), "the kernel has made sure of the addresses")
        with server(docker, name, 80, host="::") as listener:
            carries(docker, listener, 21082, V6)
        (relay,) = docker.relays()
        assert options(relay)[8].startswith("fd00:77::")
    finally:
        remove_all(docker)
        assert docker.docker("network", "rm", "six").returncode == 0


def test_restart_although_connections_are_in_time_wait(docker: PeerDockerd) -> None:
    name = published(docker, f"{V4}:21083:80")
    for _ in range(3):
        with server(docker, name, 80) as listener:
            client = connected(docker, 21083)
            client.sendall(b"x")
            accepted, _ = listener.accept()
            assert accepted.recv(1) == b"x"
            accepted.close()
            assert client.recv(1) == b""  # the port's side closes first, and waits
            client.close()
            carries(docker, listener, 21083)
        (before,) = docker.relays()
        assert docker.docker("restart", name).returncode == 0
        (after,) = docker.relays()
        assert after != before
    with server(docker, name, 80) as listener:
        carries(docker, listener, 21083)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_busy_port_is_the_error_of_docker_run(docker: PeerDockerd, proto: str) -> None:
    kind = socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM

    def occupy() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.bind((V4, 21084))
        if proto == "tcp":
            made.listen()
        return made

    with docker.inside(occupy):
        done = docker.run("--rm", "--publish", f"{V4}:21084:80/{proto}", IMAGE, "true")
    assert done.returncode == 125
    assert "address already in use" in done.stderr
    assert f"{V4}:21084" in done.stderr
    assert docker.relays() == []
    done = docker.run("--rm", "--publish", f"{V4}:21084:80/{proto}", IMAGE, "true")
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(600)
def test_starts_and_stops_leave_nothing(docker: PeerDockerd) -> None:
    assert docker.process is not None
    pid = docker.process.pid
    before = children(pid)

    def cycle(number: int) -> None:
        port = 20100 + number
        made = docker.docker(
            *("create", *docker.flags, "--publish", f"{V4}:{port}:80"),
            *("--publish", f"{V4}:{port}:53/udp", *PROGRAM),
        )
        assert made.returncode == 0, made.stderr
        name = made.stdout.strip()
        with contextlib.closing(Api(docker.host.removeprefix("unix://"))) as api:
            for _ in range(CYCLES // AT_ONCE):
                api.post(f"/containers/{name}/start")
                # The relay accepts; nobody serves behind it.
                with connected(docker, port) as client:
                    assert client.recv(1) == b""
                api.post(f"/containers/{name}/stop?t={BOUND_S}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(cycle, range(AT_ONCE)))
    assert docker.relays() == []
    eventually(lambda: children(pid) <= before, "dockerd has no new child")


def children(pid: int) -> set[int]:
    """The children of a process, those too that nobody has waited for."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.add(int(entry.name))
    return found
