"""How fast a container's output gets to a file, to the reader of a fifo, and through a terminal."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from bench.rows import OURS
from bench.stand import Bench, Stand
from bench.usage import cpu_s
from tests.integration.containerd import eventually
from tests.integration.shim import Container

GIB = 1 << 30
BLOCK_BYTES = 1 << 16
LINE_BYTES, LINES = 80, 2_000_000
TERMINAL_BLOCK, TERMINAL_BYTES = 4000, 200_000_000
PATIENCE_S = 300.0
SPLICE_BYTES = 1 << 20
POLL_S = 0.001
MEGA = 1e6
GATE = "tmp/gate"

Found = dict[str, dict[str, list[float]]]

# Waits until somebody opens the gate, then writes so many blocks of so many bytes, each a line.
EMIT = """
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
    size_t size = atol(words[1]), left, sent;
    long blocks = atol(words[2]);
    char *block = malloc(size);
    memset(block, 'x', size);
    block[size - 1] = '\\n';
    if (open("/tmp/gate", O_RDONLY) < 0) return 1;
    while (blocks--)
        for (left = size; left; left -= sent)
            if ((ssize_t)(sent = write(1, block + size - left, left)) <= 0) return 2;
    return 0;
}
"""


def install(rootfs: Path) -> None:
    """Puts the program that writes, and its gate, into a root filesystem."""
    program = rootfs / "bin/emit"
    source = program.with_suffix(".c")
    source.write_text(EMIT)
    command = ["gcc", "-O2", "-w", "-static", "-o", str(program), str(source)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    source.unlink()
    os.mkfifo(rootfs / GATE)


def to_file(bench: Bench) -> Found:
    """1 GiB to ``file://``."""
    return bench.alternately(
        lambda stand: {"file": _file(stand, BLOCK_BYTES, GIB // BLOCK_BYTES)[0]}
    )


def lines(bench: Bench) -> Found:
    """Lines, each written by itself, to ``file://``; and what that takes of the processor."""

    def one(stand: Stand) -> dict[str, float]:
        rate, used_s = _file(stand, LINE_BYTES, LINES)
        return {"lines": rate, "lines_cpu": used_s}

    return bench.alternately(one)


def to_fifo(bench: Bench) -> Found:
    """1 GiB through a fifo whose reader splices it away."""
    blocks = GIB // BLOCK_BYTES

    def one(stand: Stand) -> dict[str, float]:
        return {"fifo": _fifo(stand, BLOCK_BYTES, blocks, GIB, terminal=False)}

    return bench.alternately(one)


def terminal(bench: Bench) -> Found:
    """Through a terminal, which makes two bytes of each newline."""
    blocks = TERMINAL_BYTES // TERMINAL_BLOCK
    size = TERMINAL_BYTES + blocks

    def one(stand: Stand) -> dict[str, float]:
        return {"terminal": _fifo(stand, TERMINAL_BLOCK, blocks, size, terminal=True)}

    return bench.alternately(one)


def open_gate(rootfs: Path) -> float:
    """Lets the program go; when that was (``time.perf_counter``).  Raises OSError at the bound."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fd = os.open(rootfs / GATE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # ENXIO: it is not there yet
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
            continue
        begun = time.perf_counter()
        os.close(fd)
        return begun


def await_size(path: Path, size: int) -> None:
    """Waits until a log has so many bytes at least."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < deadline, f"{path}: not {size} bytes within {PATIENCE_S} s"
        time.sleep(POLL_S)


def _file(stand: Stand, block: int, blocks: int) -> tuple[float, float]:
    """MB a second, and the seconds that what relays them has run."""
    log = stand.home / "log"
    uri = f"file://{log}"
    container = stand.started("/bin/emit", str(block), str(blocks), stdout=uri, stderr=uri)
    before_s = _cpu_s(stand)
    begun = open_gate(stand.rootfs)
    await_size(log, block * blocks)
    took = time.perf_counter() - begun
    used_s = _cpu_s(stand) - before_s
    assert log.stat().st_size == block * blocks
    _finish(container)
    log.unlink()
    return block * blocks / MEGA / took, used_s


def _cpu_s(stand: Stand) -> float:
    """Of what stays; services and the zygote have nothing to do with it."""
    pids = stand.monitors() if stand.side == OURS else stand.shims()
    return sum(cpu_s(pid) for pid in pids)


def _fifo(stand: Stand, block: int, blocks: int, size: int, terminal: bool) -> float:
    def edit(spec: dict[str, Any]) -> None:
        spec["process"]["terminal"] = terminal

    path = stand.home / "out"
    os.mkfifo(path)
    sink = Sink(path)
    try:
        stderr = "" if terminal else path
        container = stand.container("/bin/emit", str(block), str(blocks), edit=edit)
        container.create(stdout=path, stderr=stderr, terminal=terminal)
        container.start()
        begun = open_gate(stand.rootfs)
        took = sink.await_bytes(size) - begun
        _finish(container)
    finally:
        sink.close()
        path.unlink()
    return size / MEGA / took


def _finish(container: Container) -> None:
    assert container.wait().exit_status == 0
    container.finish()


class Sink:
    """Splices what comes through a fifo to /dev/null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._wanted = 1 << 62
        self._arrived = 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def await_bytes(self, size: int) -> float:
        """When the last of so many bytes had come (``time.perf_counter``)."""
        eventually(lambda: self.size >= size, f"{size} bytes, not {self.size}", PATIENCE_S)
        return self._arrived

    def close(self) -> None:
        """Ends the reader, also one that nobody has written to."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        self._thread.join(PATIENCE_S)

    def _read(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while moved := os.splice(fd, null, SPLICE_BYTES):
                self._arrived = time.perf_counter()
                self.size += moved
        finally:
            os.close(fd)
            os.close(null)
