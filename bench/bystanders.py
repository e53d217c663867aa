"""Proxies that are measured beside the two that are compared, for information: haproxy, socat."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import usage

BOUND_S = 30
STEP_S = 0.0002
HAPROXY = """
global
    maxconn 4000
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen all
    bind 127.0.0.1:{port}
    server it {to}:{behind}
"""
NAMES = ("haproxy", "socat")
LISTENING = "0A"


class Bystander:
    """One that serves one port, with a session of its own; ``ready_ms`` from exec to a client."""

    def __init__(self, command: list[str], port: int, proto: str) -> None:
        self.port = port
        started = time.perf_counter()
        silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        self.pid = os.posix_spawn(
            command[0], command, os.environ, file_actions=silence, setsid=True
        )
        try:
            while not is_open(port, proto):
                if time.perf_counter() - started > BOUND_S:
                    raise RuntimeError(f"{command[0]} has not opened port {port}")
                time.sleep(STEP_S)
        except BaseException:
            self.end()
            raise
        self.ready_ms = (time.perf_counter() - started) * 1000

    def end(self) -> None:
        """Ends it and what it has forked."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def cpu_s(self) -> float:
        """The processor time of its session, what has ended and is waited for included."""
        return sum(session_cpu_s(self.pid))

    def private_kib(self) -> float:
        """Memory that it shares with nobody."""
        return usage.private_kib(self.pid)


def session_cpu_s(session: int) -> Iterator[float]:
    """The processor time of each process of a session (proc_pid_stat(5))."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield sum(map(int, fields[11:15])) / usage.TICKS


def is_open(port: int, proto: str) -> bool:
    """Whether somebody has a port of this namespace (proc_net_tcp(5)); nobody is connected to."""
    for line in Path(f"/proc/net/{proto}").read_text().splitlines()[1:]:
        row = line.split()
        if row[1].endswith(f":{port:04X}") and (proto == "udp" or row[3] == LISTENING):
            return True
    return False


@contextlib.contextmanager
def started(name: str, proto: str, port: int, to: str, behind: int) -> Iterator[Bystander | None]:
    """One of NAMES; None where it is not installed or does not know the protocol."""
    program = shutil.which(name)
    if program is None or (name, proto) == ("haproxy", "udp"):
        yield None
        return
    with tempfile.NamedTemporaryFile("w", prefix="pyshim-bench-", suffix=".cfg") as file:
        if name == "haproxy":
            file.write(HAPROXY.format(port=port, to=to, behind=behind))
            file.flush()
            command = [program, "-db", "-f", file.name]
        else:
            kind = proto.upper()
            listener = f"{kind}-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"
            command = [program, listener, f"{kind}:{to}:{behind}"]
        made = Bystander(command, port, proto)
        try:
            yield made
        finally:
            made.end()
