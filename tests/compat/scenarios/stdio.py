"""Fifos, files, log drivers and terminals."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tests.compat import specs
from tests.compat.host import Host
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually

SHELL = ("/bin/sh", "-c")
BOTH = (*SHELL, "echo out; echo err >&2")


@scenario(out="out\n", err="err\n")
def two_fifos(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    error, errors = raw.output("err")
    raw.ended(*BOTH, stdio={"stdout": out, "stderr": error})
    eventually(lambda: seen and errors, "output on both")
    return {"out": seen.decode(), "err": errors.decode()}


@scenario(out=["err", "out"])
def one_fifo_for_both(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    raw.ended(*BOTH, stdio={"stdout": out, "stderr": out})
    eventually(lambda: len(seen) == 8, "output of both")
    return {"out": sorted(seen.decode().split())}


@scenario(create="ok", out="out\n")
def stdout_alone(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    raw.write_spec(specs.process(*BOTH))
    rpc = raw.launch()
    fields = {"id": raw.name, "bundle": str(raw.bundle), "stdout": out}
    found: Observation = {"create": rpc.tried("Create", **fields)}
    if found["create"] == "ok":
        rpc.ask("Start", id=raw.name)
        found["status"] = rpc.wait(raw.name)
        eventually(lambda: seen, "the output")
    return {**found, "out": seen.decode()}


@scenario(status=0)
def stdin_to_the_end(host: Host) -> Observation:
    raw = host.raw()
    path, writer = raw.input("in")
    out, seen = raw.output("out")
    rpc = raw.running("/bin/cat", stdio={"stdin": path, "stdout": out})
    os.write(writer, b"typed\n")
    eventually(lambda: seen == b"typed\n", "what was typed")
    found: Observation = {"pending": rpc.status(raw.name)}
    raw.close(writer)
    found["after the writer"] = rpc.status(raw.name)
    found["close"] = rpc.tried("CloseIO", id=raw.name, stdin=True)
    return {**found, "status": rpc.wait(raw.name)}


@scenario(out="first\nsecond\n")
def a_writer_goes_and_another_comes(host: Host) -> Observation:
    raw = host.raw()
    path, writer = raw.input("in")
    out, seen = raw.output("out")
    rpc = raw.running("/bin/cat", stdio={"stdin": path, "stdout": out})
    os.write(writer, b"first\n")
    eventually(lambda: seen == b"first\n", "the first line")
    raw.close(writer)
    with open(path, "wb", buffering=0) as other:
        other.write(b"second\n")
        eventually(lambda: len(seen) == 13, "the second line")
    return {"out": seen.decode(), "state": rpc.status(raw.name)}


@scenario(out="before\nafter\n")
def a_reader_goes_and_another_comes(host: Host) -> Observation:
    raw = host.raw()
    path = raw.fifo("out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    command = "trap 'echo after' USR1; trap 'exit 3' TERM; echo before; "
    command += "while :; do sleep 1000 & wait $!; done"
    rpc = raw.running(*SHELL, command, stdio={"stdout": path})
    seen = bytearray()
    try:
        eventually(lambda: _more(reader, seen) == b"before\n", "the first line")
        os.close(reader)
        rpc.ask("Kill", id=raw.name, signal=10)
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        eventually(lambda: _more(reader, seen) == b"before\nafter\n", "the second line")
        rpc.ask("Kill", id=raw.name, signal=15)
        return {"out": seen.decode(), "status": rpc.wait(raw.name)}
    finally:
        os.close(reader)


def _more(fd: int, seen: bytearray) -> bytes:
    with contextlib.suppress(BlockingIOError):
        seen.extend(os.read(fd, 65536))
    return bytes(seen)


@scenario(size=20 << 20)
def much_output(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    rpc = raw.ended(*SHELL, f"head -c {20 << 20} /dev/zero", stdio={"stdout": out})
    deleted = rpc.tried("Delete", id=raw.name)
    eventually(lambda: len(seen) == 20 << 20, "all output")
    return {"size": len(seen), "delete": deleted}


@scenario(status=0)
def grandchild_keeps_the_output(host: Host) -> Observation:
    """Delete does not wait for ever for a process that has left the container."""
    raw = host.raw()
    out, seen = raw.output("out")
    namespaces = ("pid", "ipc", "uts", "mount", "network")
    rpc = raw.running(
        *SHELL, "sleep 1000 & echo begun", stdio={"stdout": out}, namespaces=namespaces
    )
    status = rpc.wait(raw.name)
    return {"status": status, "delete": rpc.tried("Delete", id=raw.name), "out": seen.decode()}


@scenario(words=["err", "out"], mode="0o644")
def log_to_a_file(host: Host) -> Observation:
    raw = host.raw()
    log = raw.bundle / "deep/er/log"
    uri = f"file://{log}"
    rpc = raw.ended(*BOTH, stdio={"stdout": uri, "stderr": uri})
    state = rpc.state(raw.name)
    rpc.ask("Delete", id=raw.name)
    modes = [oct(stat.S_IMODE(p.stat().st_mode)) for p in (log, log.parent)]
    return {
        "words": sorted(log.read_text().split()),
        "mode": modes[0],
        "folder": modes[1],
        "state": state,
    }


@scenario(words=["before", "err", "out"])
def log_is_appended(host: Host) -> Observation:
    raw = host.raw()
    log = raw.bundle / "plain"
    log.write_text("before\n")
    uri = f"file://{log}"
    rpc = raw.ended(*BOTH, stdio={"stdout": uri, "stderr": uri})
    rpc.ask("Delete", id=raw.name)
    return {"words": sorted(log.read_text().split())}


@scenario(words=["before", "err", "out"])
def plain_path_that_is_no_fifo(host: Host) -> Observation:
    raw = host.raw()
    log = raw.bundle / "plain"
    log.write_text("before\n")
    rpc = raw.ended(*BOTH, stdio={"stdout": str(log), "stderr": str(log)})
    found = {"delete": rpc.tried("Delete", id=raw.name)}
    return {**found, "words": sorted(log.read_text().split())}


def driver(folder: Path, text: str) -> Path:
    """A log driver."""
    path = folder / "driver"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@scenario(out="out\n", err="err\n")
def log_driver(host: Host) -> Observation:
    raw = host.raw()
    folder = raw.bundle
    text = f"exec 5>&-\ncat <&3 >{folder}/d.out &\ncat <&4 >{folder}/d.err &\nwait"
    text = f"echo $* >{folder}/d.args\nenv | grep ^CONTAINER_ | sort >{folder}/d.env\n{text}"
    uri = f"binary://{driver(folder, text)}?key=value"
    rpc = raw.ended(*BOTH, stdio={"stdout": uri, "stderr": uri})
    found: Observation = {"delete": rpc.tried("Delete", id=raw.name)}
    eventually(lambda: (folder / "d.err").read_text(), "the driver has written")
    found |= {"out": (folder / "d.out").read_text(), "err": (folder / "d.err").read_text()}
    found["args"] = (folder / "d.args").read_text()
    found["env"] = host.normal((folder / "d.env").read_text())
    return found


@scenario()
def refused_stdio(host: Host) -> Observation:
    found = {}
    for name, uri in {
        "scheme": "nonesuch:///x",
        "missing driver": "binary:///no/such/driver",
        "missing": "/no/such/fifo",
    }.items():
        raw = host.raw(name.replace(" ", "-"))
        raw.write_spec()
        rpc = raw.launch()
        fields = {"id": raw.name, "bundle": str(raw.bundle), "stdout": uri}
        said = rpc.tried("Create", **fields)
        found[name] = said
        found[f"{name}: state"] = rpc.tried("State", id=raw.name)
    return found


@scenario()
def driver_that_ends_at_once(host: Host) -> Observation:
    raw = host.raw()
    uri = f"binary://{driver(raw.bundle, 'exit 3')}"
    raw.write_spec()
    rpc = raw.launch()
    fields = {"id": raw.name, "bundle": str(raw.bundle), "stdout": uri, "stderr": uri}
    found = {"create": rpc.tried("Create", **fields)}
    return {**found, "state": rpc.code("State", id=raw.name)}


def terminal_process(*command: str) -> dict[str, object]:
    """A process with a terminal."""
    return specs.process(*command, terminal=True)


@scenario(size="33 97")
def terminal_and_its_size(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    path, writer = raw.input("in")
    program = terminal_process(*SHELL, "tty; read a; stty size; echo got $a")
    rpc = raw.created(program=program, stdio={"stdin": path, "stdout": out, "terminal": True})
    rpc.ask("Start", id=raw.name)
    found: Observation = {"resize": rpc.tried("ResizePty", id=raw.name, width=97, height=33)}
    eventually(lambda: b"pts" in seen, "the program")
    os.write(writer, b"typed\n")
    found["status"] = rpc.wait(raw.name)
    eventually(lambda: b"got typed" in seen, "the last line")
    lines = seen.decode().split("\r\n")
    found["late resize"] = rpc.tried("ResizePty", id=raw.name, width=97, height=33)
    return {**found, "lines": lines, "size": lines[2], "state": rpc.state(raw.name)}


@scenario(status=1)
def terminal_interrupt(host: Host) -> Observation:
    raw = host.raw()
    out, seen = raw.output("out")
    path, writer = raw.input("in")
    command = "trap 'echo caught; exit 1' INT; echo ready; while :; do read a; done"
    stdio = {"stdin": path, "stdout": out, "terminal": True}
    rpc = raw.created(program=terminal_process(*SHELL, command), stdio=stdio)
    rpc.ask("Start", id=raw.name)
    eventually(lambda: b"ready" in seen, "the program")
    os.write(writer, b"\x03")
    return {"status": rpc.wait(raw.name), "delete": rpc.tried("Delete", id=raw.name)}


@scenario(out="x\r\ny\r\n")
def terminal_logs_to_a_file(host: Host) -> Observation:
    raw = host.raw()
    log = raw.bundle / "plain"
    program = terminal_process(*SHELL, "echo x; echo y >&2")
    raw.write_spec(program)
    rpc = raw.launch()
    fields = {"id": raw.name, "bundle": str(raw.bundle), "terminal": True}
    found: Observation = {"create": rpc.tried("Create", **fields, stdout=f"file://{log}")}
    if found["create"] == "ok":
        rpc.ask("Start", id=raw.name)
        found["status"] = rpc.wait(raw.name)
        found["delete"] = rpc.tried("Delete", id=raw.name)
    return {**found, "out": log.read_bytes().decode() if log.exists() else ""}


@scenario(out="exec /dev/pts/0\r\n")
def exec_on_a_terminal(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    out, seen = raw.output("out")
    changes = {"terminal": True}
    command = (*SHELL, "echo exec $(tty)")
    fields = {"terminal": True, "stdout": out, "changes": changes}
    found: Observation = {"exec": raw.add_exec(rpc, "x", *command, **fields)}
    found["start"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["resize"] = rpc.code("ResizePty", id=raw.name, exec_id="unknown", width=1, height=1)
    found["status"] = rpc.wait(raw.name, "x")
    eventually(lambda: seen, "the output")
    found["state"] = rpc.state(raw.name, "x")
    return {**found, "out": seen.decode(), "delete": rpc.tried("Delete", id=raw.name, exec_id="x")}


@scenario()
def no_stdio_at_all(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    pid = raw.pid_of_program(rpc)
    links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in ("0", "1", "2")}
    return {"links": links, "close": rpc.tried("CloseIO", id=raw.name, stdin=True)}


@scenario()
def descriptors_of_a_process(host: Host) -> Observation:
    """A container's process gets its three, and nothing of the shim's."""
    raw = host.raw()
    out, _ = raw.output("out")
    rpc = raw.running(stdio={"stdout": out, "stderr": out})
    pid = raw.pid_of_program(rpc)
    folder = f"/proc/{pid}/fd"
    kinds = {fd: os.readlink(f"{folder}/{fd}").partition(":")[0] for fd in os.listdir(folder)}
    return {"kinds": kinds}
