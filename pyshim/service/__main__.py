"""The service without a zygote: the monitor executes this with the channel as descriptor 3."""

import os
import socket
import sys

CHANNEL_FD = 3

if __name__ == "__main__":
    from pyshim.service.activation import main

    os.set_inheritable(CHANNEL_FD, False)
    sys.exit(main(socket.socket(fileno=CHANNEL_FD)))
