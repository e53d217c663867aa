"""The service without a zygote: the monitor executes this with the channel as descriptor 3."""

import os
import socket
import sys

CHANNEL_FD = 3


def main() -> int:
    """Serves one life and sees to it that the next one is forked from a zygote again."""
    try:
        os.set_inheritable(CHANNEL_FD, False)
        sock = socket.socket(fileno=CHANNEL_FD)
    except OSError as error:
        text = f"descriptor {CHANNEL_FD} must be a monitor's channel: {error.strerror}"
        print(f"pyshim.service: {text}; a monitor starts this, not a person", file=sys.stderr)
        return 1
    from pyshim.service import activation
    from pyshim.zygote import address

    code = activation.main(sock)
    address.ensure()
    return code


if __name__ == "__main__":
    sys.exit(main())
