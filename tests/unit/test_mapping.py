"""What ``portproxy -p`` accepts, and what it says about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproxy.mapping import Mapping, MappingError, endpoint, parse

ADDRESSES = st.ip_addresses().map(str)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9]{0,9}){0,2}", fullmatch=True)
MAPPINGS = st.builds(
    Mapping,
    ADDRESSES,
    st.integers(0, 65535),
    ADDRESSES | NAMES,
    st.integers(1, 65535),
)


@given(MAPPINGS, st.sampled_from(["", "/tcp"]))
def test_text_is_read_back(mapping: Mapping, suffix: str) -> None:
    assert parse(f"{mapping}{suffix}") == mapping


@given(st.text() | st.text("0123456789:.[]/tcpx", max_size=30))
def test_any_text_is_a_mapping_or_one_line(text: str) -> None:
    try:
        mapping = parse(text)
    except MappingError as error:
        assert str(error)
        assert len(str(error).splitlines()) == 1
    else:
        assert parse(str(mapping)) == mapping


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8080:10.0.0.2:80", Mapping("0.0.0.0", 8080, "10.0.0.2", 80)),
        ("127.0.0.1:0:web:80/tcp", Mapping("127.0.0.1", 0, "web", 80)),
        ("[::1]:8080:[fd00::2]:80", Mapping("::1", 8080, "fd00::2", 80)),
        ("8080:[FD00::2]:80", Mapping("0.0.0.0", 8080, "fd00::2", 80)),
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
        ("80:h:80/udp", "udp is not supported yet"),
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
