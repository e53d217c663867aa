"""The machine that is measured on, and the ways in which a measurement ends early."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Callable
from types import FrameType
from typing import Any

Record = dict[str, Any]


def describe_host() -> Record:
    """What the figures depend on."""
    return {
        "kernel": ".".join(platform.release().split(".")[:2]),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "containerd": first_line("containerd", "--version").split()[2],
        "runc": first_line("runc", "--version"),
    }


def first_line(*command: str) -> str:
    """The first line that ``command`` prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def on_interrupt(action: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    """What the three ways to end a command from outside do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)
