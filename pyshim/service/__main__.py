"""The service without a zygote: the monitor executes this with the channel as descriptor 3."""

import os
import socket
import sys

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

    address.ensure()
    from pyshim.service import activation

    return activation.main(sock)


if __name__ == "__main__":
    sys.exit(main())
