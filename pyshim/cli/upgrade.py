"""`pyshim upgrade`: has this installation take over every monitor that runs on this host.

Each is asked through its own socket, and does it by itself (``service/upgrade.py``); what fails
leaves it as it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path

import click

from pyshim.api import upgrade_pb2
from pyshim.cli import monitors
from pyshim.cli.errors import Problem
from pyshim.cli.installation import interpreter
from pyshim.cli.monitors import Identity, Monitor
from pyshim.service.upgrade import CONTROL
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import Code, StatusError, text_of
from pyshim.zygote import address, messages

PROBE_TIMEOUT_S = 5.0
END_TIMEOUT_S = 1.0
END_POLL_S = 0.01


class Outcome(Enum):
    """How it went with one monitor."""

    CURRENT = "current"
    WANTED = "would be upgraded"
    UPGRADED = "ok"
    FAILED = "failed"
    ENDED = "ended meanwhile"


@dataclasses.dataclass(frozen=True)
class Result:
    """A line of the answer; ``after`` is what the monitor is now, or in a dry run would be."""

    monitor: Monitor
    before: Identity
    after: Identity
    outcome: Outcome
    reason: str = ""

    def line(self) -> str:
        """For people."""
        versions = str(self.before)
        if self.before != self.after:
            versions += f" -> {self.after}"
        reason = f": {self.reason}" if self.reason else ""
        name, pid = shown(self.monitor.name), self.monitor.pid
        return f"{name}  {versions}  pid {pid}  {self.outcome.value}{reason}"

    def record(self) -> dict[str, object]:
        """For programs."""
        return {
            "name": self.monitor.name,
            "pid": self.monitor.pid,
            "from": dataclasses.asdict(self.before),
            "to": dataclasses.asdict(self.after),
            "outcome": self.outcome.name.lower(),
            "reason": self.reason,
        }


class Target:
    """This installation: what the monitors shall become.  Raises Problem when it is not whole."""

    def __init__(self) -> None:
        self.python = str(interpreter())
        self.program = Path(self.python).with_name(monitors.PROGRAM)
        if not os.access(self.program, os.X_OK):
            raise Problem(f"{self.program} is missing; reinstall pyshim")
        self.content = monitors.content(self.program)
        self.identity = monitors.identity(self.program)

    def zygote_for(self, monitor: Monitor) -> str:
        """Where its services shall come from: in the folder that it uses now."""
        path = address.socket_path(self.python)
        return os.path.join(os.path.dirname(monitor.zygote), os.path.basename(path))

    def is_current(self, monitor: Monitor) -> bool:
        """Whether ``monitor`` runs this program already, with services of this version."""
        if monitor.zygote != self.zygote_for(monitor):
            return False
        return monitors.content(Path(f"/proc/{monitor.pid}/exe")) == self.content


def run(which: Sequence[str], *, dry_run: bool, as_json: bool, timeout_s: float, jobs: int) -> int:
    """Upgrades all that the patterns ``which`` are for, and says how it went; the exit code.

    Raises Problem.
    """
    target = Target()
    found = [monitor for monitor in monitors.running() if monitor.is_one_of(which)]
    before = {monitor.zygote for monitor in found}

    def one(monitor: Monitor) -> Result:
        return upgrade(target, monitor, timeout_s, dry_run=dry_run)

    results = []
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(one, found):
            results.append(result)
            if not as_json:
                click.echo(result.line())
    if as_json:
        click.echo(json.dumps([result.record() for result in results], indent=2))
    elif not results:
        click.echo("no such container runs under pyshim")
    if not dry_run:
        upgraded = {r.monitor.zygote for r in results if r.outcome is Outcome.UPGRADED}
        end_zygotes(before & upgraded)
    return int(any(result.outcome is Outcome.FAILED for result in results))


def upgrade(target: Target, monitor: Monitor, timeout_s: float, *, dry_run: bool) -> Result:
    """Upgrades one monitor, unless it is what it shall be."""
    before = monitors.identity(Path(f"/proc/{monitor.pid}/exe"))
    if target.is_current(monitor):
        return Result(monitor, before, before, Outcome.CURRENT)
    if dry_run:
        return Result(monitor, before, target.identity, Outcome.WANTED)
    reason = ask(target, monitor, timeout_s)
    after = monitors.identity(Path(f"/proc/{monitor.pid}/exe"))
    if not reason and after == target.identity:
        return Result(monitor, before, after, Outcome.UPGRADED)
    if has_ended(monitor.pid):
        return Result(monitor, before, before, Outcome.ENDED)
    return Result(monitor, before, after, Outcome.FAILED, reason or "it has gone back to the old")


def has_ended(pid: int) -> bool:
    """Whether a monitor has; one that has hung up is given a moment for it."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True  # its parent has yet to hear of it
        time.sleep(END_POLL_S)
    return False


def ask(target: Target, monitor: Monitor, timeout_s: float) -> str:
    """Asks one monitor and waits for its answer; why it did not do it, "" when it did."""
    request = upgrade_pb2.UpgradeRequest(
        monitor=str(target.program), python=target.python, zygote=target.zygote_for(monitor)
    )
    try:
        with Client(monitor.address, timeout_s) as client:
            client.call(CONTROL, "Upgrade", request, upgrade_pb2.UpgradeResponse, timeout_s)
    except StatusError as error:
        if error.code == Code.UNIMPLEMENTED:
            return "it is of a version that cannot be replaced; restart the container"
        return shown(error.message)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except (OSError, ValueError) as error:
        return shown(f"{monitor.address}: {text_of(error)}")
    return ""


def shown(text: str) -> str:
    """What another process says, as one line without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


# --- Zygotes of the old version ------------------------------------------------------------------


def end_zygotes(paths: Iterable[str]) -> None:
    """Tells the zygotes at ``paths`` to end, unless a monitor or this installation needs them.

    A launcher of the old version starts one again when it needs it.
    """
    needed = {monitor.zygote for monitor in monitors.running()}
    for path in sorted(set(paths) - needed - {address.socket_path(str(interpreter()))}):
        end_zygote(path)


def end_zygote(path: str) -> None:
    """SIGTERM to who listens at ``path``, if that is a zygote; what it has forked goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
            pid, uid = messages.peer(probe)
            fd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if uid == os.geteuid() and b"pyshim.zygote" in words:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
        except OSError:
            return
        finally:
            os.close(fd)
