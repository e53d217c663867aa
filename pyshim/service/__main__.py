"""The service without a zygote: the monitor executes this with the channel as descriptor 3."""

import os
import socket
import sys
from pathlib import Path

CHANNEL_FD = 3


def main() -> int:
    """Serves one life, and sees to it first that the next one is forked from a zygote again."""
    try:
        os.set_inheritable(CHANNEL_FD, False)
        sock = socket.socket(fileno=CHANNEL_FD)
    except OSError as error:
        text = f"descriptor {CHANNEL_FD} must be a monitor's channel: {error.strerror}"
        print(f"pyshim.service: {text}; a monitor starts this, not a person", file=sys.stderr)
        return 1
    from pyshim.zygote import address

    home = address.successor(monitors_zygote())
    address.ensure(path=home)
    from pyshim.service import activation

    return activation.main(sock, home)


def monitors_zygote() -> str:
    """The zygote's socket of the monitor that has executed us; the usual one if it says none.

    Where pip has put another version in the place of the monitor's, it is another one's.
    """
    from pyshim.zygote import address

    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
        return words[words.index("--zygote") + 1]
    except (OSError, ValueError):
        return address.socket_path()


if __name__ == "__main__":
    sys.exit(main())
