"""What the data plane may not do: the kernel is asked, on its behalf, by a debugger's means."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only
from tests.integration.tool import Run, echo, says, tools

pytestmark = plain_only
ALONE = ("--workers", "1")
ATTACH, DETACH, STEP, GET, SET = 16, 17, 9, 12, 13
WALL = 0x40000000
# Where the registers of x86-64 stand in user_regs_struct.
WORDS, RAX, ORIG_RAX, RIP = 27, 10, 15, 16
SYSCALL_BYTES = 2
NOTHING = (1 << 64) - 1
# The calls' numbers on x86-64.
GETPID = 39
FORBIDDEN = {
    "open": 2,
    "clone": 56,
    "fork": 57,
    "execve": 59,
    "kill": 62,
    "unlink": 87,
    "ptrace": 101,
    "setuid": 105,
    "capset": 126,
    "mount": 165,
    "openat": 257,
    "setns": 308,
    "bpf": 321,
    "io_uring_setup": 425,
}


@pytest.fixture
def run(programs: Path) -> Iterator[Run]:
    with tools(programs) as start:
        yield start


class Debugged:
    """A process that is stopped where it waits in a system call."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.call = ctypes.CDLL(None, use_errno=True).ptrace
        self.call.restype = ctypes.c_long
        self.call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(self, request: int, data: object = None) -> None:
        """ptrace(2).  Raises OSError."""
        if self.call(request, self.pid, None, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def __enter__(self) -> Debugged:
        self.ptrace(ATTACH)
        os.waitpid(self.pid, WALL)
        self.before = (ctypes.c_ulong * WORDS)()
        self.ptrace(GET, ctypes.byref(self.before))
        return self

    def __exit__(self, *_: object) -> None:
        self.ptrace(SET, ctypes.byref(self.before))
        self.ptrace(DETACH)

    def does(self, number: int) -> int:
        """What a system call, without arguments that mean anything, gives there."""
        registers = (ctypes.c_ulong * WORDS)(*self.before)
        registers[RIP] -= SYSCALL_BYTES  # it waits behind the instruction
        registers[RAX], registers[ORIG_RAX] = number, NOTHING
        self.ptrace(SET, ctypes.byref(registers))
        self.ptrace(STEP)
        os.waitpid(self.pid, WALL)
        self.ptrace(GET, ctypes.byref(registers))
        return ctypes.c_long(registers[RAX]).value


def test_the_kernel_refuses_what_moving_bytes_does_not_need(run: Run) -> None:
    with echo("it") as backend:
        tool = run("-p", f"127.0.0.1:0:127.0.0.1:{backend.port}", *ALONE)
        port = tool.port()
        relay, _broker = tool.children()
        with Debugged(relay) as stopped:
            assert stopped.does(GETPID) == relay  # which it may
            results = {name: stopped.does(number) for name, number in FORBIDDEN.items()}
            assert results == dict.fromkeys(FORBIDDEN, -errno.EPERM)
        assert says(("127.0.0.1", port)) == "it"


def test_without_the_filter_the_kernel_answers_otherwise(run: Run) -> None:
    """So that the test above sees the filter, and not something else that refuses."""
    tool = run("-p", "127.0.0.1:0:127.0.0.1:9", "--no-seccomp", *ALONE)
    tool.port()
    relay, _broker = tool.children()
    with Debugged(relay) as stopped:
        assert stopped.does(FORBIDDEN["openat"]) != -errno.EPERM
        assert stopped.does(FORBIDDEN["execve"]) == -errno.EFAULT


def test_one_capability_is_kept_for_those_who_need_it(run: Run) -> None:
    publish = ("-p", "127.0.0.1:0:127.0.0.1:9", "--set", "mark=7")
    tool = run(*publish, "--user", "12345:23456", *ALONE)
    tool.port()
    relay, _broker = tool.children()
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{relay}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["12345"] * 4
    assert status["Gid"].split() == ["23456"] * 4
    net_admin = 1 << 12
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm")] == [net_admin] * 2
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
