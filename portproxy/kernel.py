"""Decides which mappings the kernel forwards, puts them there and tries whether it works.

The data plane listens on the same ports all the same: it holds them, and serves what the kernel
does not (connections to loopback addresses, but for those of IPv4 if ``loopback`` asks for them).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from portproxy import localnet
from portproxy.flows import forget_flows
from portproxy.nft import Forward, Kernel, NftError, forwards, obstacle, remove_stale
from portproxy.spec import Spec

TRY_BOUND_S = 3.0
NFT_BOUND_S = 10.0


@dataclass
class KernelMode:
    """The kernel's part of the work; ``warn`` tells people what it will not do."""

    warn: Callable[[str], None]
    kernel: Kernel = field(default_factory=Kernel)
    placed: dict[str, list[Forward]] = field(default_factory=dict)
    untried: dict[str, Forward] = field(default_factory=dict)  # by the title of its mapping
    begun: bool = False
    lacking: set[str] = field(default_factory=set)  # what loopback connections have been said to

    @property
    def keys(self) -> set[str]:
        """The mappings that the kernel forwards."""
        return set(self.placed)

    async def begin(self) -> None:
        """Removes what a crashed instance has left."""
        self.begun = True
        for name in await asyncio.to_thread(remove_stale):
            self.warn(f"removed the nft table {name}, which a portproxy that is gone has left")

    async def put(self, specs: dict[str, Spec]) -> None:
        """Has the kernel forward what it can of ``specs`` (which have addresses).

        Raises NftError if it cannot forward one whose mode is nft; what it did before stays then.
        """
        wanted: dict[str, list[Forward]] = {}
        for key, spec in specs.items():
            if spec.mode == "user":
                continue
            reason = obstacle(spec)
            if not reason:
                wanted[key] = forwards(spec)
            elif spec.mode == "nft":
                raise NftError(f"{spec.origin}: the kernel cannot forward {spec.title}: {reason}")
        if wanted and not self.begun:
            # A predecessor of our pid may have left a table, whose notes ours would replace.
            await self.begin()
        through = await self._ways(specs, wanted)
        if wanted == self.placed and not through:
            return
        flat = [each for some in wanted.values() for each in some]
        try:
            await asyncio.to_thread(self.kernel.put, flat, through)
        except NftError as error:
            if any(specs[key].mode == "nft" for key in wanted):
                raise
            self.warn(f"{error}; the data plane forwards everything")
            self.placed = {}
            return
        before, self.placed = self.placed, wanted
        old = {each for some in before.values() for each in some}
        changed = {each.port for each in old ^ set(flat) if each.protocol == "udp"}
        await asyncio.to_thread(forget_flows, changed)
        for key in sorted(wanted):
            more = key not in before or wanted[key][0].loopback > before[key][0].loopback
            if more and specs[key].mapping.protocol == "tcp":
                self.untried[specs[key].title] = wanted[key][0]

    async def _ways(self, specs: dict[str, Spec], wanted: dict[str, list[Forward]]) -> set[str]:
        """The interfaces by which loopback connections go.

        Takes out of ``wanted`` those that cannot, and says so once.
        """
        lacking = set()
        asking = {key: some for key, some in wanted.items() if some[0].loopback}
        addresses = {some[0].address for some in asking.values()}
        ways = await asyncio.to_thread(localnet.ways_to, addresses)
        for key, some in asking.items():
            way = ways[some[0].address]
            if not way.problem:
                continue
            if not some[0].bind:
                wanted[key] = [replace(each, loopback=False) for each in some]
            elif specs[key].mode == "nft":
                where = f"{specs[key].origin}: the kernel cannot forward {specs[key].title}"
                raise NftError(f"{where}: {way.problem}")
            else:
                del wanted[key]
            lacking.add(f"{way.problem}; the data plane serves loopback connections")
        for problem in sorted(lacking - self.lacking):
            self.warn(problem)
        self.lacking = lacking
        return {way.interface for way in ways.values() if way.interface}

    async def try_out(self) -> None:
        """Tries a connection through each mapping that is new, and says what is in its way."""
        untried, self.untried = self.untried, {}
        for name, forward in untried.items():
            for problem in await self_test(forward):
                self.warn(f"{name}: {problem}")

    async def retire(self) -> None:
        """Lets nobody new in; what is there goes on, also through interfaces that were opened."""
        with contextlib.suppress(NftError):
            await asyncio.to_thread(self.kernel.put, [], self.kernel.links.through)
        self.placed = {}

    async def remove(self) -> None:
        """Takes all rules out."""
        if self.kernel.placed:
            await asyncio.to_thread(self.kernel.remove)
        self.placed = {}


async def self_test(forward: Forward) -> list[str]:
    """Tries a connection through the rules, and one from loopback; what is wrong, or could be."""
    from_loopback = forward.loopback and bool(forward.bind)
    host = forward.bind or await asyncio.to_thread(own_address, forward.version)
    problems = []
    if host:
        problems += await connection_problems(forward, host)
    if forward.loopback:
        if not from_loopback:
            problems += await connection_problems(forward, "127.0.0.1", " from 127.0.0.1")
        if problems:
            way = (await asyncio.to_thread(localnet.ways_to, [forward.address]))[forward.address]
            if way.interface and not localnet.is_open(way.interface):
                problems.append(f"{localnet.title(way.interface)} has been set back to 0")
        problems = list(dict.fromkeys(problems))
    if from_loopback:
        return problems  # others do not come this way
    return problems + await asyncio.to_thread(routing_problems, forward.version)


async def connection_problems(forward: Forward, host: str, how: str = "") -> list[str]:
    """Tries one connection to ``host``; what is wrong with it."""
    try:
        opening = asyncio.open_connection(host, forward.port)
        _, writer = await asyncio.wait_for(opening, TRY_BOUND_S)
        writer.close()
    except ConnectionRefusedError:
        return [f"nothing listens on {forward.address} port {forward.host_port} yet"]
    except (OSError, asyncio.TimeoutError):
        return [f"no connection{how} reaches {forward.address} port {forward.host_port}"]
    return []


def routing_problems(version: int) -> list[str]:
    """What of this host's settings keeps other hosts' connections from being routed."""
    problems = []
    name = "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
    with contextlib.suppress(OSError):
        if Path(f"/proc/sys/{name}").read_text().strip() == "0":
            setting = name.replace("/", ".")
            problems.append(f"other hosts do not get through: {setting} is 0; set it to 1")
    chain = dropping_chain("ip" if version == 4 else "ip6")
    if chain:
        problems.append(f"{chain} drops what is forwarded; accept it there, as Docker's rules do")
    return problems


def dropping_chain(family: str) -> str:
    """A chain at the forward hook whose policy is drop; empty if there is none that nft shows."""
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return ""
    with contextlib.suppress(OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [program, "-j", "list", "chains"], capture_output=True, check=False, timeout=NFT_BOUND_S
        )
        for each in json.loads(done.stdout)["nftables"]:
            chain = each.get("chain", {})
            here = chain.get("family") in {family, "inet"} and chain.get("hook") == "forward"
            if here and chain.get("policy") == "drop":
                return f"chain {chain['name']} of table {chain['table']}"
    return ""


def own_address(version: int) -> str:
    """An address of this host that is not loopback; empty if there is none."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    from pyroute2 import IPRoute

    with contextlib.suppress(Exception), IPRoute() as route:
        for each in route.get_addr(family=family):
            text = str(each.get_attr("IFA_ADDRESS"))
            if not ipaddress.ip_address(text).is_loopback and each["scope"] == 0:
                return text
    return ""
