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
    return server.run(arguments.socket, detach=not arguments.foreground)


if __name__ == "__main__":
    sys.exit(main())
