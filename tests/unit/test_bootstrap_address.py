"""Socket addresses and grouping, the zygote's address included."""

from __future__ import annotations

import hashlib

import pytest

from pyshim.bootstrap.address import (
    MAX_PATH_BYTES,
    AddressError,
    group_id,
    path_of,
    socket_path,
)
from pyshim.zygote.address import fnv1a_64
from pyshim.zygote.address import socket_path as zygote_path

GRPC = "/run/containerd/containerd.sock"


def test_the_path_is_that_of_the_go_shim() -> None:
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/abc").hexdigest()
    assert socket_path("/run/containerd/s", GRPC, "k8s.io", "abc") == f"/run/containerd/s/{digest}"
    assert socket_path("/run/containerd/s/", GRPC + "/", "k8s.io", "abc").endswith(digest)


def test_another_daemon_namespace_or_group_has_another_socket() -> None:
    paths = {socket_path("/s", a, n, g) for a in ("/a", "/b") for n in "mn" for g in "gh"}
    assert len(paths) == 8


def test_a_path_as_long_as_allowed_and_one_byte_longer() -> None:
    longest = "/" + "f" * (MAX_PATH_BYTES - 66)
    assert len(socket_path(longest, GRPC, "n", "g")) == MAX_PATH_BYTES
    with pytest.raises(AddressError, match="PYSHIM_SOCKET_DIR"):
        socket_path(longest + "f", GRPC, "n", "g")


@pytest.mark.parametrize(
    ("config", "group"),
    [
        ({}, "own"),
        ({"annotations": None}, "own"),
        ({"annotations": []}, "own"),
        ({"annotations": {"io.kubernetes.cri.sandbox-id": ""}}, "own"),
        ({"annotations": {"io.kubernetes.cri.sandbox-id": 7}}, "own"),
        ({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}, "pod"),
        (
            {
                "annotations": {
                    "io.kubernetes.cri.sandbox-id": "pod",
                    "io.containerd.runc.v2.group": "group",
                }
            },
            "group",
        ),
    ],
)
def test_groups(config: dict[str, object], group: str) -> None:
    assert group_id("own", config) == group


def test_addresses_that_name_no_file() -> None:
    assert path_of("unix:///s/x\n") == "/s/x"
    assert path_of("/s/x") == "/s/x"
    assert path_of("@abstract") == path_of("") == path_of('{"version":2}') == ""


def test_fnv_1a() -> None:  # the values that its authors publish
    assert fnv1a_64(b"") == 0xCBF29CE484222325
    assert fnv1a_64(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a_64(b"foobar") == 0x85944171F73967E8


def test_the_zygote_has_a_socket_for_each_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSHIM_RUNTIME_DIR", "/r")
    assert zygote_path("foobar", "b") == "/r/zygote-b-85944171f73967e8.sock"
