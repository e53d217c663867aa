"""``python -m tests.soak [--minutes N] [--seed N] [--lanes N] [--out FOLDER]``, as root.

Prints its schedule, how it goes and what it comes to.  The exit code is 0 when nothing was lost and
nothing is left over; else the log of all steps, in the folder, says where to look.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.arguments import Parser, between, interruptible

from .soak import Soak

NICENESS = 10
LEAST_MINUTES, MOST_MINUTES = 0.1, 7 * 24 * 60


def main() -> int:
    """Soaks; the exit code."""
    parser = Parser(prog="tests.soak", description=__doc__)
    minutes = between(LEAST_MINUTES, MOST_MINUTES)
    parser.add_argument("--minutes", type=minutes, default=10, help="how long (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="decides what happens (default 1)")
    lanes = "lives at once beside containerd's (default 3)"
    parser.add_argument("--lanes", type=int, choices=range(1, 17), default=3, help=lanes)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="for the log")
    arguments = parser.parse_args()
    if os.geteuid():
        print("tests.soak: containers need root", file=sys.stderr)
        return 1
    interruptible()
    os.nice(NICENESS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = Soak(Path(folder), arguments.out, arguments.seed, arguments.minutes * 60)
        try:
            return 0 if soak.run(arguments.lanes) else 1
        except KeyboardInterrupt:
            print("tests.soak: interrupted; everything has been removed", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
