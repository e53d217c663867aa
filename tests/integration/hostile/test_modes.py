"""What others may see: modes under any umask, command lines, and what is said of an environment."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import eventually, processes_of
from tests.integration.fifos import Reader
from tests.integration.shim import Container, Host, host, module_host

__all__ = ["host", "module_host"]

SECRETS = {"daemon": "s3cret-of-the-daemon", "init": "s3cret-of-init", "exec": "s3cret-of-exec"}
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# What the runtime writes into the bundle, from which the daemon keeps others out.
OF_THE_RUNTIME = (".pid", "log.json")


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A starter that takes no bit away."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("zygote", [True, False])
def test_modes_under_no_umask(host: Host, tmp_path: Path, no_umask: None, zygote: bool) -> None:
    end_zygotes(host)
    sockets, usual = host.sockets / "n", dict(host.env)
    host.env["PYSHIM_SOCKET_DIR"] = str(sockets)
    if not zygote:
        host.runtime.mkdir(exist_ok=True)
        host.runtime.chmod(0o777)  # none starts there
    logs = tmp_path / "logs"
    try:
        container = host.container("/bin/sh", "-c", "echo x; sleep 1000")
        container.create(stdout=f"file://{logs}/log")
        container.start()
        container.exec("e", "/bin/sleep", "1000", terminal=True)
        container.start("e")
        eventually(lambda: (logs / "log").read_text() == "x\n", "the log is written")
        folders = [sockets, host.runtime] if zygote else [sockets]
        for folder in folders:
            assert mode(folder) & OTHERS == 0, folder
            assert [p for p in folder.iterdir() if mode(p) & OTHERS] == []
        for path in container.bundle.rglob("*"):
            if path.name != "config.json":
                others = OTHERS_WRITE if path.name.endswith(OF_THE_RUNTIME) else OTHERS
                assert mode(path) & others == 0, path
        assert mode(logs / "log") & OTHERS_WRITE == mode(logs) & OTHERS_WRITE == 0
        container.kill(exec_id="e")
        container.wait("e")
        container.delete("e")
        container.end()
    finally:
        host.env = usual
        host.runtime.chmod(0o700)
    eventually(lambda: not list(sockets.iterdir()), "the socket has gone")
    sockets.rmdir()


def end_zygotes(host: Host) -> None:
    """The next one is started by whoever needs it, with the umask of that."""
    for pid in host.zygotes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    eventually(lambda: not host.zygotes(), "the zygote has gone")


# --- Secrets -------------------------------------------------------------------------------------


class CommandLines:
    """Every command line that this machine shows while it watches (proc(5): all may read them)."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> bytes:
        """All of them."""
        self._over.set()
        self._thread.join()
        return b"\n".join(self.seen)

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            for name in os.listdir("/proc"):
                if name.isdecimal():
                    with contextlib.suppress(OSError):
                        self.seen.add(Path(f"/proc/{name}/cmdline").read_bytes())


def errors(container: Container) -> Iterator[str]:
    """What fails here, and with which words."""
    spec = {**container.host.spec["process"], "args": ["/no/such/program"]}
    spec["env"] = [f"TOKEN={SECRETS['exec']}"]
    for number, value in enumerate(
        (
            json.dumps(spec),
            json.dumps({**spec, "cwd": 5}),
            json.dumps({**spec, "env": f"TOKEN={SECRETS['exec']}"}),
            json.dumps(spec)[:-1],
            json.dumps([spec]),
            json.dumps({**spec, "env": [f"TOKEN=\0{SECRETS['exec']}"]}),
        )
    ):
        request = container.exec_request(f"e{number}", "x")
        request.spec.value = value.encode()
        try:
            container.call("Exec", request, type(request))
            container.start(f"e{number}")
        except StatusError as error:
            yield error.message
        with contextlib.suppress(StatusError):
            container.delete(f"e{number}")


def test_no_secret_is_told(host: Host, tmp_path: Path) -> None:
    """With -debug, in the log, in errors, events and command lines, and in files of the bundle."""

    def edit(spec: dict[str, dict[str, list[str]]]) -> None:
        spec["process"]["env"].append(f"TOKEN={SECRETS['init']}")

    end_zygotes(host)
    usual = dict(host.env)
    host.env["HTTP_PROXY"] = f"http://user:{SECRETS['daemon']}@proxy.example"
    watcher = CommandLines()
    try:
        container = host.container("/bin/sleep", "1000", edit=edit, flags=("-debug",))
        log = Reader(container.bundle / "log")
        with pytest.raises(StatusError) as refused:
            container.create(runtime=Path("/no/such/runtime"))
        texts = [refused.value.message]
        container.create()
        container.start()
        container.run("good", "/bin/true")
        failures = list(errors(container))
        assert len(failures) >= 5
        texts += failures
        files = [p for p in container.bundle.rglob("*") if p.is_file() and p.name != "config.json"]
        texts += [path.read_text(errors="replace") for path in files]
        texts += [repr(event) for event in host.events.of(container.name)]
        name, bundle = container.name, container.bundle
        shown = processes_of(host.home)
        container.end()
        end_zygotes(host)
        log.give_up()
    finally:
        host.env = usual
        lines = watcher.end()
    told = "\n".join([*texts, *shown.values(), lines.decode(errors="replace")])
    told += b"".join(log._parts).decode(errors="replace")
    assert "level=debug" in told  # the log is in it
    assert name in told
    assert bundle.name in told
    assert "pyshim-monitor" in lines.decode(errors="replace")
    for secret in SECRETS.values():
        assert secret not in told
