"""What ``portproxy -p`` accepts, and what it says about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproxy.mapping import Mapping, MappingError, endpoint, parse, parse_all

ADDRESSES = st.ip_addresses().map(str)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9]{0,9}){0,2}", fullmatch=True)
PATHS = st.from_regex(r"[/@][a-zA-Z0-9_./-]{1,60}", fullmatch=True)
NAMESPACES = st.sampled_from(["", "netns:blue", "netns:/run/x/net", "pid:12", "container:0123abcd"])
PROTOCOLS = st.sampled_from(["tcp", "udp", "sctp", "both"])


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    """Any mapping that can be written."""
    kind = draw(st.sampled_from(["port", "range", "unix", "fd"]))
    ports = draw(st.integers(2, 500)) if kind == "range" else 1
    spread = ports > 1 and draw(st.booleans())
    first = draw(st.integers(1, 65536 - ports)) if ports > 1 else draw(st.integers(0, 65535))
    to_unix = draw(st.booleans()) and not spread
    netns = "" if to_unix else draw(NAMESPACES)
    listens = kind in {"port", "range"}
    only_tcp = to_unix or kind == "unix"
    return Mapping(
        draw(ADDRESSES) if listens else "0.0.0.0",
        first if listens else 0,
        "" if to_unix else draw(ADDRESSES if netns else ADDRESSES | NAMES),
        0 if to_unix else draw(st.integers(1, 65536 - ports)),
        "tcp" if only_tcp else draw(PROTOCOLS),
        ports,
        spread,
        draw(PATHS) if kind == "unix" else "",
        draw(st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True)) if kind == "fd" else "",
        draw(NAMESPACES) if listens else "",
        draw(PATHS) if to_unix else "",
        netns,
    )


@given(mappings())
def test_text_is_read_back(mapping: Mapping) -> None:
    assert parse(str(mapping)) == mapping


@given(
    st.text() | st.text("0123456789:.[]/tcpx", max_size=30) | st.text("1:-unixfd@/!h.", max_size=30)
)
def test_any_text_is_a_mapping_or_one_line(text: str) -> None:
    try:
        mapping = parse(text)
    except MappingError as error:
        assert str(error)
        assert len(str(error).splitlines()) == 1
    else:
        assert parse(str(mapping)) == mapping


def test_both_is_two_mappings() -> None:
    assert [each.protocol for each in parse_all("53:10.0.0.2:53/both")] == ["tcp", "udp"]
    assert [each.protocol for each in parse_all("53:10.0.0.2:53/udp")] == ["udp"]


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080:10.0.0.2:80", Mapping("0.0.0.0", 8080, "10.0.0.2", 80)),
        ("127.0.0.1:0:web:80/tcp", Mapping("127.0.0.1", 0, "web", 80)),
        ("[::1]:8080:[fd00::2]:80", Mapping("::1", 8080, "fd00::2", 80)),
        ("8080:[FD00::2]:80", Mapping("0.0.0.0", 8080, "fd00::2", 80)),
        ("53:10.0.0.2:53/udp", Mapping("0.0.0.0", 53, "10.0.0.2", 53, "udp")),
        ("8000-8009:h:80", Mapping("0.0.0.0", 8000, "h", 80, ports=10)),
        ("8000-8009:h:1-10", Mapping("0.0.0.0", 8000, "h", 1, ports=10, spread=True)),
        ("unix:/run/a:h:80", Mapping("0.0.0.0", 0, "h", 80, listen_unix="/run/a")),
        ("8080:unix:@b", Mapping("0.0.0.0", 8080, "", 0, unix="@b")),
        ("fd:web:h:80", Mapping("0.0.0.0", 0, "h", 80, listen_fd="web")),
        ("80:netns:/x/y!127.0.0.1:80", Mapping("0.0.0.0", 80, "127.0.0.1", 80, netns="netns:/x/y")),
        ("pid:7!80:h:80", Mapping("0.0.0.0", 80, "h", 80, listen_netns="pid:7")),
    ],
)
def test_forms(text: str, mapping: Mapping) -> None:
    assert parse(text) == mapping


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "1 parts"),
        ("80:80", "2 parts"),
        ("::1:80:h:80", "brackets"),
        ("[::1:80:h:80", "brackets"),
        ("[::1]x:80:h:80", "brackets"),
        ("[x]:80:h:80", "'x' is not an IPv6 address"),
        ("[fe80::1%eth0]:80:h:80", "zone"),
        ("web:80:h:80", "'web' is not an address to listen on"),
        (":80:h:80", "'' is not an address to listen on"),
        ("65536:h:80", "'65536' is not a port to listen on"),
        ("-1:h:80", "'-1' is not a port to listen on"),
        ("٣:h:80", "is not a port to listen on"),
        ("80:h:0", "'0' is not a port to forward to"),
        ("80::80", "'' is not a host"),
        ("80:a b:80", "'a b' is not a host"),
        ("80:10.0.0.256:80", "'10.0.0.256' is not an IPv4 address"),
        ("80-90:h:80-85", "11 ports cannot lead to 6"),
        ("90-80:h:80", "ends before it begins"),
        ("0-5:h:80", "'0' is not a port to listen on"),
        ("unix:/a:h:80/udp", "only tcp goes through a Unix socket"),
        ("80:unix:/a/udp", "only tcp goes through a Unix socket"),
        ("unix:/a", "comes : and where to forward to"),
        ("80:netns:x!h:80", "in a namespace the host must be an address"),
        ("80:netns:x!unix:/a", "is found by its path"),
        ("80:h:80/http", "'http' is no protocol"),
    ],
)
def test_errors_name_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(MappingError) as caught:
        parse(text)
    assert named in str(caught.value)
    assert repr(text) in str(caught.value)


def test_endpoint() -> None:
    assert endpoint("10.0.0.2", 80) == "10.0.0.2:80"
    assert endpoint("::", 80) == "[::]:80"
