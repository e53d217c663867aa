"""What lets connections from 127.0.0.0/8 leave the host: a route, and its interface's sysctl.

``route_localnet`` is 0 by default: the kernel then neither sends from a loopback address nor takes
an answer to one.  Whoever sets it puts ``portproxy.nft``'s fence up first, and notes there what to
set back; nothing here remembers anything.  All of it is about the thread's network namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/proc/sys/net/ipv4/conf")
LOOPBACK = "lo"
LOCK_BOUND_S = 2.0
LOCK_INTERVAL_S = 0.02


@dataclass(frozen=True)
class Links:
    """Interfaces: ``through`` which loopback connections leave; ``opened``, whose sysctl was 0."""

    through: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.through or self.opened)


@dataclass(frozen=True)
class Way:
    """How an address is reached from 127.0.0.1; without an interface it is the host's own."""

    interface: str = ""
    problem: str = ""


def ways_to(addresses: Collection[str]) -> dict[str, Way]:
    """Asks the kernel for the routes to IPv4 addresses, and whether they can be opened."""
    if not addresses:
        return {}
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    found = {}
    with IPRoute() as route:
        for address in addresses:
            try:
                index = route.route("get", dst=address)[0].get_attr("RTA_OIF")
                name = str(route.get_links(index)[0].get_attr("IFLA_IFNAME"))
            except (NetlinkError, IndexError):
                found[address] = Way(problem=f"there is no route to {address}")
            else:
                found[address] = _way_through(name)
    return found


def _way_through(name: str) -> Way:
    if name == LOOPBACK:
        return Way()
    if not is_open(name) and not os.access(SETTINGS / name / "route_localnet", os.W_OK):
        return Way(problem=f"{title(name)} is 0 and cannot be written here")
    return Way(name)


def title(name: str) -> str:
    """The interface's sysctl, as sysctl(8) has it."""
    return f"net.ipv4.conf.{name}.route_localnet"


def is_open(name: str) -> bool:
    """Whether loopback connections pass through an interface: its own sysctl or ``all`` is set."""
    for each in (name, "all"):
        with contextlib.suppress(OSError):
            if (SETTINGS / each / "route_localnet").read_text().strip() == "1":
                return True
    return False


def open_up(names: Iterable[str]) -> None:
    """Sets the sysctl of interfaces.  Raises OSError."""
    for name in names:
        (SETTINGS / name / "route_localnet").write_text("1")


def close(names: Iterable[str]) -> set[str]:
    """Sets the sysctl of interfaces back to 0; those that stay open all the same."""
    stuck = set()
    for name in names:
        try:
            (SETTINGS / name / "route_localnet").write_text("0")
        except FileNotFoundError:
            pass  # the interface has gone, and its sysctl with it
        except OSError:
            stuck.add(name)
    return stuck


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keeps other portproxies of this namespace from opening and closing interfaces meanwhile.

    The lock is on a file of the kernel's, which is another one in each network namespace, so that
    none can be lost.  Anybody may read, thus lock that file: who keeps it is not waited for.
    """
    fd = -1
    with contextlib.suppress(OSError):
        fd = os.open(SETTINGS / "all" / "route_localnet", os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCK_BOUND_S
        while fd >= 0 and time.monotonic() < end:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_INTERVAL_S)
        yield
    finally:
        if fd >= 0:
            os.close(fd)
