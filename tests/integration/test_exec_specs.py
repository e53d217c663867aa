"""Execs of every process spec: each field of the runtime-spec's Process reaches the process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import options_pb2, task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.shim import Container, Host, host, module_host

__all__ = ["host", "module_host"]

LOOK = "pwd; id -u; id -g; echo $COLOUR; grep -E 'CapEff|NoNewPrivs|Groups' /proc/self/status"
LOOK += "; ulimit -n; ulimit -S -s; ulimit -H -s"


@pytest.fixture
def container(host: Host) -> Iterator[Container]:
    """A container that lives as long as the test; its root is readable to all users."""
    readable_by_all(Path(host.spec["root"]["path"]))
    made = host.started("/bin/sleep", "1000")
    yield made
    made.end()


def said(container: Container, folder: Path, *command: str, **changes: object) -> tuple[int, str]:
    """Runs ``command`` with the container's own spec but ``changes``; exit status and output."""
    out = folder / "out"
    request = container.exec_request("x", *command, stdout=f"file://{out}", stderr=f"file://{out}")
    spec = json.loads(request.spec.value)
    spec.update(changes)
    request.spec.value = json.dumps(spec).encode()
    container.call("Exec", request, Empty)
    container.start("x")
    status = container.wait("x").exit_status
    container.delete("x")
    return status, out.read_text()


def test_every_field(container: Container, tmp_path: Path) -> None:
    capabilities = {
        name: ["CAP_NET_RAW", "CAP_KILL"] for name in ("bounding", "effective", "permitted")
    }
    status, output = said(
        container,
        tmp_path,
        *("/bin/sh", "-c", LOOK),
        cwd="/tmp",
        env=["PATH=/bin", "COLOUR=green"],
        user={"uid": 0, "gid": 7, "additionalGids": [8, 9]},
        capabilities=capabilities,
        # Not NOFILE with two values: Go raises the soft one after runc has set it (runc#4195).
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200},
            {"type": "RLIMIT_STACK", "soft": 2 << 20, "hard": 4 << 20},
        ],
        noNewPrivileges=True,
    )
    assert status == 0, output
    lines = output.splitlines()
    assert lines[:4] == ["/tmp", "0", "7", "green"]
    facts = dict(line.split(":", 1) for line in lines[4:7])
    assert facts["Groups"].split() == ["8", "9"]
    assert int(facts["CapEff"], 16) == (1 << 13) | (1 << 5)
    assert facts["NoNewPrivs"].strip() == "1"
    assert lines[7:] == ["200", "2048", "4096"]


def test_an_exec_called_init_leaves_the_inits_pid(container: Container) -> None:
    assert container.run("init", "/bin/sh", "-c", "exit 3") == 3
    assert int((container.bundle / "init.pid").read_text()) == container.state().pid


def test_another_user(container: Container, tmp_path: Path) -> None:
    user = {"uid": 1234, "gid": 4321}
    assert said(container, tmp_path, *("/bin/sh", "-c", "id -u; id -g"), user=user) == (
        0,
        "1234\n4321\n",
    )


def test_arguments_as_many_as_a_client_may_send(container: Container, tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(20_000)]
    command = ("/bin/sh", "-c", 'echo $# "$1" "$20000"', "sh", *words)
    status, output = said(container, tmp_path, *command)
    assert status == 0, output
    assert output.split()[:2] == ["20000", "word0"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"args": ["/no/such/program"]}, "no such file or directory"),
        ({"cwd": "/no/such/folder"}, "no such file or directory"),
        ({"args": ["/etc"]}, "is a directory|permission denied"),
        ({"cwd": "relative"}, "must be an absolute path|Cwd"),
    ],
)
def test_what_cannot_be_run(
    container: Container, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    request = container.exec_request("x", "/bin/true")
    spec = json.loads(request.spec.value)
    spec.update(changes)
    request.spec.value = json.dumps(spec).encode()
    container.call("Exec", request, Empty)
    with pytest.raises(StatusError, match=f"OCI runtime exec failed: .*({reason})") as caught:
        container.start("x")
    assert caught.value.code == Code.UNKNOWN
    assert container.state("x").status == task_pb2.CREATED
    assert container.wait("x").exit_status == 0  # as the Go shim: it does not hang
    container.delete("x")
    assert sorted(p.name for p in container.bundle.glob("x*")) == []


def test_both_outputs_go_to_the_file_of_the_first(container: Container, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    script = "echo out; echo err >&2"
    streams = {"stdout": f"file://{first}", "stderr": f"file://{second}"}
    assert container.run("x", "/bin/sh", "-c", script, **streams) == 0
    assert first.read_text() == "out\nerr\n"
    assert not second.exists()


def test_the_requests_terminal_counts_not_the_specs(container: Container, tmp_path: Path) -> None:
    assert said(container, tmp_path, "/bin/tty", terminal=True) == (1, "not a tty\n")


def test_pipes_belong_to_whom_the_options_say(host: Host, tmp_path: Path) -> None:
    """The group; the owner is changed by runc once more, to the process's user."""
    container = host.container("/bin/sh", "-c", "ls -ln /proc/self/fd/1 -L")
    out = tmp_path / "out"
    request = container.create_request(stdout=f"file://{out}")
    chosen = options_pb2.Options(io_uid=1234, io_gid=1234)
    request.options.type_url = chosen.DESCRIPTOR.full_name
    request.options.value = chosen.SerializeToString()
    container.call("Create", request, task_pb2.CreateTaskResponse)
    container.start()
    container.wait()
    container.finish()
    assert "1234" in out.read_text().split()


def test_a_user_namespace_with_its_pipes(host: Host, tmp_path: Path) -> None:
    """Mapped root owns its pipes without any option: Docker's userns-remap sends none of ours."""

    def mapped(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            spec["linux"][kind] = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
        readable_by_all(Path(spec["root"]["path"]))

    container = host.container("/bin/sh", "-c", "id -u; echo again >/dev/stdout", edit=mapped)
    out = tmp_path / "out"
    container.create(stdout=f"file://{out}")
    pid = container.start()
    assert container.wait().exit_status == 0
    container.finish()
    assert out.read_text() == "0\nagain\n"
    assert pid > 0


def readable_by_all(path: Path) -> None:
    """Lets everyone walk to ``path``: the folders of a test are root's alone."""
    for folder in [path, *path.parents]:
        folder.chmod(folder.stat().st_mode | 0o055)
