"""What containerd's generations send to `start`, and the options by every route."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from pyshim.api import bootstrap_pb2, linuxrunc_pb2, options_pb2, runtimeoptions_pb2
from pyshim.bootstrap import dialect
from pyshim.bootstrap.flags import Flags
from pyshim.runtime import options
from pyshim.ttrpc.status import Code, StatusError

FLAGS = Flags(id="c", namespace="n")
TOML = b'BinaryName = "/usr/bin/crun"\nSystemdCgroup = true\nIoUid = 7\nForeign = 1\n'


def packed(message: Message, prefix: str = "") -> Any:
    """An Any as containerd makes it: with the bare name."""
    name = f"{prefix}{message.DESCRIPTOR.full_name}"
    return Any(type_url=name, value=message.SerializeToString())


@pytest.mark.parametrize(
    "message",
    [
        options_pb2.Options(binary_name="/usr/bin/crun", systemd_cgroup=True, io_uid=7),
        runtimeoptions_pb2.Options(config_body=TOML),
        linuxrunc_pb2.RuncOptions(runtime="/usr/bin/crun", systemd_cgroup=True),
    ],
)
@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_options_by_each_route(message: Message, prefix: str) -> None:
    found = options.decode(packed(message, prefix))
    assert (found.binary_name, found.systemd_cgroup) == ("/usr/bin/crun", True)


def test_options_of_old_clients() -> None:
    old = linuxrunc_pb2.CreateOptions(io_uid=1, io_gid=2, no_pivot_root=True, shim_cgroup="/s")
    found = options.decode(packed(old))
    assert (found.io_uid, found.io_gid, found.no_pivot_root) == (1, 2, True)
    assert found.shim_cgroup == "/s"


def test_options_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_bytes(TOML)
    generic = runtimeoptions_pb2.Options(config_path=str(path))
    assert options.decode(packed(generic)).io_uid == 7


def test_no_options() -> None:
    assert options.decode(Any()) == options_pb2.Options()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Any(type_url="a/some.Options"), "some.Options"),
        (Any(type_url=options.RUNC, value=b"\xff"), options.RUNC),
        (packed(runtimeoptions_pb2.Options(config_body=b"= 1")), "options"),
        (packed(runtimeoptions_pb2.Options(config_body=b"IoUid = 'x'")), "options"),
        (packed(runtimeoptions_pb2.Options(config_path="/no/such")), "/no/such"),
    ],
)
def test_wrong_options(wrong: Any, named: str) -> None:
    with pytest.raises(StatusError) as caught:
        options.decode(wrong)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert named in caught.value.message


def test_params_of_2_3() -> None:
    params = bootstrap_pb2.BootstrapParams(
        instance_id="c", namespace="n", socket_dir="/run/s", containerd_ttrpc_address="/run/t"
    )
    params.extensions.add(value=Any(type_url="something.else"))
    params.extensions.add(value=packed(options_pb2.Options(shim_cgroup="/shims")))
    found = dialect.parse(params.SerializeToString(), FLAGS)
    assert (found.options.shim_cgroup, found.socket_dir) == ("/shims", "/run/s")
    assert found.ttrpc_address == "/run/t"


def test_params_with_a_folder_that_is_too_long() -> None:
    params = bootstrap_pb2.BootstrapParams(instance_id="c", namespace="n", socket_dir="/" * 43)
    with pytest.raises(dialect.DialectError, match="42"):
        dialect.parse(params.SerializeToString(), FLAGS)


def test_an_any_is_not_taken_for_params() -> None:
    data = packed(options_pb2.Options(root="/r")).SerializeToString()
    assert dialect.parse(data, FLAGS).options.root == "/r"
    assert dialect.parse(b"", FLAGS) == dialect.Given()


@given(st.binary(max_size=200))
def test_whatever_comes_is_obeyed_or_refused(data: bytes) -> None:
    try:
        dialect.parse(data, FLAGS)
    except dialect.DialectError as error:
        assert str(error)


def test_stdin_that_stays_open_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "STDIN_TIMEOUT_S", 0.1)
    reader, writer = os.pipe()
    kept = os.dup(0)
    os.dup2(reader, 0)
    try:
        os.write(writer, b"some")
        assert dialect.read_stdin() == b"some"
    finally:
        os.dup2(kept, 0)
        for fd in (reader, writer, kept):
            os.close(fd)


# --- Answers -------------------------------------------------------------------------------------

ADDRESS = "unix:///run/containerd/s/0123"


@pytest.mark.parametrize(
    ("wanted", "ceiling", "expected"),
    [
        ("", None, 2),  # 1.6
        ("", "2", 2),
        ("2", "2", 2),
        ("3", "2", 3),  # every 2.x says 2 and takes 3
        ("3", None, 2),  # 1.6 reads nothing but an address
    ],
)
def test_the_version_of_the_answer(wanted: str, ceiling: str | None, expected: int) -> None:
    assert dialect.version(wanted, ceiling) == expected


@pytest.mark.parametrize("wanted", ["1", "4", "x", " 3"])
def test_a_version_that_there_is_not(wanted: str) -> None:
    with pytest.raises(dialect.DialectError, match="PYSHIM_API"):
        dialect.version(wanted, "2")


def test_an_address_alone_is_for_all_generations() -> None:
    assert dialect.answer(dialect.Given(), ADDRESS, 2) == ADDRESS.encode()


def test_version_3_is_json() -> None:
    found = json.loads(dialect.answer(dialect.Given(), ADDRESS, 3))
    assert found == {"version": 3, "address": ADDRESS, "protocol": "ttrpc"}


@pytest.mark.parametrize("api", [2, 3])
def test_who_gave_params_gets_a_result(api: int) -> None:
    data = dialect.answer(dialect.Given(in_params=True), ADDRESS, api)
    result = bootstrap_pb2.BootstrapResult.FromString(data)
    assert (result.version, result.address, result.protocol) == (api, ADDRESS, "ttrpc")
    assert data.strip() == data  # early 2.3.x trimmed it before it decoded it
