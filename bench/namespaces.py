"""Two network namespaces with a link between: clients and proxies in one, backends in the other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FRONT_ADDRESS, BACK_ADDRESS = "10.98.0.1", "10.98.0.2"
HTTP_PORT, IPERF_PORT, ECHO_PORT, SINK_PORT = 7101, 7102, 7103, 7104
CLONE_NEWNET = 0x40000000
BOUND_S = 30
ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("nginx", "wrk", "iperf3", "ip", "nsenter")
NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder};
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen {address}:{port} backlog=4096; location / {{ return 200 "ok"; }} }}
}}
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name) is None]


def ip(*words: str) -> None:
    """Runs ip."""
    subprocess.run(["ip", *words], check=True, timeout=BOUND_S)


@contextlib.contextmanager
def backends() -> Iterator[subprocess.Popen[str]]:
    """Enters a new namespace, with backends in another; all is gone and left afterwards.

    Gives the sink of datagrams, which prints rates.
    """
    front, back = (f"pyshim-bench-{side}-{os.getpid()}" for side in ("front", "back"))
    with contextlib.ExitStack() as stack:
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, home)
        for name in (front, back):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        link = f"pb{os.getpid()}"
        ip("-n", front, "link", "add", link, "type", "veth", "peer", "name", link, "netns", back)
        for name, address in ((front, FRONT_ADDRESS), (back, BACK_ADDRESS)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyshim-bench-"))
        Path(folder, "nginx.conf").write_text(
            NGINX.format(folder=folder, address=BACK_ADDRESS, port=HTTP_PORT)
        )
        Path(folder).chmod(0o755)
        inside = ["nsenter", f"--net=/run/netns/{back}"]
        echo = [sys.executable, "-m", "bench.datagrams", "echo", BACK_ADDRESS, str(ECHO_PORT)]
        for command in (
            ["nginx", "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"],
            ["iperf3", "--server", "--bind", BACK_ADDRESS, "--port", str(IPERF_PORT)],
            echo,
        ):
            run_until_the_end(stack, [*inside, *command])
        sink = [*echo[:3], "sink", BACK_ADDRESS, str(SINK_PORT)]
        counted = run_until_the_end(stack, [*inside, *sink], subprocess.PIPE)
        assert counted.stdout is not None
        assert counted.stdout.readline() == "ready\n"
        enter(front)
        stack.callback(leave, home)
        for port in (HTTP_PORT, IPERF_PORT):
            await_port(BACK_ADDRESS, port)
        yield counted


def run_until_the_end(
    stack: contextlib.ExitStack, command: list[str], out: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Starts a backend that ``stack`` ends."""
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)

    def end() -> None:
        process.kill()
        process.wait(BOUND_S)

    stack.callback(end)
    return process


def enter(name: str) -> None:
    """Moves this process into a namespace; what it starts follows."""
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    leave(fd)
    os.close(fd)


def leave(fd: int) -> None:
    """Moves this process into the namespace behind a descriptor."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")


def await_port(address: str, port: int) -> None:
    """Waits until somebody listens there."""
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
