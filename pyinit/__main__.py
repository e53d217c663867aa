"""``python -m pyinit [OPTIONS] [--] COMMAND [ARGS]``: becomes the binary."""

from __future__ import annotations

import os
import sys

from pyinit import path


def main() -> int:
    """Executes it in place of the interpreter; returns only if that fails."""
    try:
        program = path()
        os.execv(program, [str(program), *sys.argv[1:]])
    except OSError as error:
        print(f"pyinit: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
