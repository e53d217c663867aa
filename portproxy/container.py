"""Finds the address of a container by a process of it, with rtnetlink inside its namespace.

The process is a pid, or the path of a file with a pid, which a container's successor writes anew.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from portproxy.namespaces import NamespaceError

GLOBAL_SCOPE = 0
QUERY_BOUND_S = 10.0


@dataclass(frozen=True)
class Address:
    """One address of a container."""

    interface: str
    address: str


def address_of(container: str, six: bool) -> str:
    """The first address of ``PID[:INTERFACE]``, of the family that is wanted or else of the other.

    Raises NamespaceError.  Takes some milliseconds: it is not for the event loop.
    """
    process, _, interface = container.partition(":")
    pid = _pid(process)
    found = [
        each
        for each in addresses_in(f"/proc/{pid}/ns/net")
        if not interface or each.interface == interface
    ]
    # Sorting is stable: the kernel's order stays within a family.
    found.sort(key=lambda each: (":" in each.address) != six)
    if not found:
        where = f"interface {interface} of process {pid}" if interface else f"process {pid}"
        raise NamespaceError(f"{where} has no address but those of its loopback")
    return found[0].address


def _pid(process: str) -> int:
    if process.isdecimal():
        return int(process)
    try:
        return int(Path(process).read_text().strip())
    except (OSError, ValueError) as error:
        raise NamespaceError(f"{process} holds no pid: {error}") from error


def addresses_in(path: str) -> list[Address]:
    """The global addresses of a namespace.  Raises NamespaceError."""
    found: list[Address] = []
    failures: list[BaseException] = []
    if os.path.realpath(path) == path and not os.path.exists(path):
        raise NamespaceError(f"{path.split('/')[2]} is no process that runs")

    def look() -> None:
        # Only this thread enters the namespace, and it ends there.
        from pyroute2 import IPRoute, netns

        try:
            netns.setns(path, flags=os.O_RDONLY)
            with IPRoute() as route:
                names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
                for each in route.get_addr():
                    if each["scope"] == GLOBAL_SCOPE and each["family"] in {
                        socket.AF_INET,
                        socket.AF_INET6,
                    }:
                        text = each.get_attr("IFA_ADDRESS")
                        found.append(Address(names.get(each["index"], ""), text))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(QUERY_BOUND_S)
    if thread.is_alive():
        raise NamespaceError(f"{path} has not answered in {QUERY_BOUND_S:.0f} s")
    if failures:
        raise NamespaceError(f"cannot look into {path}: {failures[0]}")
    return found
