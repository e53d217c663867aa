"""`pyshim doctor`: what this host has of all that a container under pyshim needs.

It starts a zygote when there is none, as the first container would; else it changes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from pyshim.cli import daemons
from pyshim.cli.installation import NOTE, PROGRAM, interpreter
from pyshim.zygote import address

OK, WARN, FAIL = "ok", "warn", "fail"
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
RUNTIMES = ("runc", "crun", "youki")
CGROUPS = Path("/sys/fs/cgroup")
ZYGOTE_TIMEOUT_S = 15
POLL_S = 0.05
PR_GET_CHILD_SUBREAPER = 37
OLDEST_CONTAINERD = (1, 6)
MANAGED_CONTAINERD = "/run/docker/containerd/containerd.sock"
OLDEST_DOCKER, DOCKER_WITH_FOREIGN_SHIMS, DOCKER_WITH_RUNTIME_TYPE = 20, 23, 24


class Check(NamedTuple):
    """One finding: OK, WARN when something is missed, FAIL when nothing can run without it."""

    name: str
    status: str
    found: str
    hint: str = ""


def run(containerd_address: str, docker_socket: str, *, as_json: bool) -> int:
    """Prints all findings; 0 when containers can run, else 1."""
    checks = list(_all(containerd_address, docker_socket))
    usable = all(check.status != FAIL for check in checks)
    if as_json:
        found = [check._asdict() for check in checks]
        click.echo(json.dumps({"usable": usable, "checks": found}, indent=2))
        return 0 if usable else 1
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = click.style(f"{check.status:4}", fg=COLOURS[check.status])
        hint = f"; {check.hint}" if check.hint else ""
        click.echo(f"{status}  {check.name:{width}}  {check.found}{hint}")
    return 0 if usable else 1


def _all(containerd_address: str, docker_socket: str) -> Iterator[Check]:
    daemon = daemons.running(containerd_address) or daemons.running(MANAGED_CONTAINERD)
    path = daemon.path if daemon else daemons.SERVICE_PATH
    yield from launcher(path)
    yield zygote()
    yield from runtimes(path)
    yield cgroups()
    yield kernel()
    yield containerd(daemon, path)
    yield docker(docker_socket)
    yield criu(path)


# --- Ours ----------------------------------------------------------------------------------------


def launcher(path: str) -> Iterator[Check]:
    """Whether containerd finds the launcher, and that its interpreter."""
    found = shutil.which(PROGRAM, path=path)
    if found is None:
        hint = f"`pyshim install` puts it there (PATH is {path})"
        yield Check("shim", FAIL, f"{PROGRAM} is not on containerd's PATH", hint)
        return
    yield Check("shim", OK, found)
    python, source = interpreter_of(Path(found))
    if python is None:
        yield Check("interpreter", FAIL, f"{found} finds none", "`pyshim install` writes it down")
        return
    command = "import pyshim; print(pyshim.__version__)"
    version = daemons.output(python, "-I", "-c", command).strip()
    if not version:
        hint = "`pyshim install` writes down this one"
        yield Check("interpreter", FAIL, f"{python} ({source}) has no pyshim", hint)
        return
    yield Check("interpreter", OK, f"{python} ({source}), pyshim {version}")
    if not daemons.output(found, "-info"):
        hint = f"`{found} -info` says why"
        yield Check("answer", FAIL, f"{found} does not answer", hint)


def interpreter_of(program: Path) -> tuple[str | None, str]:
    """The interpreter that a launcher takes, and where that is written: as the launcher looks."""
    folder = program.resolve().parent
    if (folder / "pyshim-monitor").exists():
        for name in ("python3", "python"):
            if os.access(folder / name, os.X_OK):
                return str(folder / name), "beside it"
    for note in (Path(NOTE), address.run_folder() / "interpreter"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if line := note.read_text().partition("\n")[0]:
                return line, str(note)
    return None, ""


def zygote() -> Check:
    """Whether the zygote of this interpreter answers, or starts."""
    python = str(interpreter())
    path = address.socket_path(python)
    if address.answers(path):
        return Check("zygote", OK, path)
    address.ensure(python, path)
    deadline = time.monotonic() + ZYGOTE_TIMEOUT_S
    while not address.answers(path):
        if time.monotonic() > deadline:
            hint = f"`{python} -m pyshim.zygote --foreground --socket {path}` says why"
            return Check("zygote", WARN, "does not start: each container takes longer", hint)
        time.sleep(POLL_S)
    return Check("zygote", OK, f"{path}, started now")


# --- The host ------------------------------------------------------------------------------------


def runtimes(path: str) -> Iterator[Check]:
    """The OCI runtimes; runc is the one that nobody has to ask for."""
    found = {name: shutil.which(name, path=path) for name in RUNTIMES}
    for name, where in found.items():
        if where is not None:
            version = daemons.version_of(where)
            yield Check(name, OK, f"{where} {version.text if version else ''}".strip())
    if found["runc"] is None:
        hint = "install runc"
        if any(found.values()):
            hint += ", or name the other one in the options of the runtime (BinaryName)"
        yield Check("runc", WARN if any(found.values()) else FAIL, "not on containerd's PATH", hint)


def cgroups() -> Check:
    """Which version of control groups is mounted."""
    if (CGROUPS / "cgroup.controllers").exists():
        return Check("cgroups", OK, "v2")
    if not (CGROUPS / "memory").is_dir():
        hint = "mount them (systemd does; without it: cgroupfs-mount)"
        return Check("cgroups", FAIL, f"no memory controller at {CGROUPS}", hint)
    hybrid = (CGROUPS / "unified/cgroup.procs").exists()
    return Check("cgroups", OK, "v1, with v2 beside it for systemd (hybrid)" if hybrid else "v1")


def kernel() -> Check:
    """What the native programs ask of the kernel."""
    release = os.uname().release
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(ctypes.c_int()), 0, 0, 0):
        return Check("kernel", FAIL, f"{release} has no subreapers", "3.17 is the oldest")
    try:
        os.close(os.memfd_create("pyshim-doctor"))
    except OSError as error:
        return Check("kernel", FAIL, f"{release} makes no memfd: {error.strerror}", "3.17 has it")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return Check("kernel", WARN, f"{release} has no pidfds", "5.9 or later is better")
    return Check("kernel", OK, f"{release}: subreapers, memfds, pidfds")


def criu(path: str) -> Check:
    """Whether containers can be checkpointed."""
    found = shutil.which("criu", path=path)
    if found is None:
        return Check("criu", WARN, "not there: no checkpoints", "install criu if you want them")
    version = daemons.version_of(found)
    text = f"{found} {version.text if version else ''}".strip()
    if "Looks good" in daemons.output(found, "check"):
        return Check("criu", OK, text)
    return Check("criu", WARN, f"{text} cannot work with this kernel", "`criu check` says why")


# --- The daemons ---------------------------------------------------------------------------------


def containerd(daemon: daemons.Running | None, path: str) -> Check:
    """containerd's version, and what it can do with us."""
    if daemon is None:
        program = shutil.which("containerd", path=path) or daemons.installed("containerd")
        version = daemons.version_of(program)
        if version is None:
            return Check("containerd", FAIL, "neither running nor installed", "install containerd")
        return _judged(version.text, f"{version.text}, not running (or we may not ask)", WARN)
    return _judged(daemon.version, f"{daemon.version}, running as pid {daemon.pid}", OK)


def _judged(version: str, found: str, status: str) -> Check:
    """What a containerd of a version can do."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST_CONTAINERD:
        return Check("containerd", FAIL, found, "1.6 is the oldest that is supported")
    config = "version 3" if numbers >= (2,) else "version 2"
    able = f"finds the shim by name; for CRI, `pyshim install` adds to a config of {config}"
    hint = "" if status == OK else "start it: systemctl start containerd"
    return Check("containerd", status, f"{found}: {able}", hint)


def docker(path: str) -> Check:
    """Docker's version, and what it can do with us; no Docker is no fault."""
    told = _ask_docker(path)
    if told is not None:
        major, found = _major(told["Version"]), f"{told['Version']}, running"
    else:
        version = daemons.version_of(daemons.installed("dockerd"))
        if version is None:
            return Check("docker", OK, "not installed")
        major, found = version.major, f"{version.text}, not running (or we may not ask)"
    if major < OLDEST_DOCKER:
        return Check("docker", WARN, found, "20.10 is the oldest that is supported")
    if major < DOCKER_WITH_FOREIGN_SHIMS:
        hint = "`pyshim install --replace-runc-shim`, for all of its containers"
        return Check("docker", WARN, f"{found}: knows its own shim alone", hint)
    if major < DOCKER_WITH_RUNTIME_TYPE:
        return Check("docker", OK, f"{found}: docker run --runtime io.containerd.pyshim.v2")
    return Check("docker", OK, f"{found}: docker run --runtime pyshim, after `pyshim install`")


def _major(version: str) -> int:
    number = version.partition(".")[0]
    return int(number) if number.isdecimal() else DOCKER_WITH_RUNTIME_TYPE  # a build from source


def _ask_docker(path: str) -> dict[str, Any] | None:
    """What dockerd answers to a question for its version; None when it does not."""
    connection = http.client.HTTPConnection("docker", timeout=daemons.TIMEOUT_S)
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(daemons.TIMEOUT_S)
        connection.sock.connect(path)
        connection.request("GET", "/version")
        told = json.loads(connection.getresponse().read())
        if isinstance(told, dict) and isinstance(told.get("Version"), str):
            return told
    connection.close()
    return None
