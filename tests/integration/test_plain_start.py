"""The plain `start`, which the launcher does without Python: what it takes on, what comes of it.

Most of it happens on a ``Stage`` where there is no Python: there what is not plain fails.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import any_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyshim.api import bootstrap_pb2, options_pb2, state_pb2
from pyshim.bootstrap import address as shim_address
from pyshim.bootstrap import dialect
from pyshim.bootstrap import flags as command_line
from pyshim.zygote import address
from tests.integration.conftest import eventually, interpreter
from tests.integration.test_launcher import (
    BOUND_S,
    MONITOR,
    PROGRAM,
    Host,
    environment_with,
    refused,
)

# A monitor that notes all that it was given, and ends.
RECORDER = """#!/bin/sh
set -e
draft="$RECORD/draft.$$"
mkdir "$draft"
cat /proc/self/fd/4 >"$draft/state"
printf '%s\\n' "$@" >"$draft/arguments"
tr '\\0' '\\n' </proc/$$/environ >"$draft/environment"
{ pwd; umask; cat /proc/self/oom_score_adj; ls /proc/$$/fd; } >"$draft/place"
mv "$draft" "$RECORD/done"
"""
FLAGS = ("-address", "/run/grpc", "-publish-binary", "/bin/true")
SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Stage:
    """A folder with a monitor, a lock as a zygote has it, and neither a zygote nor a Python."""

    def __init__(self, home: Path, programs: Path) -> None:
        self.home = home
        self.launcher = programs / PROGRAM
        self.sockets, self.bundle = home / "s", home / "b"
        self.bundle.mkdir()
        (home / "bin").mkdir()
        (home / "run").mkdir()
        python = home / "bin/python3"
        monitor = home / "bin" / MONITOR
        monitor.write_text("#!/bin/true\n")
        monitor.chmod(0o755)
        said = subprocess.run([self.launcher, "-v"], check=True, capture_output=True, text=True)
        build = said.stdout.split()[-1]
        self.zygote = home / "run" / Path(address.socket_path(str(python), build)).name
        self.zygote.touch()
        self.lock = os.open(f"{self.zygote}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYSHIM_PYTHON": str(python),
            "PYSHIM_RUNTIME_DIR": str(home / "run"),
            "PYSHIM_SOCKET_DIR": str(self.sockets),
        }
        self.config("{}")

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self.lock)

    def config(self, text: str | bytes) -> None:
        """Writes config.json."""
        data = text if isinstance(text, bytes) else text.encode()
        (self.bundle / "config.json").write_bytes(data)

    def run(
        self,
        *flags: str,
        name: str = "c",
        namespace: str = "test",
        stdin: bytes = b"",
        action: str = "start",
        **env: str,
    ) -> subprocess.CompletedProcess[bytes]:
        """Executes the launcher."""
        given = ["-namespace", namespace, "-id", name, *flags, action]
        return subprocess.run(
            [self.launcher, *given],
            cwd=self.bundle,
            env={**self.env, **env},
            input=stdin,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )

    def is_plain(self, *flags: str, stdin: bytes = b"", **env: str) -> bool:
        """Whether the launcher has done it; what it leaves to Python fails without a trace."""
        done = self.run(*flags, stdin=stdin, **env)
        sockets = list(self.sockets.glob("*"))
        for path in sockets:
            path.unlink()
        if done.returncode:
            assert "python3" in refused(done)
            assert not sockets
        return done.returncode == 0


@pytest.fixture
def host(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(programs, tmp_path_factory.mktemp("h"))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def stage(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("p"), programs)
    try:
        yield made
    finally:
        made.close()


# --- What it takes on ----------------------------------------------------------------------------


def test_the_socket_lies_where_python_says(stage: Stage) -> None:
    """For every length around two blocks of the hash."""
    for size in range(1, 129):
        name = "a" * (size - 1) + "b"
        done = stage.run(*FLAGS, name=name)
        path = shim_address.socket_path(str(stage.sockets), "/run/grpc", "test", name)
        assert (done.returncode, done.stdout.decode()) == (0, f"unix://{path}"), size
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert (stage.bundle / "address").read_text() == f"unix://{path}"
    assert stat.S_IMODE((stage.bundle / "address").stat().st_mode) == 0o600
    assert stat.S_IMODE(stage.sockets.stat().st_mode) == 0o700
    assert sorted(path.name for path in stage.bundle.iterdir()) == ["address", "config.json"]


def test_without_a_daemons_address(stage: Stage) -> None:
    path = shim_address.socket_path(str(stage.sockets), "", "test", "c")
    assert stage.run().stdout.decode() == f"unix://{path}"


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["-address=/run/grpc"], {}),
        (["-address", "/run//grpc"], {}),
        (["-address", "/run/../grpc"], {}),
        (["-address", "grpc"], {}),
        (["-publish-binary", "/ü"], {}),
        (["-debug=true"], {}),
        (["-info"], {}),
        (["-unknown"], {}),
        (["-bundle", "relative"], {}),
        (["-bundle", "/nonexistent"], {}),
        ([], {"PYSHIM_API": "2"}),
        ([], {"PYSHIM_SOCKET_DIR": "relative"}),
        ([], {"PYSHIM_SOCKET_DIR": f"/{'f' * 60}"}),
        ([], {"NAME": "ü"}),
    ],
)
def test_what_is_left_to_python(stage: Stage, flags: list[str], env: dict[str, str]) -> None:
    assert not stage.is_plain(*flags, **env)
    assert not (stage.bundle / "address").exists()


@pytest.mark.parametrize("name", ["..", ".a", "a/b", "a b", "", "ü", "a" * 129])
def test_names_that_are_left_to_python(stage: Stage, name: str) -> None:
    assert "python3" in refused(stage.run(name=name))
    assert "python3" in refused(stage.run(namespace=name))


def test_it_leaves_the_start_of_a_zygote_to_others(stage: Stage) -> None:
    """One that nobody finds, and one that has ended."""
    stage.zygote.unlink()
    assert not stage.is_plain()
    stage.zygote.touch()
    assert stage.is_plain()
    fcntl.flock(stage.lock, fcntl.LOCK_UN)
    assert not stage.is_plain()


def test_delete_is_for_python(stage: Stage) -> None:
    assert "python3" in refused(stage.run(action="delete"))


def test_a_monitor_that_cannot_be_executed(stage: Stage) -> None:
    (stage.home / "bin" / MONITOR).write_text("#!/nonexistent\n")
    assert not stage.is_plain()


def test_a_shim_that_is_there_already(stage: Stage) -> None:
    """Whoever listens is the shim of this container; another start finds it by Python."""
    path = shim_address.socket_path(str(stage.sockets), "", "test", "c")
    stage.sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert "python3" in refused(stage.run())
        listener.settimeout(BOUND_S)
        listener.accept()[0].close()
    assert Path(path).exists()
    assert stage.run().returncode == 0


# --- config.json ---------------------------------------------------------------------------------

MARKS = '{}[],:"\\0-.eE+tfn \n\x01'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@SLOW
@given(value=JSON, at=st.integers(0, 400), put=st.sampled_from(["", *MARKS]))
def test_nothing_is_taken_for_json_that_is_none(
    stage: Stage, value: object, at: int, put: str
) -> None:
    text = json.dumps({"a": value})
    at %= len(text)
    text = text[:at] + put + text[at + 1 :]
    stage.config(text)
    if stage.is_plain():
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "text",
    [
        " {} \n",
        '{"a": [1, -0.5e+3, true, false, null, "x\\n\\"\\/", {}, []], "b": {"c": "d"}}',
        json.dumps({"annotations": {"io.kubernetes.cri.container-type": "container"}}),
    ],
)
def test_plain_configurations(stage: Stage, text: str) -> None:
    stage.config(text)
    assert stage.is_plain()


def test_what_runc_makes_is_plain(stage: Stage) -> None:
    (stage.bundle / "config.json").unlink()
    subprocess.run(["runc", "spec", "--bundle", stage.bundle], check=True, timeout=BOUND_S)
    assert stage.is_plain()


@pytest.mark.parametrize("name", shim_address.GROUP_ANNOTATIONS)
def test_groups_are_for_python(stage: Stage, name: str) -> None:
    stage.config(json.dumps({"annotations": {name: "pod"}}))
    assert not stage.is_plain()
    escaped = "".join(f"\\u{ord(character):04x}" for character in name)
    stage.config(f'{{"annotations": {{"{escaped}": "pod"}}}}')
    assert not stage.is_plain()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 01}', '{"a": "ü"}', '{"a":' * 40 + "1" + "}" * 40, "{} {}"]
)
def test_configurations_that_are_left_to_python(stage: Stage, text: str) -> None:
    stage.config(text)
    assert not stage.is_plain()


# --- stdin ---------------------------------------------------------------------------------------


def packed(chosen: options_pb2.Options) -> bytes:
    """Options as containerd writes them."""
    made = any_pb2.Any(type_url=chosen.DESCRIPTOR.full_name, value=chosen.SerializeToString())
    return made.SerializeToString()


def test_options_that_start_does_not_need(stage: Stage) -> None:
    chosen = options_pb2.Options(
        binary_name="/usr/bin/runc", root="/run/r", systemd_cgroup=True, io_uid=100000
    )
    assert stage.is_plain(stdin=packed(chosen))
    chosen.binary_name = "b" * 5000
    assert stage.is_plain(stdin=packed(chosen))
    assert stage.is_plain(stdin=packed(options_pb2.Options()))
    chosen.shim_cgroup = "/g"
    assert not stage.is_plain(stdin=packed(chosen))


def test_what_is_no_message_is_for_python(stage: Stage) -> None:
    """There is no field 0."""
    made = any_pb2.Any(type_url=options_pb2.Options.DESCRIPTOR.full_name, value=b"\0\0")
    assert not stage.is_plain(stdin=made.SerializeToString())


def test_parameters_are_for_python(stage: Stage) -> None:
    params = bootstrap_pb2.BootstrapParams(instance_id="c", namespace="test")
    assert not stage.is_plain(stdin=params.SerializeToString())


OPTIONS = st.builds(
    options_pb2.Options,
    no_pivot_root=st.booleans(),
    shim_cgroup=st.sampled_from(["", "/g"]),
    io_uid=st.integers(0, 2**32 - 1),
    binary_name=st.text(max_size=20),
    root=st.text(max_size=200),
    systemd_cgroup=st.booleans(),
)


@SLOW
@given(chosen=OPTIONS, at=st.integers(0, 600), put=st.binary(max_size=2))
def test_no_options_are_overlooked(
    stage: Stage, chosen: options_pb2.Options, at: int, put: bytes
) -> None:
    data = packed(chosen)
    at %= len(data) + 1
    data = data[:at] + put + data[at + len(put) :]
    if stage.is_plain(stdin=data):
        flags = command_line.Flags(namespace="test", id="c", action="start")
        found = dialect.parse(data, flags)
        assert not found.options.shim_cgroup
        assert not found.in_params


# --- What comes of it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "env", "umask"),
    [
        (FLAGS, {}, 0o022),
        ((), {"EMPTY": "", "LONG": "x" * 40000, "EQUALS": "a=b=c"}, 0o027),
        ((*FLAGS, "-debug"), {"TTRPC_ADDRESS": "/run/events"}, 0),
    ],
)
def test_the_monitor_cannot_tell_who_started_it(
    host: Host, flags: tuple[str, ...], env: dict[str, str], umask: int
) -> None:
    """Once as it is, and once with a command line that is left to Python."""
    records = host.home / "records"
    records.mkdir()
    python = environment_with(host.python, RECORDER, host.home / "environment")
    assert interpreter(python.parent) == str(python)
    bundle = host.bundle("b")
    variables = {**host.env, **env, "PYSHIM_PYTHON": str(python), "RECORD": str(records)}
    found = []
    for first in (["-namespace=test"], ["-namespace", "test"]):
        done = subprocess.run(
            [host.launcher, *first, "-id", "c", *flags, "start"],
            cwd=bundle,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            umask=umask,
            timeout=BOUND_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        eventually((records / "done").is_dir, "the monitor has noted everything")
        texts = {path.name: path.read_text() for path in (records / "done").glob("[a-r]*")}
        texts["environment"] = "\n".join(sorted(texts["environment"].splitlines()))
        state = state_pb2.State.FromString((records / "done/state").read_bytes())
        assert state.socket_inode == os.stat(state.socket).st_ino
        state.socket_inode = 0
        address_file = bundle / "address"
        modes = [path.stat().st_mode for path in (address_file, Path(state.socket), host.sockets)]
        found.append((done.stdout, texts, state, modes, address_file.read_text()))
        (records / "done").rename(records / f"done{len(found)}")
        os.unlink(state.socket)
    assert found[0] == found[1]


@pytest.mark.parametrize("call", ["listen", "memfd_create"])
def test_delete_finds_the_socket_of_a_start_that_was_killed(host: Host, call: str) -> None:
    """Between the socket and the monitor."""
    host.start(host.bundle("warm"), "warm")  # from now on there is a zygote
    known = set(host.sockets.iterdir())
    bundle = host.bundle("b")
    killing = ["strace", "-qq", "-o", os.devnull, "-e", f"inject={call}:signal=KILL"]
    done = subprocess.run(
        [*killing, host.launcher, "-namespace", "test", "-id", "c", *FLAGS, "start"],
        cwd=bundle,
        env=host.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
    assert len(set(host.sockets.iterdir()) - known) == 1
    assert host.act("delete", bundle).returncode == 0
    assert set(host.sockets.iterdir()) == known
