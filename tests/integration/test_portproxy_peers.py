"""The PROXY protocol with those who speak it: haproxy and nginx, in both directions."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only
from tests.integration.relays import BOUND_S, eventually, free_port
from tests.integration.tool import Tool, tools

pytestmark = plain_only
Serve = Callable[[list[str]], None]
# A client of its own address, so that none of them is taken for another.
CLIENT = "127.0.0.77"

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} proxy_protocol;
    location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port"; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 10s
  timeout client 10s
  timeout server 10s
frontend f
  bind 127.0.0.1:{port} {accept}
  {what}
"""
SAYS_WHO = 'http-request return status 200 content-type text/plain lf-string "%ci %cp"'


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers; they are gone afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> None:
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))

    yield start
    for process in started:
        process.kill()
        process.wait(BOUND_S)


@pytest.fixture
def run(programs: Path) -> Iterator[Callable[..., Tool]]:
    with tools(programs) as start:
        yield start


def nginx(serve: Serve, folder: Path) -> int:
    """One that takes only connections with a header, and says whose they are; its port."""
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    words = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    serve(["nginx", *words])
    return listening(port)


def haproxy(serve: Serve, folder: Path, what: str, accept: str = "") -> int:
    """The port of one that does ``what``."""
    port = free_port()
    file = folder / f"haproxy{port}.cfg"
    file.write_text(HAPROXY.format(port=port, what=what, accept=accept))
    serve(["haproxy", "-db", "-f", str(file)])
    return listening(port)


def listening(port: int) -> int:
    """The port, once somebody listens there."""

    def is_open() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(is_open, "it listens")
    return port


def whom(port: int) -> tuple[str, str]:
    """Who a server says that we are, and who we are."""
    with socket.socket() as client:
        client.settimeout(BOUND_S)
        client.bind((CLIENT, 0))
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        with client.makefile("rb") as answer:
            said = answer.read().decode().partition("\r\n\r\n")[2]
        return said, "{} {}".format(*client.getsockname())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("server", ["nginx", "haproxy"])
def test_servers_believe_what_we_say(
    serve: Serve, run: Callable[..., Tool], tmp_path: Path, server: str, version: str
) -> None:
    tmp_path.chmod(0o755)
    if server == "nginx":
        behind = nginx(serve, tmp_path)
    else:
        behind = haproxy(serve, tmp_path, SAYS_WHO, "accept-proxy")
    tool = run("-p", f"127.0.0.1:0:127.0.0.1:{behind}", "--set", f"proxy_out={version}")
    said, true = whom(tool.port())
    assert said == true


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_we_believe_what_haproxy_says(
    serve: Serve, run: Callable[..., Tool], tmp_path: Path, version: str
) -> None:
    """haproxy's header reaches us, and what it says goes on to nginx in the other version."""
    tmp_path.chmod(0o755)
    behind = nginx(serve, tmp_path)
    other = {"send-proxy": "v2", "send-proxy-v2": "v1"}[version]
    tool = run(
        *("-p", f"127.0.0.1:0:127.0.0.1:{behind}"),
        *("--set", "proxy_in=127.0.0.1", "--set", f"proxy_out={other}"),
    )
    backend = f"default_backend b\nbackend b\n  server s 127.0.0.1:{tool.port()} {version}"
    said, true = whom(haproxy(serve, tmp_path, backend))
    assert said == true
