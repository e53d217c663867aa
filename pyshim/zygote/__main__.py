"""``python -I -m pyshim.zygote --socket PATH [--foreground]``: runs the fork server."""

from __future__ import annotations

import argparse
import sys

from pyshim.zygote import address, server


def main() -> int:
    """Becomes a daemon, unless a supervisor such as systemd is there, and serves."""
    parser = argparse.ArgumentParser(prog="pyshim-zygote", description="fork server of pyshim")
    parser.add_argument("--socket", default=address.socket_path(), help="where to listen")
    parser.add_argument("--foreground", action="store_true", help="stay attached, as for systemd")
    arguments = parser.parse_args()
    try:
        return server.run(arguments.socket, detach=not arguments.foreground)
    except OSError as error:
        reason = error.strerror or error
        print(f"pyshim-zygote: cannot serve at {arguments.socket}: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
