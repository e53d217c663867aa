"""What `start` answers to each generation of containerd, and to CRI-O."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from pyshim.api import bootstrap_pb2, options_pb2
from tests.integration.conftest import eventually
from tests.integration.test_launcher import MONITOR, Host, connect, refused

GENERATIONS = {
    "1.6": {},
    "1.7 and 2.x": {"MAX_SHIM_VERSION": "2"},
}


@pytest.fixture
def host(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Folders and processes of one test."""
    opened = Host(programs, tmp_path_factory.mktemp("h"))
    yield opened
    opened.end()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_address_is_what_all_generations_read(host: Host, generation: str) -> None:
    bundle = host.bundle("b")
    path = host.start(bundle, **GENERATIONS[generation])
    connect(path)
    assert (bundle / "address").read_text() == f"unix://{path}"


def test_json_of_version_3_on_request(host: Host) -> None:
    bundle = host.bundle("b")
    done = host.act("start", bundle, MAX_SHIM_VERSION="2", PYSHIM_API="3")
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert (answer["version"], answer["protocol"]) == (3, "ttrpc")
    connect(Path(answer["address"].removeprefix("unix://")))
    assert (bundle / "address").read_text() == answer["address"]


def test_containerd_1_6_never_gets_version_3(host: Host) -> None:
    done = host.act("start", host.bundle("b"), PYSHIM_API="3")
    assert done.stdout.startswith(b"unix:///")


def test_a_version_that_there_is_not(host: Host) -> None:
    assert "PYSHIM_API" in refused(host.act("start", host.bundle("b"), PYSHIM_API="9"))
    assert not host.named(MONITOR)


def test_params_are_answered_with_a_result(host: Host) -> None:
    """containerd 2.3: the options and the events' address come on stdin."""
    params = bootstrap_pb2.BootstrapParams(
        instance_id="c", namespace="test", containerd_ttrpc_address="/run/t"
    )
    chosen = options_pb2.Options(root="/r")
    packed = any_pb2.Any(type_url=chosen.DESCRIPTOR.full_name, value=chosen.SerializeToString())
    params.extensions.add(value=packed)
    done = host.act("start", host.bundle("b"), stdin=params.SerializeToString())
    assert (done.returncode, done.stderr) == (0, b"")
    result = bootstrap_pb2.BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (2, "ttrpc")
    connect(Path(result.address.removeprefix("unix://")))


def test_core_scheduling_is_no_failure_where_the_kernel_has_none(host: Host) -> None:
    connect(host.start(host.bundle("b"), SCHED_CORE="1"))


def test_the_containers_of_a_cri_o_pod_share_a_monitor(host: Host) -> None:
    """CRI-O names no address, and its pods by an annotation of its own."""
    config = json.dumps({"annotations": {"io.kubernetes.cri-o.SandboxID": "pod"}})
    paths = set()
    for name in ("pause", "app"):
        bundle = host.bundle(name, config)
        arguments = ("-namespace", "default", "-address", "", "-id", name)
        done = host.run(*arguments, "start", cwd=bundle, TTRPC_ADDRESS="", MAX_SHIM_VERSION="2")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"unix:///")
        paths.add(done.stdout)
    assert len(paths) == 1
    eventually(lambda: len(host.monitors()) == 1, "one monitor")


@pytest.mark.parametrize("action", ["start", "delete"])
def test_a_lock_that_is_held_is_not_waited_for_long(host: Host, action: str) -> None:
    """Another `start` may be stopped while it holds the sockets' folder."""
    bundle = host.bundle("b")
    host.start(bundle)
    fd = os.open(host.sockets, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = host.act(action, bundle)
    finally:
        os.close(fd)
    if action == "start":
        assert "locked" in refused(done)
    else:
        assert (done.returncode, done.stderr) == (0, b"")
