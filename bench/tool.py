"""The tool ``portproxy``: ten thousand ports, and the kernel's forwarding beside docker-proxy.

``python -m bench.tool [--rounds N] [--seconds S]``, as root.  Prints one table and writes
``bench/tool.json``.  Every figure is a median; every ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import namespaces
from bench.host import on_interrupt
from bench.namespaces import BOUND_S, HTTP_PORT, NGINX, await_port, run_until_the_end
from bench.usage import private_kib
from tests.integration.networks import CONTAINER, HOST_TO_CLIENT, Network

OURS, THEIRS = "portproxy", "docker-proxy"
TOOL = str(Path(sys.executable).parent / OURS)
PROXY = "/usr/sbin/docker-proxy"
RESULTS = Path(__file__).with_name("tool.json")
PUBLISHED = {OURS: 7301, THEIRS: 7302}
FIRST, LAST = 20000, 29999
KIB_PER_MB = 1000 * 1000 / 1024
# Row → figure and what it should be: of ours alone, or its ratio to theirs.
ROWS = {
    "10,000 ports: exec to all open, s": ("range_s", "≤ 0.5 abs."),
    "  private memory of all processes, MB": ("range_mb", "≤ 20 abs."),
    "kernel mode, keep-alive, 64 at once, requests/s": ("kernel", "≥ 2"),
}
Samples = dict[str, list[float]]


def main() -> int:
    """Measures, prints, writes; 1 when something is missing."""
    parser = argparse.ArgumentParser(prog="bench.tool", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured")
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    arguments = parser.parse_args()
    lacking = [path for path in (TOOL, PROXY) if not os.access(path, os.X_OK)]
    lacking += namespaces.missing()
    if os.geteuid() or lacking:
        what = f"missing: {', '.join(lacking)}" if lacking else "namespaces need root"
        print(f"bench.tool: {what}", file=sys.stderr)
        return 1
    on_interrupt(signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            network = Network()
            stack.callback(network.end)
            samples = {**many_ports(network, arguments.rounds)}
            serve(stack, network)
            ours, theirs = by_the_kernel(network, arguments.rounds, arguments.seconds)
    except KeyboardInterrupt:
        print("bench.tool: interrupted; everything has been removed", file=sys.stderr)
        return 130
    found = {
        name: {"ours": statistics.median(some), "samples": some} for name, some in samples.items()
    }
    found["kernel"] = compared(ours, theirs)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    Console(width=120).print(table_of(found))
    return 0


@contextlib.contextmanager
def tool(network: Network, *options: str) -> Iterator[tuple[int, float]]:
    """A running tool in the host's namespace: its pid, and the seconds until it served."""
    started = time.perf_counter()
    command = ["nsenter", f"--net=/run/netns/{network.host}", TOOL, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("listening"):
            raise RuntimeError(f"{' '.join(command)} does not serve")
        yield process.pid, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(BOUND_S)


def many_ports(network: Network, rounds: int) -> Samples:
    """Time and memory of a range of 10,000 ports."""
    samples: Samples = {"range_s": [], "range_mb": []}
    # A second one, so that the pages of its programs and libraries are shared and not counted.
    with tool(network, "-p", f"0:{CONTAINER}:80"):
        for _ in range(rounds):
            with tool(network, "-p", f"{FIRST}-{LAST}:{CONTAINER}:80") as (pid, took_s):
                samples["range_s"].append(took_s)
                kib = sum(private_kib(each) for each in (pid, *descendants(pid)))
                samples["range_mb"].append(kib / KIB_PER_MB)
    return samples


def descendants(pid: int) -> list[int]:
    """The data plane and its broker."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = [int(word) for word in text.split()]
    return [*children, *(each for child in children for each in descendants(child))]


def serve(stack: contextlib.ExitStack, network: Network) -> None:
    """Starts nginx in the container's namespace."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyshim-bench-"))
    Path(folder).chmod(0o755)
    text = NGINX.format(folder=folder, address=CONTAINER, port=HTTP_PORT)
    Path(folder, "nginx.conf").write_text(text)
    inside = ["nsenter", f"--net=/run/netns/{network.container}"]
    options = ["-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"]
    run_until_the_end(stack, [*inside, "nginx", *options])
    network.within(network.host, lambda: await_port(CONTAINER, HTTP_PORT))


def by_the_kernel(network: Network, rounds: int, seconds: int) -> tuple[list[float], list[float]]:
    """Requests a second through the kernel's rules, and through docker-proxy, in turn."""
    samples: Samples = {OURS: [], THEIRS: []}
    there = f"{HOST_TO_CLIENT}:{PUBLISHED[OURS]}:{CONTAINER}:{HTTP_PORT}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(tool(network, "--mode", "nft", "-p", there))
        words = {
            "-proto": "tcp",
            "-host-ip": HOST_TO_CLIENT,
            "-host-port": str(PUBLISHED[THEIRS]),
            "-container-ip": CONTAINER,
            "-container-port": str(HTTP_PORT),
        }
        options = [word for pair in words.items() for word in pair]
        silent = ["sh", "-c", """exec "$@" 3>/dev/null""", "sh", PROXY, *options]  # its status pipe
        run_until_the_end(stack, ["nsenter", f"--net=/run/netns/{network.host}", *silent])
        network.within(network.client, lambda: await_port(HOST_TO_CLIENT, PUBLISHED[THEIRS]))
        for number in range(rounds):
            # Who is first changes, so that neither always meets a warm or a tired host.
            for side in sorted(samples, reverse=number % 2 == 0):
                samples[side].append(requests(network, PUBLISHED[side], seconds))
    return samples[OURS], samples[THEIRS]


def requests(network: Network, port: int, seconds: int) -> float:
    """wrk with 64 connections, from the client's namespace."""
    command = ["nsenter", f"--net=/run/netns/{network.client}", "wrk", "-t1", "-c64"]
    command += [f"-d{seconds}s", f"http://{HOST_TO_CLIENT}:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if done.returncode or rate is None or "Socket errors" in done.stdout:
        raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
    return float(rate[1])


def compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians, the median of the rounds' ratios, and all samples."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "samples": {"ours": ours, "theirs": theirs},
    }


def table_of(found: dict[str, Any]) -> Table:
    """What people look at."""
    table = Table(title=f"{OURS}, the tool")
    for column in ("", OURS, THEIRS, "ratio", "least–most", "to reach"):
        table.add_column(column, justify="right" if column else "left")
    for title, (figure, goal) in ROWS.items():
        row = found[figure]
        beside = ["", "", ""]
        if "ratio" in row:
            spread = "{:.2f}–{:.2f}".format(*row["range"])
            beside = [f"{row['theirs']:,.2f}", f"{row['ratio']:.3f}", spread]
        table.add_row(title, f"{row['ours']:,.2f}", *beside, goal)
    return table


if __name__ == "__main__":
    sys.exit(main())
