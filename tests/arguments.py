"""What may stand on the command line of the soak and of the fuzzers: wrong input costs a line."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends with 2."""
        self.exit(2, f"{self.prog}: {message}; see python -m {self.prog} --help\n")


def between(least: float, most: float) -> Callable[[str], float]:
    """A type of argument: a number from ``least`` to ``most``, which nan is not."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {least:g} to {most:g}")
        return value

    return number


def interruptible() -> None:
    """SIGTERM and SIGHUP end as Ctrl-C does, by KeyboardInterrupt: what was made is removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
