"""Nonsense in the environment of the daemon: containers live as without, and the log says so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.containerd import eventually
from tests.integration.shim import KILLED, Host

DEFAULTS = {
    "PYSHIM_COMMAND_TIMEOUT_S": 120,
    "PYSHIM_LOGGER_READY_S": 30,
    "PYSHIM_PARK_DELAY_S": 1,
    "PYSHIM_UNUSED_S": 60,
    "PYSHIM_ZYGOTE_IDLE_S": 600,
}


@pytest.fixture
def fresh(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose zygote is yet to be started."""
    made = Host(tmp_path_factory.mktemp("n"), rootfs)
    try:
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def log_of(host: Host, name: str) -> Iterator[int]:
    """The other end of a log that the daemon has made before `start`."""
    bundle = host.bundles / name
    os.mkfifo(bundle / "log")
    fd = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("text", ["x", "nan", "inf", "-1", "1e99", ""])
@pytest.mark.parametrize("zygote", [True, False])
def test_nonsense_costs_a_line(fresh: Host, text: str, zygote: bool) -> None:
    fresh.env |= dict.fromkeys(DEFAULTS, text)
    if not zygote:
        fresh.runtime.mkdir(mode=0o777)
        fresh.runtime.chmod(0o777)  # none starts there
    with contextlib.ExitStack() as kept:
        logs: list[int] = []
        container = fresh.container(
            "/bin/sleep",
            "1000",
            edit=lambda _: logs.append(kept.enter_context(log_of(fresh, "c1"))),
        )
        container.create()
        container.start()
        # The service parks after the default, and another takes over.
        eventually(lambda: not fresh.services(), "the service has parked")
        assert container.run("e", "/bin/true") == 0
        container.kill()
        assert container.wait().exit_status == KILLED
        container.finish()
        eventually(lambda: not fresh.monitors(), "the monitor has ended")
        said = os.read(logs[0], 65536).decode() if text else ""
    expected = DEFAULTS if zygote else {n: d for n, d in DEFAULTS.items() if "ZYGOTE" not in n}
    for name, default in expected.items():
        line = f"{name} is not a number of seconds from 0.001 to 86400; {default} is taken"
        assert said.count(line) == bool(text), said
    assert said.count("is taken") == len(expected) * bool(text), said
