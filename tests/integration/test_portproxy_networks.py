"""The tool across network namespaces, after containers that move, and with the kernel's help."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.containerd import scripts
from tests.integration.networks import (
    CLIENT,
    CLIENT6,
    CONTAINER,
    CONTAINER6,
    HOST_TO_CLIENT,
    HOST_TO_CLIENT6,
    HOST_TO_CONTAINER,
    Network,
    ip,
    network,
)
from tests.integration.relays import BOUND_S, eventually
from tests.integration.tool import Echo, Tool, says

__all__ = ["network"]

Run = Callable[..., Tool]
PORT, BEHIND = 8080, 80


@pytest.fixture
def run(network: Network, tmp_path: Path) -> Iterator[Run]:
    """Starts tools in the host's namespace; they are gone afterwards."""
    started: list[Tool] = []

    def start(*options: str, wait: bool = True, netns: str = network.host) -> Tool:
        tool = Tool(scripts().absolute(), *options, control=tmp_path / "control", netns=netns)
        started.append(tool)
        if wait:
            tool.line()
            tool.children()
        return tool

    yield start
    for tool in started:
        tool.end()


@contextlib.contextmanager
def served(
    network: Network, name: str, address: str = CONTAINER, where: str = ""
) -> Iterator[Echo]:
    """An Echo in the container's namespace, or another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = network.within(
        where or network.container, lambda: Echo(name, family, at=(address, BEHIND))
    )
    try:
        yield made
    finally:
        made.end()


def from_client(network: Network, address: str = HOST_TO_CLIENT) -> str:
    """What the client gets from the host's port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return network.within(network.client, lambda: says((address, PORT), family))


# --- Namespaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["name", "path", "pid"])
def test_a_backend_in_another_namespace(network: Network, run: Run, form: str) -> None:
    """The container listens on its loopback address only, which no route leads to."""
    with served(network, "inner", "127.0.0.1"), holding(network.container) as pid:
        forms = {
            "name": f"netns:{network.container}",
            "path": f"netns:/run/netns/{network.container}",
            "pid": f"pid:{pid}",
        }
        run("-p", f"{PORT}:{forms[form]}!127.0.0.1:{BEHIND}", "--workers", "2")
        # Both workers get there.
        assert {from_client(network) for _ in range(10)} == {"inner"}


def test_a_listener_in_another_namespace(network: Network, run: Run) -> None:
    with served(network, "outer"):
        run("-p", f"netns:{network.client}!127.0.0.1:{PORT}:{CONTAINER}:{BEHIND}", "--workers", "2")
        assert {from_client(network, "127.0.0.1") for _ in range(10)} == {"outer"}


@contextlib.contextmanager
def holding(netns: str) -> Iterator[int]:
    """A process in a namespace."""
    process = subprocess.Popen(["nsenter", f"--net=/run/netns/{netns}", "sleep", "600"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(BOUND_S)


# --- Many ports ---------------------------------------------------------------------------------


def test_ten_thousand_ports(network: Network, run: Run) -> None:
    """In a namespace, where nobody else has one of them."""
    with served(network, "it"):
        tool = run("-p", f"20000-29999:{CONTAINER}:{BEHIND}", "--workers", "2")
        for port in (20000, 24567, 29999):
            got = network.within(network.client, lambda: says((HOST_TO_CLIENT, port)))  # noqa: B023
            assert got == "it"
        pids = (tool.process.pid, *tool.children())
        assert len(pids) == 5
        assert sum(private_kb(pid) for pid in pids) <= 20 * 1024


def private_kb(pid: int) -> int:
    """Memory that a process shares with nobody."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


# --- Containers ---------------------------------------------------------------------------------


def test_a_container_is_found_and_followed(network: Network, run: Run) -> None:
    with holding(network.container) as pid, served(network, "first"):
        # nsenter becomes sleep once it is there.
        eventually(lambda: is_in(pid, network.container), "the process is in the namespace")
        tool = run(
            *("-p", f"{PORT}:container:{BEHIND}", "--container-pid", f"{pid}:eth0"),
        )
        assert from_client(network) == "first"
        assert CONTAINER in json.dumps(tool.status()["mappings"][0]["where"])
        moved = "10.77.2.9"
        ip("-n", network.container, "addr", "add", f"{moved}/24", "dev", "eth0")
        with served(network, "moved", moved):
            ip("-n", network.container, "addr", "del", f"{CONTAINER}/24", "dev", "eth0")
            ip("-n", network.container, "addr", "replace", f"{moved}/24", "dev", "eth0")
            ip("-n", network.container, "route", "replace", "default", "via", HOST_TO_CONTAINER)
            eventually(lambda: moved in tool.status()["mappings"][0]["where"], "it is followed")
            assert from_client(network) == "moved"


def test_a_container_that_is_replaced_is_followed(
    network: Network, run: Run, tmp_path: Path
) -> None:
    """Its pid is in a file, which its successor, in the client's namespace here, writes anew."""
    file = tmp_path / "pid"
    with (
        holding(network.container) as old,
        holding(network.client) as new,
        served(network, "old"),
        served(network, "new", CLIENT, network.client),
    ):
        eventually(lambda: is_in(old, network.container) and is_in(new, network.client), "there")
        file.write_text(f"{old}\n")
        config = tmp_path / "ports.toml"
        config.write_text(
            f'[[mapping]]\npublish = "{PORT}:container:{BEHIND}"\ncontainer_pid = "{file}:eth0"\n'
        )
        tool = run("--config", str(config))
        assert from_client(network) == "old"
        file.write_text(f"{new}\n")
        eventually(lambda: CLIENT in tool.status()["mappings"][0]["where"], "it is followed")
        assert from_client(network) == "new"


def test_a_container_that_is_not_there_is_said_to_be(run: Run) -> None:
    options = ("-p", f"{PORT}:container:{BEHIND}", "--container-pid", "4194305")
    code, error = run(*options, wait=False).finish()
    assert (code, error) == (1, "portproxy: 4194305 is no process that runs\n")


def is_in(pid: int, netns: str) -> bool:
    """Whether a process is in a namespace."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{netns}").st_ino
    return False


# --- The kernel ---------------------------------------------------------------------------------


def tables(network: Network) -> list[str]:
    """The nft tables in the host's namespace."""
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{network.host}", "nft", "list", "tables"],
        capture_output=True,
        text=True,
        check=True,
        timeout=BOUND_S,
    )
    return done.stdout.splitlines()


def nft(network: Network, text: str) -> None:
    """Has nft in the host's namespace carry out a text."""
    command = ["nsenter", f"--net=/run/netns/{network.host}", "nft", "-f", "-"]
    subprocess.run(command, input=text, text=True, check=True, timeout=BOUND_S)


@pytest.mark.parametrize(("mode", "seen"), [("nft", CLIENT), ("user", HOST_TO_CONTAINER)])
def test_who_forwards(network: Network, run: Run, mode: str, seen: str) -> None:
    """The kernel keeps the client's address; the data plane cannot."""
    with served(network, "it") as backend:
        tool = run("--mode", mode, "-p", f"{PORT}:{CONTAINER}:{BEHIND}")
        assert from_client(network) == "it"
        assert peer_of(backend) == seen
        # What leaves 127.0.0.1 cannot come back: the data plane serves it in either mode.
        assert network.within(network.host, lambda: says(("127.0.0.1", PORT))) == "it"
        assert tool.stop() == (0, "")
        assert tables(network) == []


def peer_of(backend: Echo) -> str:
    """Who has connected last."""
    return backend.peers[-1]


def test_the_kernel_forwards_ipv6_ranges_and_single_addresses(network: Network, run: Run) -> None:
    with served(network, "six", CONTAINER6) as six, served(network, "four") as four:
        run(
            *("--mode", "nft"),
            *("-p", f"[{HOST_TO_CLIENT6}]:{PORT}:[{CONTAINER6}]:{BEHIND}"),
            *(
                "-p",
                f"{HOST_TO_CLIENT}:{PORT - 1}-{PORT + 1}:{CONTAINER}:{BEHIND - 1}-{BEHIND + 1}",
            ),
        )
        assert from_client(network, HOST_TO_CLIENT6) == "six"
        assert peer_of(six) == CLIENT6
        assert from_client(network) == "four"
        assert peer_of(four) == CLIENT


def test_auto_leaves_to_the_data_plane_what_the_kernel_cannot(network: Network, run: Run) -> None:
    with served(network, "it") as backend:
        # IPv6 outside, IPv4 inside.
        run("--mode", "auto", "-p", f"[::]:{PORT}:{CONTAINER}:{BEHIND}")
        assert from_client(network, HOST_TO_CLIENT6) == "it"
        assert peer_of(backend) == HOST_TO_CONTAINER


def test_nft_says_what_the_kernel_cannot(network: Network, run: Run) -> None:
    options = ("--mode", "nft", "-p", f"[::]:{PORT}:{CONTAINER}:{BEHIND}")
    code, error = run(*options, wait=False).finish()
    assert code == 1
    assert "the kernel does not translate between IPv4 and IPv6" in error
    assert tables(network) == []


def test_the_next_start_cleans_up_after_a_crash(network: Network, run: Run) -> None:
    with served(network, "it"):
        options = ("--mode", "auto", "-p", f"{PORT}:{CONTAINER}:{BEHIND}")
        tool = run(*options)
        left = tables(network)
        assert len(left) == 1
        tool.end()
        # Somebody else's tables are not ours to touch.
        nft(network, "table ip other { }")
        assert {*left, "table ip other"} == set(tables(network))
        again = run(*options)
        after = tables(network)
        assert len(after) == 2
        assert not set(left) & set(after)
        _, error = again.stop()
        assert "removed the nft table" in error
        assert tables(network) == ["table ip other"]


def test_the_self_test_says_what_is_in_the_way(network: Network, run: Run) -> None:
    nft(
        network,
        "table ip fence { chain f { type filter hook forward priority 0; policy drop; }; }",
    )
    with served(network, "it"):
        tool = run("--mode", "auto", "-p", f"{PORT}:{CONTAINER}:{BEHIND}")
        _, error = tool.stop()
    assert "chain f of table fence drops what is forwarded" in error


def test_datagrams_follow_a_mapping_at_once(network: Network, run: Run, tmp_path: Path) -> None:
    """The kernel would go on with a flow that it knows: it is forgotten with the old target."""
    other = "10.77.2.9"
    ip("-n", network.container, "addr", "add", f"{other}/24", "dev", "eth0")

    def bound(address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, BEHIND))
        made.settimeout(BOUND_S)
        return made

    def connected() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.connect((HOST_TO_CLIENT, PORT))
        made.settimeout(BOUND_S)
        return made

    config = tmp_path / "ports.toml"
    text = f'[[mapping]]\npublish = "{PORT}:{{}}:{BEHIND}/udp"\nmode = "nft"\n'
    with (
        network.within(network.container, lambda: bound(CONTAINER)) as one,
        network.within(network.container, lambda: bound(other)) as two,
        network.within(network.client, connected) as client,
    ):
        config.write_text(text.format(CONTAINER))
        tool = run("--config", str(config))
        for backend, address in ((one, CONTAINER), (two, other)):
            config.write_text(text.format(address))
            tool.ask("reload")
            client.send(address.encode())
            data, seen = backend.recvfrom(100)
            assert (data, seen) == (address.encode(), client.getsockname())
            backend.sendto(b"answer", seen)
            assert client.recv(100) == b"answer"
