"""Loopback connections by the kernel: which they are, what the kernel is told, in which order."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portproxy import kernel, localnet, nft, nftlink
from portproxy.localnet import Links, Way
from portproxy.nft import Forward, Kernel, NftError, forwards, obstacle, ruleset
from portproxy.settings import SettingError
from portproxy.spec import Spec, make

OWN, OTHER = "portproxy_1", "portproxy_2"
PLAIN = Forward("tcp", "", 8080, "10.0.0.2", 80)
ASKED = Forward("tcp", "", 8080, "10.0.0.2", 80, loopback=True)
EXACT = Forward("udp", "127.0.0.5", 53, "10.0.0.2", 53, loopback=True)


def spec(publish: str, **options: object) -> Spec:
    made = make(publish, options, "")[0]
    return made.resolved(made.mapping.host)


# --- What is asked for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("publish", "loopback"),
    [
        ("80:10.0.0.2:80", True),
        ("127.0.0.5:80:10.0.0.2:80", True),
        ("10.0.0.1:80:10.0.0.2:80", False),
        ("[::]:80:[fd00::2]:80", False),
    ],
)
def test_which_mappings_have_loopback_connections(publish: str, loopback: bool) -> None:
    asked = spec(publish, mode="auto", loopback=True)
    assert obstacle(asked) == ""
    assert [each.loopback for each in forwards(asked)] == [loopback]
    without = spec(publish, mode="auto")
    assert without.loopback is False
    assert obstacle(without) or not forwards(without)[0].loopback


@pytest.mark.parametrize(
    "publish", ["[::1]:80:[fd00::2]:80", "80:127.0.0.1:80", "127.0.0.1:80:127.0.0.2:80"]
)
def test_what_stays_with_the_data_plane(publish: str) -> None:
    assert "loopback addresses are not routed" in obstacle(spec(publish, loopback=True))


def test_a_mapping_of_a_loopback_address_needs_the_setting() -> None:
    assert "without loopback=true" in obstacle(spec("127.0.0.1:80:10.0.0.2:80"))


def test_the_setting_is_true_or_false() -> None:
    with pytest.raises(SettingError, match="loopback: 'yes' is not true or false"):
        make("80:10.0.0.2:80", {"loopback": "yes"}, "")


# --- What the kernel is told ---------------------------------------------------------------------


def test_without_the_setting_the_text_is_what_it_was() -> None:
    text = ruleset(OWN, [PLAIN])
    assert not any(word in text for word in ("fence", "@loopback", "opened", "masquerade"))
    output = text.partition("chain output")[2]
    assert output.index("ip daddr 127.0.0.0/8 accept") < output.index("dnat to")


def test_the_text_with_loopback_connections() -> None:
    text = ruleset(OWN, [PLAIN, EXACT], Links(("b0",), ("b0",)))
    output = text.partition("chain output")[2].partition("}")[0]
    rules = [line.strip() for line in output.splitlines()[2:]]
    assert [rule for rule in rules if rule] == [
        "dnat to ip daddr . meta l4proto . th dport map @exact",
        "ip daddr 127.0.0.0/8 dnat to meta l4proto . th dport map @loopback",
        "ip daddr 127.0.0.0/8 accept",
        "fib daddr type local dnat to meta l4proto . th dport map @any",
    ]
    assert 'iifname != "lo" ip daddr 127.0.0.0/8 drop' in text
    assert 'iifname != "lo" ip saddr 127.0.0.0/8 drop' in text
    assert "ip saddr 127.0.0.0/8 oifname @through masquerade" in text
    assert text.count('elements = { "b0" }') == 2


def test_what_is_noted_keeps_its_fence_without_any_port() -> None:
    text = ruleset(OWN, [], Links((), ("b0",)))
    assert "chain fence" in text
    assert "table ip6 portproxy_1 {\n    map" not in text


def names(messages: list[Any], attribute: str) -> list[str]:
    return [name for each in messages if (name := each.get_attr(attribute)) is not None]


def test_the_messages_with_loopback_connections() -> None:
    plain = nftlink.replacement(OWN, [PLAIN])
    made = nftlink.replacement(OWN, [ASKED, EXACT], Links(("b0",), ("lo",)))
    chains = ["prerouting", "output"]
    assert names(plain, "NFTA_SET_NAME") == ["exact", "any"]
    assert names(plain, "NFTA_CHAIN_NAME") == chains
    assert names(made, "NFTA_SET_NAME") == ["exact", "any", "loopback", "through", "opened"]
    assert names(made, "NFTA_CHAIN_NAME") == ["postrouting", "fence", *chains]
    elements = {
        each.get_attr("NFTA_SET_ELEM_LIST_SET"): each.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
        for each in made
        if each.get_attr("NFTA_SET_ELEM_LIST_SET")
    }
    assert b"b0" + bytes(14) in elements["through"]
    assert struct.pack("=I", socket.if_nametoindex("lo")) in elements["opened"]
    with pytest.raises(OSError, match="there is no interface nowhere"):
        nftlink.replacement(OWN, [], Links((), ("nowhere",)))
    assert elements["loopback"] == elements["any"]
    assert elements["exact"].count(b"\x7f\0\0\x05") == 1
    for each in made:
        each.encode()


# --- In which order ------------------------------------------------------------------------------


class World:
    """A kernel: the sysctls are files, and tables are what they note.  ``done``: what was done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted: dict[str, set[str]] = {}
        self.living = {OWN, OTHER}
        self.done: list[str] = []
        self.refuses = False

    def add(self, name: str, value: int = 0) -> None:
        (self.path / name).mkdir()
        (self.path / name / "route_localnet").write_text(str(value))

    def is_open(self, name: str) -> bool:
        return (self.path / name / "route_localnet").read_text() == "1"

    def carry_out(self, messages: list[tuple[str, list[Forward], Links]]) -> None:
        if self.refuses:
            raise OSError(22, "Invalid argument")
        for name, wanted, links in messages:
            self.noted.pop(name, None)
            if wanted or links:
                self.noted[name] = set(links.opened)
            state = "".join(name for name in ("b0", "c0") if self.is_open(name))
            self.done.append(f"{name} notes {sorted(links.opened)}, open: {state}")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    for name in ("all", "b0", "c0"):
        made.add(name)
    monkeypatch.setattr(localnet, "SETTINGS", tmp_path)
    monkeypatch.setattr(nft, "_lives", lambda table: table in made.living)
    monkeypatch.setattr(nftlink, "tables", lambda: [(2, name) for name in made.noted])
    monkeypatch.setattr(nftlink, "opened", lambda name: made.noted[name])
    monkeypatch.setattr(nftlink, "carry_out", made.carry_out)
    monkeypatch.setattr(
        nftlink, "replacement", lambda name, wanted, links=nft.NO_LINKS: [(name, wanted, links)]
    )
    yield made


def test_it_is_noted_before_it_is_opened_and_until_it_is_closed(world: World) -> None:
    own = Kernel(OWN)
    own.put([ASKED], {"b0"})
    assert world.is_open("b0")
    own.put([ASKED], {"c0"})
    assert (world.is_open("b0"), world.is_open("c0")) == (False, True)
    own.remove()
    assert not world.is_open("c0")
    assert world.done == [
        f"{OWN} notes ['b0'], open: ",
        f"{OWN} notes ['c0'], open: ",
        f"{OWN} notes [], open: ",
    ]
    assert world.noted == {}


@pytest.mark.parametrize("where", ["b0", "all"])
def test_what_was_open_is_neither_noted_nor_closed(world: World, where: str) -> None:
    localnet.open_up([where])
    own = Kernel(OWN)
    own.put([ASKED], {"b0"})
    assert world.noted == {OWN: set()}
    own.remove()
    assert world.is_open(where)


def test_the_last_one_closes(world: World) -> None:
    one, other = Kernel(OWN), Kernel(OTHER)
    one.put([ASKED], {"b0"})
    other.put([ASKED], {"b0"})
    one.remove()
    assert world.is_open("b0")
    assert world.noted == {OTHER: {"b0"}}
    other.remove()
    assert not world.is_open("b0")


def test_one_that_is_gone_keeps_nothing_open(world: World) -> None:
    one, gone = Kernel(OWN), Kernel(OTHER)
    gone.put([ASKED], {"b0"})
    world.living.remove(OTHER)
    one.put([ASKED], {"b0"})
    one.remove()
    assert not world.is_open("b0")


def test_a_successor_closes_what_nobody_else_has(world: World) -> None:
    Kernel(OWN).put([ASKED], {"b0"})
    Kernel(OTHER).put([ASKED], {"b0", "c0"})
    world.living.remove(OTHER)
    assert nft.remove_stale() == [OTHER]
    assert (world.is_open("b0"), world.is_open("c0")) == (True, False)
    world.living.remove(OWN)
    assert nft.remove_stale() == [OWN]
    assert not world.is_open("b0")
    assert world.noted == {}


def test_a_table_of_our_own_pid_is_a_predecessors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container each portproxy may have the same pid."""
    Kernel(OWN).put([ASKED], {"b0"})
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert nft.remove_stale() == [OWN]
    assert not world.is_open("b0")


@pytest.mark.parametrize("again", [set(), {"c0"}])
def test_what_the_kernel_refuses_leaves_open_what_was(world: World, again: set[str]) -> None:
    own = Kernel(OWN)
    own.put([ASKED], {"b0"})
    world.refuses = True
    with pytest.raises(NftError, match="the kernel refuses the nft table"):
        own.put([ASKED, EXACT], again)
    assert (world.is_open("b0"), world.is_open("c0")) == (True, False)
    assert own.links == Links(("b0",), ("b0",))


def test_what_cannot_be_opened_leaves_all_as_it_was(world: World) -> None:
    own = Kernel(OWN)
    own.put([ASKED], {"b0"})
    with pytest.raises(NftError, match="cannot set route_localnet: No such file or directory"):
        own.put([ASKED], {"c0", "gone"})
    assert (world.is_open("b0"), world.is_open("c0")) == (True, False)
    assert world.noted == {OWN: {"b0"}}
    assert own.links == Links(("b0",), ("b0",))


def test_what_cannot_be_closed_keeps_its_note_and_its_fence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Kernel(OWN)
    own.put([ASKED], {"b0"})
    monkeypatch.setattr(localnet, "close", lambda names: set(names))
    own.remove()
    assert world.noted == {OWN: {"b0"}}
    world.living.remove(OWN)
    nft.remove_stale()
    assert world.noted == {OWN: {"b0"}}


def test_an_interface_that_has_gone_needs_no_closing(world: World) -> None:
    assert localnet.close(["gone"]) == set()


# --- What people are told ------------------------------------------------------------------------


def told(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the self test says when connections from 127.0.0.0/8 fail and others do not."""

    async def problems(forward: Forward, host: str, how: str = "") -> list[str]:
        return [f"from {host}{how}"] if host.startswith("127.") else []

    monkeypatch.setattr(kernel, "connection_problems", problems)
    monkeypatch.setattr(kernel, "own_address", lambda version: "10.0.0.1")
    monkeypatch.setattr(kernel, "routing_problems", lambda version: ["routing"])
    monkeypatch.setattr(localnet, "ways_to", lambda some: {each: Way("b0") for each in some})
    return asyncio.run(kernel.self_test(forward))


def test_the_self_test_tries_loopback_connections(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(PLAIN, monkeypatch) == ["routing"]
    closed = "net.ipv4.conf.b0.route_localnet has been set back to 0"
    assert told(ASKED, monkeypatch) == ["from 127.0.0.1 from 127.0.0.1", closed, "routing"]
    assert told(EXACT, monkeypatch) == ["from 127.0.0.5", closed]
    localnet.open_up(["b0"])
    assert told(EXACT, monkeypatch) == ["from 127.0.0.5"]


# --- The lock ------------------------------------------------------------------------------------


def test_two_are_not_at_it_at_once(world: World) -> None:
    entered = threading.Event()
    order: list[str] = []

    def second() -> None:
        entered.set()
        with localnet.alone():
            order.append("second")

    thread = threading.Thread(target=second)
    with localnet.alone():
        thread.start()
        assert entered.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_who_keeps_the_lock_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet, "LOCK_BOUND_S", 0.01)
    entered = 0
    with localnet.alone(), localnet.alone():
        entered += 1
    assert entered == 1
