"""The ten recipes of docs/portproxy.md, typed as they stand there, between namespaces.

The container has the recipes' address.  Only what is a file or a process of this machine is
replaced: a socket's path, a pid, a container's id.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.containerd import scripts
from tests.integration.networks import Network, ip
from tests.integration.relays import BOUND_S, eventually
from tests.integration.test_portproxy_networks import holding, is_in
from tests.integration.tool import Echo, Tool, says

MANUAL = (Path(__file__).resolve().parents[2] / "docs/portproxy.md").read_text()
RECIPES = {
    int(number): re.findall(r"`((?:portproxy )?-[^`]*|portproxy status[^`]*)`", text)
    for number, text in re.findall(r"^(\d+)\. (.*)$", MANUAL, re.MULTILINE)
}
HOST, CONTAINER = "10.0.0.1", "10.0.0.2"
Where = tuple[str, int]


class Kitchen:
    """The namespaces, a folder, and the backends and tools of one recipe."""

    def __init__(self, network: Network, folder: Path, stack: contextlib.ExitStack) -> None:
        self.network = network
        self.folder = folder
        self.stack = stack
        ip("-n", network.container, "addr", "add", f"{CONTAINER}/24", "dev", "eth0")
        ip("-n", network.host, "addr", "add", f"{HOST}/24", "dev", "b0")

    def serve(self, name: str, port: int, address: str = CONTAINER) -> Echo:
        """An Echo in the container."""
        made = self.network.within(self.network.container, lambda: Echo(name, at=(address, port)))
        self.stack.callback(made.end)
        return made

    def cook(self, number: int, which: int = 0, **replaced: str) -> Tool:
        """Types a recipe's command, and waits until it serves."""
        text = RECIPES[number][which]
        for old, new in {"/run/": f"{self.folder}/", **replaced}.items():
            text = text.replace(old, new)
        words = shlex.split(text.removeprefix("portproxy "))
        tool = Tool(scripts().absolute(), *words, netns=self.network.host)
        self.stack.callback(tool.end)
        assert tool.line().startswith("listening on ")
        tool.children()
        return tool

    def hears(self, where: Where, family: int = socket.AF_INET) -> str:
        """The name of the backend that the host reaches there."""
        return self.network.within(self.network.host, lambda: says(where, family))


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Kitchen]:
    """Everything is gone afterwards."""
    with contextlib.ExitStack() as stack:
        network = Network()
        stack.callback(network.end)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)  # the data plane is nobody
        yield Kitchen(network, tmp_path, stack)


def test_there_are_ten() -> None:
    assert list(RECIPES) == list(range(1, 11))
    assert all(RECIPES.values())


def test_1_a_port(kitchen: Kitchen) -> None:
    kitchen.serve("web", 80)
    kitchen.cook(1)
    assert kitchen.hears((HOST, 8080)) == "web"


def test_2_one_address_and_two_families(kitchen: Kitchen) -> None:
    kitchen.serve("web", 80)
    kitchen.cook(2)
    assert kitchen.hears(("::1", 8080), socket.AF_INET6) == "web"
    with pytest.raises(ConnectionRefusedError):
        kitchen.hears((HOST, 8080))


def test_3_both_protocols(kitchen: Kitchen) -> None:
    kitchen.serve("dns", 53)

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((CONTAINER, 53))
        made.settimeout(BOUND_S)
        return made

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(BOUND_S)
            asking.sendto(b"question", (HOST, 53))
            return asking.recv(100)

    with kitchen.network.within(kitchen.network.container, bound) as server:
        tool = kitchen.cook(3)
        assert tool.line().endswith("/udp")
        assert kitchen.hears((HOST, 53)) == "dns"

        def answer() -> None:
            data, peer = server.recvfrom(100)
            server.sendto(data[::-1], peer)

        thread = threading.Thread(target=answer)
        thread.start()
        assert kitchen.network.within(kitchen.network.host, ask) == b"noitseuq"
        thread.join(BOUND_S)


def test_4_ranges(kitchen: Kitchen) -> None:
    kitchen.serve("first", 9000)
    kitchen.serve("last", 9099)
    kitchen.serve("one", 80)
    tool = kitchen.cook(4)
    assert [kitchen.hears((HOST, port)) for port in (9000, 9099)] == ["first", "last"]
    assert tool.stop()[0] == 0
    kitchen.cook(4, 1)
    assert [kitchen.hears((HOST, port)) for port in (9000, 9099)] == ["one", "one"]


def test_5_unix_sockets(kitchen: Kitchen) -> None:
    kitchen.serve("web", 80)
    front = kitchen.folder / "web.sock"
    kitchen.cook(5)
    assert says(str(front), socket.AF_UNIX) == "web"
    behind = kitchen.folder / "postgresql/.s.PGSQL.5432"
    behind.parent.mkdir()
    kitchen.stack.callback(Echo("database", socket.AF_UNIX, str(behind)).end)
    behind.chmod(0o777)
    kitchen.cook(5, 1)
    assert kitchen.hears((HOST, 5432)) == "database"


def test_6_into_a_container(kitchen: Kitchen) -> None:
    """By the pid, which the recipe names too; by its id test_portproxy_docker.py has it."""
    kitchen.serve("inner", 80, "127.0.0.1")
    pid = held(kitchen)
    kitchen.cook(6, **{"container:0123456789ab": f"pid:{pid}"})
    assert kitchen.hears((HOST, 8080)) == "inner"


def test_7_whatever_address_it_has(kitchen: Kitchen) -> None:
    ip("-n", kitchen.network.container, "addr", "del", "10.77.2.2/24", "dev", "eth0")
    kitchen.serve("it", 80)
    kitchen.cook(7, **{"1234": str(held(kitchen))})
    assert kitchen.hears((HOST, 8080)) == "it"


def held(kitchen: Kitchen) -> int:
    """The pid of a process in the container's namespace."""
    pid = kitchen.stack.enter_context(holding(kitchen.network.container))
    eventually(lambda: is_in(pid, kitchen.network.container), "it is in the namespace")
    return pid


def test_8_by_the_kernel(kitchen: Kitchen) -> None:
    backend = kitchen.serve("web", 80)
    kitchen.cook(8)
    network = kitchen.network
    assert network.within(network.client, lambda: says(("10.77.1.1", 8080))) == "web"
    assert backend.peers[-1] == "10.77.1.2"


def test_9_a_limit_a_rule_and_a_header(kitchen: Kitchen) -> None:
    kitchen.serve("", 443)
    kitchen.cook(9)

    def first_bytes(where: Where) -> bytes:
        with socket.create_connection(where, BOUND_S) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as file:
                return file.read()

    host = kitchen.network.host
    got = kitchen.network.within(host, lambda: first_bytes((HOST, 443)))
    assert got.startswith(b"\r\n\r\n\0\r\nQUIT\n!")
    assert got.endswith(b"hello")
    with pytest.raises(ConnectionResetError):  # 127.0.0.1 is not of 10.0.0.0/8
        kitchen.network.within(host, lambda: first_bytes(("127.0.0.1", 443)))


def test_10_watched(kitchen: Kitchen) -> None:
    kitchen.serve("web", 80)
    tool = kitchen.cook(10)
    assert kitchen.hears((HOST, 8080)) == "web"
    line = tool.line()
    assert "reason=fin" in line
    assert f"backend={CONTAINER}:80" in line
    tool.control = kitchen.folder / "pp.sock"
    for word in re.findall(r"status\|ps\|top", RECIPES[10][1])[0].split("|"):
        assert tool.ask(word, *(["--once", "--interval", "10ms"] if word == "top" else []))
    assert json.loads(tool.ask("status", "--json"))["mappings"][0]["accepted"] == 1

    def scraped() -> str:
        with socket.create_connection(("127.0.0.1", 9100), BOUND_S) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            with client.makefile("rb") as file:
                return file.read().decode()

    text = kitchen.network.within(kitchen.network.host, scraped)
    assert 'portproxy_accepted_total{mapping="tcp/0.0.0.0:8080",proto="tcp"} 1.0' in text


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    block = re.search(r"```ini\n(.*?)```", MANUAL, re.DOTALL)
    assert block is not None
    # It must name a program that is there.
    program = str(scripts().absolute() / "portproxy")
    text = block.group(1).replace("/usr/local/bin/portproxy", program)
    unit = tmp_path / "portproxy.service"
    unit.write_text(f"[Unit]\nDescription=ports\n\n{text}")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_S,
    )
    ours = [line for line in done.stderr.splitlines() if "portproxy" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
