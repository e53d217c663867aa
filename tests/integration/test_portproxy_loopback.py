"""The kernel's forwarding of connections to 127.0.0.0/8, and what it opens for that and closes."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portproxy import localnet
from tests.integration.containerd import scripts
from tests.integration.networks import (
    CLIENT,
    CONTAINER,
    CONTAINER6,
    HOST_TO_CLIENT,
    HOST_TO_CONTAINER,
    Network,
    ip,
    network,
)
from tests.integration.relays import BOUND_S, eventually
from tests.integration.tool import ROOT, Echo, Tool, says

__all__ = ["network"]

Run = Callable[..., Tool]
PORT, BEHIND = 8080, 80
ARGUMENTS = ("--loopback", "-p", f"{PORT}:{CONTAINER}:{BEHIND}")
LOOPBACK = ("127.0.0.1", PORT)


@pytest.fixture
def run(network: Network, tmp_path: Path) -> Iterator[Run]:
    """Starts tools in the host's namespace; they are gone afterwards."""
    started: list[Tool] = []

    def start(*options: str, first: tuple[str, ...] = ()) -> Tool:
        control = tmp_path / f"control{len(started)}"
        tool = Tool(
            scripts().absolute(), *options, control=control, netns=network.host, first=first
        )
        started.append(tool)
        tool.line()
        tool.children()
        return tool

    yield start
    for tool in started:
        tool.end()


@contextlib.contextmanager
def served(network: Network, at: str = CONTAINER) -> Iterator[Echo]:
    """A backend in the container."""
    backend = network.within(network.container, lambda: Echo("it", at=(at, BEHIND)))
    try:
        yield backend
    finally:
        backend.end()


def route_localnet(network: Network) -> dict[str, bool]:
    """The sysctl of each interface of the host's namespace."""

    def read() -> dict[str, bool]:
        found = localnet.SETTINGS.glob("*/route_localnet")
        return {each.parent.name: each.read_text().strip() == "1" for each in found}

    return network.within(network.host, read)


def opened(network: Network) -> list[str]:
    return sorted(name for name, is_open in route_localnet(network).items() if is_open)


def open_by_hand(network: Network, name: str = "b0") -> None:
    network.within(network.host, lambda: localnet.open_up([name]))


def from_host(network: Network, to: tuple[str, int] = LOOPBACK) -> str:
    return network.within(network.host, lambda: says(to))


def by_data_plane(tool: Tool) -> int:
    """How many connections the data plane has had."""
    return sum(each["accepted"] for each in tool.status()["mappings"])


def nft(network: Network, text: str) -> str:
    """What nft in the host's namespace says to a text."""
    command = ["nsenter", f"--net=/run/netns/{network.host}", "nft", "-f", "-"]
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, check=True, timeout=BOUND_S
    )
    return done.stdout


def rules(network: Network) -> str:
    return nft(network, "list ruleset")


@pytest.mark.parametrize("mode", ["nft", "auto"])
def test_loopback_connections_go_through_the_kernel(network: Network, run: Run, mode: str) -> None:
    with served(network) as backend:
        tool = run("--mode", mode, *ARGUMENTS)
        assert opened(network) == ["b0"]
        before = by_data_plane(tool)
        for address in ("127.0.0.1", "127.9.8.7"):
            assert from_host(network, (address, PORT)) == "it"
            assert backend.peers[-1] == HOST_TO_CONTAINER
        # The host's own addresses stay visible, and so do clients.
        assert from_host(network, (HOST_TO_CLIENT, PORT)) == "it"
        assert backend.peers[-1] == HOST_TO_CLIENT
        assert network.within(network.client, lambda: says((HOST_TO_CLIENT, PORT))) == "it"
        assert backend.peers[-1] == CLIENT
        assert by_data_plane(tool) == before
        assert tool.stop() == (0, "")
    assert opened(network) == []
    assert rules(network) == ""


def test_without_the_setting_nothing_is_opened(network: Network, run: Run) -> None:
    with served(network):
        tool = run("--mode", "nft", *ARGUMENTS[1:])
        before = by_data_plane(tool)
        assert from_host(network) == "it"
        assert by_data_plane(tool) == before + 1
        assert opened(network) == []
        assert "fence" not in rules(network)


def test_a_mapping_of_a_loopback_address_only(network: Network, run: Run) -> None:
    with served(network) as backend:
        publish = f"127.0.0.5:{PORT}:{CONTAINER}:{BEHIND}"
        tool = run("--mode", "nft", "--loopback", "-p", publish)
        assert from_host(network, ("127.0.0.5", PORT)) == "it"
        assert backend.peers[-1] == HOST_TO_CONTAINER
        assert by_data_plane(tool) == 0
        with pytest.raises(ConnectionRefusedError):
            from_host(network)
        with pytest.raises(ConnectionRefusedError):
            from_host(network, (HOST_TO_CLIENT, PORT))
        assert tool.stop() == (0, "")


def test_a_backend_that_is_the_host_needs_nothing_opened(network: Network, run: Run) -> None:
    backend = network.within(network.host, lambda: Echo("own", at=(HOST_TO_CLIENT, BEHIND)))
    try:
        tool = run("--mode", "nft", "--loopback", "-p", f"{PORT}:{HOST_TO_CLIENT}:{BEHIND}")
        before = by_data_plane(tool)
        assert from_host(network) == "own"
        assert by_data_plane(tool) == before
        assert opened(network) == []
        assert tool.stop() == (0, "")
    finally:
        backend.end()


def test_datagrams(network: Network, run: Run) -> None:
    def made(family: int = socket.AF_INET) -> socket.socket:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(BOUND_S)
        return made

    with (
        network.within(network.container, made) as backend,
        network.within(network.host, made) as client,
    ):
        backend.bind((CONTAINER, BEHIND))
        tool = run("--mode", "nft", "--loopback", "-p", f"{PORT}:{CONTAINER}:{BEHIND}/udp")
        client.connect(LOOPBACK)
        for text in (b"one", b"two"):
            client.send(text)
            data, seen = backend.recvfrom(100)
            assert (data, seen[0]) == (text, HOST_TO_CONTAINER)
            backend.sendto(b"answer", seen)
            assert client.recv(100) == b"answer"
        assert tool.stop() == (0, "")


def test_ipv6_loopback_stays_with_the_data_plane(network: Network, run: Run) -> None:
    with contextlib.ExitStack() as ending:
        backend = network.within(
            network.container, lambda: Echo("six", socket.AF_INET6, (CONTAINER6, BEHIND))
        )
        ending.callback(backend.end)
        tool = run("--mode", "nft", "--loopback", "-p", f"[::]:{PORT}:[{CONTAINER6}]:{BEHIND}")
        before = by_data_plane(tool)
        assert network.within(network.host, lambda: says(("::1", PORT), socket.AF_INET6)) == "six"
        assert by_data_plane(tool) == before + 1
        assert opened(network) == []


# --- What is open is fenced ----------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["container", "client"])
@pytest.mark.parametrize(("source", "to"), [("", "127.0.0.5"), ("127.0.0.9", "")])
def test_neighbours_neither_reach_loopback_services_nor_seem_to_be_there(
    network: Network, run: Run, inside: str, source: str, to: str
) -> None:
    """Both interfaces are open, one by us and one by hand; without the fence they get through."""
    name, gateway = {
        "container": (network.container, HOST_TO_CONTAINER),
        "client": (network.client, HOST_TO_CLIENT),
    }[inside]
    open_by_hand(network, "c0")
    # The neighbour sends what is for 127.0.0.5 to the host in place of itself.
    network.within(name, lambda: localnet.open_up(["eth0"]))
    ip("-n", name, "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
    ip("-n", name, "route", "add", "127.0.0.5", "via", gateway, "dev", "eth0", "onlink")
    ip("-n", name, "addr", "add", "127.0.0.9/32", "dev", "lo")

    def send(text: bytes, source: str, to: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            client.sendto(text, (to, 5353))

    def serves() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((to, 5353))
        made.settimeout(BOUND_S)
        return made

    nft(network, WATCH)
    with served(network), network.within(network.host, serves) as server:
        open_by_hand(network, "b0")
        network.within(name, lambda: send(b"outside", source, to or gateway))
        assert server.recv(100) == b"outside"  # so it is without a fence
        network.within(network.host, lambda: localnet.close(["b0"]))
        came = seen_from_outside(network)
        tool = run("--mode", "nft", *ARGUMENTS)
        assert opened(network) == ["b0", "c0"]
        network.within(name, lambda: send(b"outside", source, to or gateway))
        eventually(lambda: seen_from_outside(network) > came, "it did not come")
        # It is there, and was not let in before what comes now.
        network.within(network.host, lambda: send(b"inside", "127.0.0.1", to or "127.0.0.1"))
        assert server.recv(100) == b"inside"
        assert tool.stop() == (0, "")
    assert opened(network) == ["c0"]


# Counts, in front of the fence, what should not come in.
WATCH = """table ip watch { chain w { type filter hook prerouting priority -301;
    iifname != "lo" ip daddr 127.0.0.0/8 counter
    iifname != "lo" ip saddr 127.0.0.0/8 counter
}; }"""


def seen_from_outside(network: Network) -> int:
    return sum(int(number) for number in re.findall(r"counter packets (\d+)", rules(network)))


# --- What was opened is closed -------------------------------------------------------------------


def test_what_is_open_already_stays_open(network: Network, run: Run) -> None:
    open_by_hand(network)
    with served(network):
        tool = run("--mode", "nft", *ARGUMENTS)
        assert from_host(network) == "it"
        assert tool.stop() == (0, "")
    assert opened(network) == ["b0"]


def test_it_is_closed_with_the_mapping(network: Network, run: Run) -> None:
    with served(network):
        tool = run("--mode", "nft", "-p", f"{PORT + 1}:{CONTAINER}:{BEHIND}")
        assert opened(network) == []
        options = ("--set", "mode=nft", "--set", "loopback=true")
        tool.ask("add", f"{PORT}:{CONTAINER}:{BEHIND}", *options)
        assert opened(network) == ["b0"]
        assert from_host(network) == "it"
        tool.ask("rm", f"tcp/0.0.0.0:{PORT}")
        assert opened(network) == []
        assert "fence" not in rules(network)
        assert tool.stop() == (0, "")


def test_the_next_start_closes_what_a_crash_has_left(network: Network, run: Run) -> None:
    with served(network):
        tool = run("--mode", "nft", *ARGUMENTS)
        tool.end()
        assert opened(network) == ["b0"]
        assert "fence" in rules(network)
        again = run("--mode", "nft", *ARGUMENTS[1:])
        assert opened(network) == []
        again.end()
        # And one that opens it again closes it in the end.
        run("--mode", "nft", *ARGUMENTS).end()
        last = run("--mode", "nft", *ARGUMENTS)
        assert opened(network) == ["b0"]
        code, error = last.stop()
        assert (code, error.count("removed the nft table")) == (0, 1)
    assert opened(network) == []
    assert rules(network) == ""


def test_an_interface_that_has_got_another_name_is_closed(network: Network, run: Run) -> None:
    with served(network):
        tool = run("--mode", "nft", *ARGUMENTS)
        for word in (("down",), ("name", "b1"), ("up",)):
            ip("-n", network.host, "link", "set", "b1" if word == ("up",) else "b0", *word)
        assert opened(network) == ["b1"]
        assert tool.stop() == (0, "")
    assert opened(network) == []


def test_the_last_of_two_closes(network: Network, run: Run) -> None:
    with served(network):
        one = run("--mode", "nft", *ARGUMENTS)
        publish = f"{PORT + 1}:{CONTAINER}:{BEHIND}"
        other = run("--mode", "nft", "--loopback", "-p", publish)
        assert one.stop() == (0, "")
        assert opened(network) == ["b0"]
        assert from_host(network, ("127.0.0.1", PORT + 1)) == "it"
        assert other.stop() == (0, "")
    assert opened(network) == []


def test_instances_that_come_and_go_at_once_do_not_close_it_for_each_other(
    network: Network,
) -> None:
    """Each finds it open after it has opened it, however often; the last one leaves it closed."""
    script = (
        "from portproxy import localnet; from portproxy.nft import Forward, Kernel\n"
        "kernel = Kernel()\n"
        f"wanted = [Forward('tcp', '', 80, '{CONTAINER}', 80, loopback=True)]\n"
        "for _ in range(25):\n"
        "    kernel.put(wanted, {'b0'})\n"
        "    assert localnet.is_open('b0')\n"
        "    kernel.remove()\n"
    )
    enter = ["nsenter", f"--net=/run/netns/{network.host}", sys.executable, "-c", script]
    some = [subprocess.Popen(enter, stderr=subprocess.PIPE, cwd=ROOT) for _ in range(3)]
    try:
        said = [each.communicate(timeout=3 * BOUND_S)[1] for each in some]
    finally:
        for each in some:
            each.kill()
    assert said == [b"", b"", b""]
    assert opened(network) == []
    assert rules(network) == ""


def test_connections_go_on_while_it_drains(network: Network, run: Run) -> None:
    def connected(port: int) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port), BOUND_S)
        assert made.recv(2) == b"it"
        return made

    with served(network):
        tool = run("--mode", "nft", "--drain", "30s", *ARGUMENTS)
        # The data plane does not wait for what the kernel forwards: it needs one of its own.
        tool.ask("add", f"{PORT + 1}:{CONTAINER}:{BEHIND}")
        with (
            network.within(network.host, lambda: connected(PORT)) as client,
            network.within(network.host, lambda: connected(PORT + 1)),
        ):
            tool.process.send_signal(signal.SIGTERM)
            eventually(lambda: f"tcp . {PORT} :" not in rules(network), "the rules stay")
            assert opened(network) == ["b0"]
            client.sendall(b"more")
            assert client.recv(4) == b"more"
        assert tool.finish() == (0, "")
    assert opened(network) == []
    assert rules(network) == ""


def test_the_self_test_tries_a_loopback_connection(network: Network, run: Run) -> None:
    nft(
        network,
        "table ip wall { chain w { type filter hook output priority 0; "
        f"ip daddr {CONTAINER} ip saddr 127.0.0.0/8 drop; }}; }}",
    )
    with served(network):
        _, error = run("--mode", "nft", *ARGUMENTS).stop()
    assert f"no connection from 127.0.0.1 reaches {CONTAINER} port {BEHIND}" in error


def test_what_cannot_be_opened_is_said_once(network: Network, run: Run) -> None:
    """/proc/sys is read-only for the tool, as in a container."""
    read_only = ("unshare", "-m", "sh", "-c", READ_ONLY, "sh")
    with served(network):
        tool = run("--mode", "nft", *ARGUMENTS, first=read_only)
        before = by_data_plane(tool)
        assert from_host(network) == "it"
        assert by_data_plane(tool) == before + 1
        tool.ask("add", f"{PORT + 1}:{CONTAINER}:{BEHIND}", "--set", "mode=nft")
        said = "net.ipv4.conf.b0.route_localnet is 0 and cannot be written here"
        publish = f"127.0.0.5:{PORT + 2}:{CONTAINER}:{BEHIND}"
        options = ("--set", "mode=nft", "--set", "loopback=true")
        assert said in tool.ask("add", publish, *options, code=1)
        code, error = tool.stop()
        assert (code, error.count(said)) == (0, 1)
    assert opened(network) == []


READ_ONLY = 'mount --make-rprivate / && mount --bind -o ro /proc/sys /proc/sys && exec "$@"'
