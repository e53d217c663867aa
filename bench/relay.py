"""portproxy-relay beside docker-proxy, in turn and in one run: speed, memory, start.

``python -m bench.relay [--rounds N] [--seconds S]``, as root.  Prints one table and writes
``bench/relay.json``.  Every figure is a median; every ratio is the median of the rounds' ratios.
What haproxy and socat do in the same rounds is shown for information.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import bystanders, namespaces, usage
from bench.bystanders import Bystander
from bench.datagrams import exchange, flood
from bench.host import on_interrupt
from bench.namespaces import BACK_ADDRESS, BOUND_S, ECHO_PORT, HTTP_PORT, IPERF_PORT, SINK_PORT

OURS, THEIRS = "portproxy-relay", "docker-proxy"
RESULTS = Path(__file__).with_name("relay.json")
FIRST_PORT = 7200
STATUS_FD = 3
IDLE_CONNECTIONS = 1000
UDP_CLIENTS = 1000
STARTS = 21
WINDOW = 32
BYSTANDERS_S = 1  # of load: nothing depends on how they do
KIB = 1024
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

# One round of one proxy: names of figures and their values.
Figures = dict[str, float]
Speed = Callable[["Proxy | Bystander"], Figures]
Cost = Callable[["Proxy"], Figures]
Samples = dict[str, dict[str, list[float]]]

# Row → figure and what the ratio should be.
ROWS = {
    "bulk, 1 connection, Gbit/s": ("bulk1", "≥ 1.1"),
    "  Gbit for a CPU second": ("bulk1_cpu", "≥ 1.3"),
    "bulk, 8 connections, Gbit/s": ("bulk8", "≥ 1.1"),
    "  Gbit for a CPU second ": ("bulk8_cpu", "≥ 1.3"),
    "keep-alive, 64 at once, requests/s": ("keep", "≥ 1.2"),
    "  requests for a CPU second": ("keep_cpu", "≥ 1.4"),
    "  99 % within, ms": ("keep_p99", "≤ 0.6"),
    "connect, request, close, requests/s": ("close", "≥ 1.4"),
    "  requests for a CPU second ": ("close_cpu", ""),
    "UDP one way, 64 bytes, datagrams/s": ("one_way", "≥ 1.8"),
    "  datagrams for a CPU second": ("one_way_cpu", ""),
    "UDP window of 32, answers/s": ("window", "≥ 1.4"),
    "  answers for a CPU second": ("window_cpu", ""),
    "private memory of one mapping, KiB": ("private", "≤ 0.1"),
    "1,000 idle connections: growth, KiB": ("idle", "≤ 0.06"),
    "  descriptors for each": ("idle_fds", "≤ 2.1 abs."),
    "1,000 UDP clients: growth, KiB": ("clients", "≤ 1024 abs."),
    "exec to ready, ms": ("ready", "≤ 0.45"),
}


class Proxy:
    """A running proxy for one port."""

    def __init__(self, program: str, port: int, proto: str, behind: int) -> None:
        reader, writer = os.pipe()
        command = [program, "-proto", proto, "-host-ip", "127.0.0.1", "-host-port", str(port)]
        command += ["-container-ip", BACK_ADDRESS, "-container-port", str(behind)]
        self.port = port
        started = time.perf_counter()
        # As dockerd has it: nobody reads what they say.
        silence = (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)
        places: list[Any] = [silence, (os.POSIX_SPAWN_DUP2, writer, STATUS_FD)]
        self.pid = os.posix_spawn(program, command, os.environ, file_actions=places)
        os.close(writer)
        answer = os.read(reader, 2)
        self.ready_ms = (time.perf_counter() - started) * 1000
        os.close(reader)
        if answer != b"0\n":
            self.end()
            raise RuntimeError(f"{program} has not opened port {port}")

    def end(self) -> None:
        """SIGINT, as dockerd ends it."""
        os.kill(self.pid, signal.SIGINT)
        os.waitpid(self.pid, 0)

    def cpu_s(self) -> float:
        """The processor time that it has used."""
        return usage.cpu_s(self.pid)

    def private_kib(self) -> float:
        """Memory that it shares with nobody."""
        return usage.private_kib(self.pid)

    def fds(self) -> int:
        """How many descriptors it holds."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def main() -> int:
    """Measures, prints, writes; 1 when something is missing."""
    parser = argparse.ArgumentParser(prog="bench.relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured")
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    arguments = parser.parse_args()
    programs = find_programs()
    lacking = [name for name, path in programs.items() if not os.access(path, os.X_OK)]
    lacking += namespaces.missing()
    if os.geteuid() or lacking:
        what = f"missing: {', '.join(lacking)}" if lacking else "namespaces need root"
        print(f"bench.relay: {what}", file=sys.stderr)
        return 1
    on_interrupt(signal.default_int_handler)
    try:
        with namespaces.backends() as sink, seconds_of(programs):
            found = measure(programs, arguments.rounds, arguments.seconds, sink)
    except KeyboardInterrupt:
        print("bench.relay: interrupted; everything has been removed", file=sys.stderr)
        return 130
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    Console(width=150).print(table_of(found))
    return 0


def find_programs() -> dict[str, str]:
    """The two that are compared."""
    return {
        OURS: str(Path(sys.executable).parent / OURS),
        THEIRS: "/usr/sbin/docker-proxy",
    }


# --- The rounds ---------------------------------------------------------------------------------


def measure(
    programs: dict[str, str], rounds: int, seconds: int, sink: subprocess.Popen[str]
) -> dict[str, Any]:
    """All figures of all rounds: ours and theirs in turn, so that both see the same host."""
    samples: Samples = {name: {} for name in (*programs, *bystanders.NAMES)}
    ports = iter(range(FIRST_PORT, 65536))
    informal = speeds_of(BYSTANDERS_S, sink)
    for at, (proto, behind, one_round) in enumerate([*speeds_of(seconds, sink), *COSTS]):
        for number in range(rounds):
            # Who is first changes, so that neither always meets a warm or a tired host.
            for name in sorted(programs, reverse=number % 2 == 0):
                proxy = Proxy(programs[name], next(ports), proto, behind)
                try:
                    note(samples[name], one_round(proxy))
                finally:
                    proxy.end()
            for name in bystanders.NAMES if at < len(informal) else ():
                with bystanders.started(name, proto, next(ports), BACK_ADDRESS, behind) as other:
                    if other is not None:
                        note(samples[name], {"ready": other.ready_ms})
                        note(samples[name], {"private": other.private_kib()})
                        note(samples[name], informal[at][2](other))
    for _ in range(max(STARTS, rounds)):
        for name, program in programs.items():
            proxy = Proxy(program, next(ports), "tcp", HTTP_PORT)
            proxy.end()
            note(samples[name], {"ready": proxy.ready_ms})
    return {figure: compared(samples, figure) for figure in samples[OURS]}


@contextlib.contextmanager
def seconds_of(programs: dict[str, str]) -> Iterator[None]:
    """A second copy of each, so that the pages of the programs are shared and not counted."""
    with contextlib.ExitStack() as stack:
        for port, program in enumerate(programs.values(), FIRST_PORT - len(programs)):
            stack.callback(Proxy(program, port, "tcp", HTTP_PORT).end)
        yield


def note(samples: dict[str, list[float]], figures: Figures) -> None:
    """Adds what a round has found."""
    for figure, value in figures.items():
        samples.setdefault(figure, []).append(value)


def compared(samples: Samples, figure: str) -> dict[str, Any]:
    """Medians, the median of the rounds' ratios, and all samples; medians of the bystanders."""
    ours, theirs = samples[OURS][figure], samples[THEIRS][figure]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "samples": {"ours": ours, "theirs": theirs},
        "others": {
            name: statistics.median(samples[name][figure])
            for name in bystanders.NAMES
            if figure in samples[name]
        },
    }


def speeds_of(seconds: int, sink: subprocess.Popen[str]) -> list[tuple[str, int, Speed]]:
    """What is measured of every proxy: protocol, backend, and how."""
    return [
        ("tcp", IPERF_PORT, lambda proxy: bulk(proxy, seconds, 1)),
        ("tcp", IPERF_PORT, lambda proxy: bulk(proxy, seconds, 8)),
        ("tcp", HTTP_PORT, lambda proxy: requests(proxy, seconds, "keep")),
        ("tcp", HTTP_PORT, lambda proxy: requests(proxy, seconds, "close")),
        ("udp", SINK_PORT, lambda proxy: one_way(proxy, seconds, sink)),
        ("udp", ECHO_PORT, lambda proxy: window(proxy, seconds)),
    ]


def bulk(proxy: Proxy | Bystander, seconds: int, connections: int) -> Figures:
    """iperf3 from the client to the backend."""
    before_s = proxy.cpu_s()
    said = run("iperf3", "-c", "127.0.0.1", "-p", str(proxy.port), "-t", str(seconds), "-J",
               "-P", str(connections))  # fmt: skip
    received = json.loads(said)["end"]["sum_received"]
    name = f"bulk{connections}"
    return {
        name: received["bits_per_second"] / 1e9,
        f"{name}_cpu": received["bytes"] * 8 / 1e9 / max(proxy.cpu_s() - before_s, 0.01),
    }


def requests(proxy: Proxy | Bystander, seconds: int, name: str) -> Figures:
    """wrk with 64 connections, which are kept or not."""
    header = ("-H", "Connection: close") if name == "close" else ()
    before_s = proxy.cpu_s()
    said = run("wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", *header,
               f"http://127.0.0.1:{proxy.port}/")  # fmt: skip
    used_s = proxy.cpu_s() - before_s
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    total = re.search(r"(\d+) requests in", said)
    slowest = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    assert rate and total and slowest, said
    return {
        name: float(rate[1]),
        f"{name}_cpu": int(total[1]) / max(used_s, 0.01),
        f"{name}_p99": float(slowest[1]) * UNITS_MS[slowest[2]],
    }


def one_way(proxy: Proxy | Bystander, seconds: int, sink: subprocess.Popen[str]) -> Figures:
    """What arrives of as many datagrams as can be sent."""
    before_s = proxy.cpu_s()
    flood(proxy.port, seconds)
    used_s = proxy.cpu_s() - before_s
    assert sink.stdout is not None
    rate = float(sink.stdout.readline())
    return {"one_way": rate, "one_way_cpu": rate * seconds / max(used_s, 0.01)}


def window(proxy: Proxy | Bystander, seconds: int) -> Figures:
    """Answers while 32 requests are on their way."""
    before_s = proxy.cpu_s()
    rate = exchange(proxy.port, WINDOW, seconds)
    used_s = proxy.cpu_s() - before_s
    return {"window": rate, "window_cpu": rate * seconds / max(used_s, 0.01)}


def idle_connections(proxy: Proxy) -> Figures:
    """Memory and descriptors of connections that have had one request each."""
    private, fds = proxy.private_kib(), proxy.fds()
    figures = {"private": private}
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE_CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", proxy.port), BOUND_S)
            stack.enter_context(client)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        figures["idle"] = proxy.private_kib() - private
        figures["idle_fds"] = (proxy.fds() - fds) / IDLE_CONNECTIONS
    return figures


def udp_clients(proxy: Proxy) -> Figures:
    """Memory of clients that have each sent and got one datagram."""
    before_kib = proxy.private_kib()
    for _ in range(UDP_CLIENTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(BOUND_S)
            client.connect(("127.0.0.1", proxy.port))
            client.send(b"x" * 64)
            assert len(client.recv(100)) == 64
    return {"clients": proxy.private_kib() - before_kib}


COSTS: list[tuple[str, int, Cost]] = [
    ("tcp", HTTP_PORT, idle_connections),
    ("udp", ECHO_PORT, udp_clients),
]


def run(*command: str) -> str:
    """What a load generator prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


# --- The table ----------------------------------------------------------------------------------


def table_of(found: dict[str, Any]) -> Table:
    """What people look at."""
    table = Table(title=f"{OURS} beside {THEIRS}", caption=version_of_theirs())
    columns = ("", OURS, THEIRS, "ratio", "least–most", "to reach", *bystanders.NAMES)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for title, (figure, goal) in ROWS.items():
        row = found[figure]
        spread = "{:.2f}–{:.2f}".format(*row["range"])
        others = [row["others"].get(name) for name in bystanders.NAMES]
        table.add_row(
            title, f"{row['ours']:,.2f}", f"{row['theirs']:,.2f}", f"{row['ratio']:.3f}", spread,
            goal, *(f"{other:,.2f}" if other is not None else "" for other in others),
        )  # fmt: skip
    return table


def version_of_theirs() -> str:
    """Debian's docker.io has docker-proxy."""
    command = ["dpkg-query", "--show", "docker.io"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


if __name__ == "__main__":
    sys.exit(main())
