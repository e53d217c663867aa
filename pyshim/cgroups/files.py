"""Reads the small files of a control group.

What is not there counts as nothing: controllers differ between kernels and hosts, and containerd's
library ignores an absent file likewise.
"""

from __future__ import annotations

import os

UNLIMITED = 2**64 - 1
READ_BYTES = 16384
# The kernel gives at least half a page at a time while there is more (seq_read in fs/seq_file.c).
LAST_BYTES = 2048


def text(folder: str, name: str) -> str:
    """The content of a file, "" when there is none."""
    try:
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    # A file object takes ten system calls for each of some forty files.
    try:
        content = b""
        while True:
            part = os.read(fd, READ_BYTES)
            content += part
            if len(part) < LAST_BYTES:
                return content.decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def number(folder: str, name: str) -> int:
    """The number in a file; ``max`` is UNLIMITED, nothing is 0."""
    return to_int(text(folder, name))


def numbers(folder: str, name: str) -> dict[str, int]:
    """A file of lines ``key value``."""
    found = {}
    for line in text(folder, name).split("\n"):
        key, _, value = line.partition(" ")
        if value and " " not in value:
            found[key] = to_int(value)
    return found


def fields(line: str) -> dict[str, str]:
    """The ``key=value`` words of a line."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def to_int(value: str) -> int:
    """A number as the kernel writes it; a negative one is 0, as nothing of ours is."""
    if value.isdecimal():
        return int(value)
    if value == "max":
        return UNLIMITED
    try:
        return max(0, int(value))
    except ValueError:
        return 0


def network(pid: int) -> list[tuple[str, dict[str, int]]]:
    """The interfaces that ``pid`` sees but the loopback, with their counters (proc_pid_net(5))."""
    names = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped")
    sent = ("tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
    found = []
    for line in text(f"/proc/{pid}/net", "dev").splitlines()[2:]:
        interface, _, rest = line.partition(":")
        counters = rest.split()
        if interface.strip() != "lo" and len(counters) >= 12:
            values = dict(zip(names, map(to_int, counters[:4]), strict=True))
            values |= dict(zip(sent, map(to_int, counters[8:12]), strict=True))
            found.append((interface.strip(), values))
    return found


def rdma(folder: str, name: str) -> list[tuple[str, int, int]]:
    """The lines of an rdma file: device, handles, objects; ``max`` is 2^32 - 1."""
    found = []
    for line in text(folder, name).splitlines():
        values = fields(line)
        handles, objects = (
            min(to_int(values.get(key, "0")), 2**32 - 1) for key in ("hca_handle", "hca_object")
        )
        found.append((line.split()[0], handles, objects))
    return found
