"""What the host allows at most where a goal is out of reach: the same writer without a shim."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time

from bench.rows import OURS, THEIRS
from bench.stand import Bench
from bench.throughput import BLOCK_BYTES, GIB, LINE_BYTES, LINES, MEGA, PATIENCE_S, open_gate

PIPE_BYTES = 1 << 18
F_SETPIPE_SZ = 1031  # fcntl(2)
# As a relay rests: who is woken for each line costs the writer more than the copying does.
REST_S = 0.0005

Found = dict[str, dict[str, list[float]]]


def measure(bench: Bench, samples: Found) -> Found:
    """The rates beside those of the Go shim in ``samples`` that were taken before."""
    times = range(bench.repetitions)
    file = [_into_a_file(bench, BLOCK_BYTES, GIB // BLOCK_BYTES) for _ in times]
    lines = [_into_nothing(bench, LINE_BYTES, LINES) for _ in times]
    return {
        "file_limit": {OURS: file, THEIRS: samples["file"][THEIRS]},
        "lines_limit": {OURS: lines, THEIRS: samples["lines"][THEIRS]},
    }


def _into_a_file(bench: Bench, block: int, blocks: int) -> float:
    """MB a second of a writer whose stdout is the file."""
    log = bench.home / "log"
    with log.open("wb") as file:
        process = _writer(bench, block, blocks, file.fileno())
        try:
            begun = open_gate(bench.rootfs)
            assert process.wait(PATIENCE_S) == 0
            took = time.perf_counter() - begun
        finally:
            process.kill()
            process.wait(PATIENCE_S)
    assert log.stat().st_size == block * blocks
    log.unlink()
    return block * blocks / MEGA / took


def _into_nothing(bench: Bench, block: int, blocks: int) -> float:
    """MB a second of a writer into a pipe that somebody empties without a copy."""
    source, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(end, True)
    fcntl.fcntl(end, F_SETPIPE_SZ, PIPE_BYTES)
    process = _writer(bench, block, blocks, end)
    os.close(end)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        begun = open_gate(bench.rootfs)
        deadline = time.monotonic() + PATIENCE_S
        left = block * blocks
        while left and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                while moved := os.splice(source, null, PIPE_BYTES):
                    left -= moved
            time.sleep(REST_S)
        took = time.perf_counter() - begun
        assert left == 0
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(source)
        os.close(null)
    return block * blocks / MEGA / took


def _writer(bench: Bench, block: int, blocks: int, out: int) -> subprocess.Popen[bytes]:
    """The program that the containers run, in their root."""
    command = ["chroot", str(bench.rootfs), "/bin/emit", str(block), str(blocks)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out)
