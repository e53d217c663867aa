"""The tool and a real Docker's containers: found by id or pid, followed, and missed when gone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import BOUND_S, eventually
from tests.integration.containerd import scripts
from tests.integration.dockerd import IMAGE, Dockerd, get
from tests.integration.test_docker import daemon, docker  # noqa: F401
from tests.integration.tool import Tool

Run = Callable[..., Tool]
# On its loopback only, which no route leads to.
INWARD = (IMAGE, "sh", "-c", "echo in >/www/index.html; exec httpd -f -p 127.0.0.1:80 -h /www")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts tools that serve; they are gone afterwards."""
    started: list[Tool] = []

    def start(*options: str, netns: str = "") -> Tool:
        started.append(
            Tool(scripts().absolute(), *options, control=tmp_path / "control", netns=netns)
        )
        return started[-1]

    yield start
    for tool in started:
        tool.end()


def page(port: int) -> str:
    """What a web server answers; "" if nobody does."""
    try:
        with socket.create_connection(("127.0.0.1", port), BOUND_S) as connection:
            return get(connection)
    except OSError:
        return ""


@pytest.mark.parametrize("digits", [12, 64])
def test_a_container_is_found_by_its_id_and_followed_when_it_starts_again(
    docker: Dockerd,  # noqa: F811
    run: Run,
    digits: int,
) -> None:
    container = docker.started(*INWARD)
    tool = run("-p", f"127.0.0.1:0:container:{container[:digits]}!127.0.0.1:80")
    port = tool.port()
    eventually(lambda: page(port) == "in\n", "the container answers")
    before = docker.pid(container)
    assert docker.docker("restart", "--time", "0", container).returncode == 0
    assert docker.pid(container) != before
    eventually(lambda: page(port) == "in\n", "its successor is found")
    # Without it there is nobody, but the port is held and the tool goes on.
    assert docker.docker("stop", "--time", "0", container).returncode == 0
    eventually(lambda: page(port) == "", "nobody answers")
    assert tool.status()["ready"] == "yes"
    assert docker.docker("start", container).returncode == 0
    eventually(lambda: page(port) == "in\n", "it is found when it comes again")
    assert tool.stop()[0] == 0


def test_a_container_that_nobody_knows_is_named(run: Run) -> None:
    code, error = run("-p", "127.0.0.1:0:container:0123456789ab!127.0.0.1:80").finish()
    assert (code, error.count("\n")) == (1, 1)
    assert "no process belongs to a container 0123456789ab; does it run?" in error


def test_the_successor_of_a_container_is_followed_by_the_file_of_its_pid(
    docker: Dockerd,  # noqa: F811
    run: Run,
    tmp_path: Path,
) -> None:
    """Docker gives the successor another address, for the first still has its own."""
    serving = ("sh", "-c", "hostname >/www/index.html; exec httpd -f -p 80 -h /www")
    first = docker.started("--hostname", "first", IMAGE, *serving)
    second = docker.started("--hostname", "second", IMAGE, *serving)
    file = tmp_path / "pid"
    file.write_text(f"{docker.pid(first)}\n")
    options = ("-p", "127.0.0.1:0:container:80", "--container-pid", f"{file}:eth0")
    tool = run(*options, netns=docker.space)
    port = tool.port()
    eventually(lambda: docker.page(port) == "first\n", "the first answers")
    file.write_text(f"{docker.pid(second)}\n")
    eventually(lambda: docker.page(port) == "second\n", "the second answers")
    assert tool.stop()[0] == 0
