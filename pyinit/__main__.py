"""``python -m pyinit [OPTIONS] [--] COMMAND [ARGS]``: becomes the binary."""

from __future__ import annotations

import os
import signal
import sys

from pyinit import path


def main() -> int:
    """Executes it in place of the interpreter; returns only if that fails."""
    # The interpreter has ignored these, which an exec would hand on to the command.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        program = path()
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        print(f"pyinit: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
