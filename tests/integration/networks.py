"""Network namespaces of a test: a host between a client and a container, joined by veth pairs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from tests.integration.relays import BOUND_S

T = TypeVar("T")
CLIENT, HOST_TO_CLIENT = "10.77.1.2", "10.77.1.1"
CONTAINER, HOST_TO_CONTAINER = "10.77.2.2", "10.77.2.1"
CLIENT6, HOST_TO_CLIENT6 = "fd77:1::2", "fd77:1::1"
CONTAINER6, HOST_TO_CONTAINER6 = "fd77:2::2", "fd77:2::1"
CLONE_NEWNET = 0x40000000


def ip(*words: str) -> None:
    """Runs ip(8)."""
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, check=False, timeout=BOUND_S
    )
    assert done.returncode == 0, (words, done.stderr)


class Network:
    """Three namespaces, which ``end`` removes with all that is in them."""

    def __init__(self) -> None:
        self.client, self.host, self.container = (
            f"pp{os.getpid()}{kind}" for kind in ("client", "host", "box")
        )
        self.made: list[str] = []
        try:
            self.make()
        except BaseException:
            self.end()
            raise

    def make(self) -> None:
        for name in (self.client, self.host, self.container):
            ip("netns", "add", name)
            self.made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        self.join(self.client, "c0", (CLIENT, CLIENT6), (HOST_TO_CLIENT, HOST_TO_CLIENT6))
        self.join(
            self.container, "b0", (CONTAINER, CONTAINER6), (HOST_TO_CONTAINER, HOST_TO_CONTAINER6)
        )
        self.within(self.host, lambda: write("/proc/sys/net/ipv4/ip_forward", "1"))
        self.within(self.host, lambda: write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))

    def join(self, name: str, link: str, there: tuple[str, str], here: tuple[str, str]) -> None:
        """A pair of interfaces between a namespace and the host's, and the way back."""
        peer = ("peer", "name", "eth0", "netns", name)
        ip("-n", self.host, "link", "add", link, "type", "veth", *peer)
        for where, device, addresses in ((self.host, link, here), (name, "eth0", there)):
            ip("-n", where, "addr", "add", f"{addresses[0]}/24", "dev", device)
            ip("-n", where, "addr", "add", f"{addresses[1]}/64", "dev", device, "nodad")
            ip("-n", where, "link", "set", device, "up")
        ip("-n", name, "route", "add", "default", "via", here[0])
        ip("-n", name, "route", "add", "default", "via", here[1])

    def within(self, name: str, do: Callable[[], T]) -> T:
        """What ``do`` gives in a namespace: in a thread of its own, which alone is there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    assert ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0
                finally:
                    os.close(fd)
                results.append(do())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(2 * BOUND_S)
        if errors:
            raise errors[0]
        return results[0]

    def end(self) -> None:
        for name in self.made:
            ip("netns", "del", name)
        self.made = []


def write(path: str, text: str) -> None:
    """Sets a sysctl of the namespace that the thread is in."""
    with open(path, "w") as file:
        file.write(text)


@pytest.fixture
def network() -> Iterator[Network]:
    """A host between a client and a container; nothing of it is left afterwards."""
    made = Network()
    yield made
    made.end()
