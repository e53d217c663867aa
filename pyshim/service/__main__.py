"""The service without a zygote: the monitor executes this with the channel as descriptor 3."""

import os
import socket
import sys

CHANNEL_FD = 3

if __name__ == "__main__":
    from pyshim.service.activation import main
    from pyshim.zygote import address

    os.set_inheritable(CHANNEL_FD, False)
    code = main(socket.socket(fileno=CHANNEL_FD))
    address.ensure()  # the next one is forked again
    sys.exit(code)
