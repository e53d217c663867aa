"""What each call answers in each state of a container."""

from __future__ import annotations

import signal

from google.protobuf import empty_pb2

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.compat.host import Host
from tests.compat.raw import RESOURCES_URL, RawShim
from tests.compat.rpc import Rpc
from tests.compat.scenario import Observation, scenario

KILL = int(signal.SIGKILL)
RESOURCES = {"type_url": RESOURCES_URL, "value": b"{}"}
# In this order none changes what a later one finds, except where the state says so.
CALLS = ("Start", "Pause", "Resume", "Update", "Exec", "Pids", "Stats", "ResizePty", "CloseIO")


def _try(raw: RawShim, rpc: Rpc, method: str) -> str:
    fields: dict[str, object] = {"id": raw.name}
    if method == "Exec":
        return raw.add_exec(rpc, "x")
    if method == "Update":
        fields["resources"] = RESOURCES
    if method == "Create":
        fields["bundle"] = str(raw.bundle)
    if method == "Kill":
        fields["signal"] = KILL
    return rpc.tried(method, **fields)


def _all(raw: RawShim, rpc: Rpc, *methods: str) -> dict[str, str]:
    return {method: _try(raw, rpc, method) for method in methods}


@scenario(smoke=True, Kill="ok")
def calls_when_created(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.created()
    found: Observation = {"state": rpc.state(raw.name)}
    found |= _all(raw, rpc, "Pause", "Resume", "Update", "Exec", "Pids", "Stats")
    found |= _all(raw, rpc, "ResizePty", "CloseIO", "Create", "Kill")
    found["status"] = rpc.wait(raw.name)
    return {**found, "ended": rpc.state(raw.name), "delete": _try(raw, rpc, "Delete")}


@scenario(Delete="ok")
def delete_when_created(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.created()
    return _all(raw, rpc, "Delete", "State")


@scenario(exec="ok", status=9)
def exec_before_start(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.created()
    found: Observation = {"exec": raw.add_exec(rpc, "x")}
    found["start exec"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["status"] = rpc.wait(raw.name, "x")
    return {**found, "start": _try(raw, rpc, "Start"), "state": rpc.status(raw.name)}


@scenario(smoke=True, Pause="ok", Resume="ok")
def calls_when_running(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"state": rpc.state(raw.name)}
    found["resume"] = _try(raw, rpc, "Resume")
    return found | _all(raw, rpc, "Create", *CALLS, "Delete", "Shutdown", "State")


@scenario(Pause="ok", status="PAUSED")
def calls_when_paused(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = _all(raw, rpc, "Pause")
    found["status"] = rpc.status(raw.name)
    found["pause"] = _try(raw, rpc, "Pause")
    calls = ("Start", "Update", "Exec", "Pids", "Stats", "Create", "Delete", "Shutdown")
    found |= _all(raw, rpc, *calls)
    found["resume"] = _try(raw, rpc, "Resume")
    return {**found, "resumed": rpc.status(raw.name)}


@scenario(exit_status=7)
def calls_when_stopped(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.ended()
    found: Observation = {"state": rpc.state(raw.name), "exit_status": rpc.wait(raw.name)}
    found |= _all(raw, rpc, "Create", *CALLS, "Kill", "Shutdown", "Delete")
    return {**found, "deleted": _all(raw, rpc, "State", "Delete", "Wait", "Start")}


@scenario()
def calls_when_deleted(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.ended()
    rpc.ask("Delete", id=raw.name)
    methods = ("State", "Create", *CALLS, "Kill", "Wait", "Delete", "Connect")
    return {method: _try(raw, rpc, method) for method in methods if method != "Create"}


@scenario()
def unknown_container(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found = {}
    for method in ("State", *CALLS, "Kill", "Wait", "Delete"):
        fields: dict[str, object] = {"id": "unknown"}
        if method == "Exec":
            fields["exec_id"] = "x"
        if method == "Update":
            fields["resources"] = RESOURCES
        found[method] = rpc.tried(method, **fields)
    return found


@scenario()
def unknown_exec(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    methods = ("State", "Start", "Kill", "Wait", "Delete", "ResizePty", "CloseIO")
    return {m: rpc.tried(m, id=raw.name, exec_id="unknown") for m in methods}


@scenario()
def unknown_method_and_service(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    request = task_pb2.StateRequest(id=raw.name)
    return {
        "method": rpc.foreign(rpc.service, "NoSuch", request),
        "service": rpc.foreign("no.such.Service", "State", request),
        "empty": rpc.foreign(rpc.service, "", empty_pb2.Empty()),
    }


@scenario(statuses=[7, 7, 7, 7])
def wait_many_times(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.created("/bin/sh", "-c", "exit 7")
    streams = [rpc.send("Wait", id=raw.name) for _ in range(3)]
    rpc.ask("Start", id=raw.name)
    answers = [rpc.receive("Wait", stream) for stream in streams]
    answers.append(rpc.ask("Wait", id=raw.name))
    same = {(a.exited_at.seconds, a.exited_at.nanos) for a in answers}
    return {"statuses": [a.exit_status for a in answers], "times": len(same)}


@scenario(code="DEADLINE_EXCEEDED")
def wait_with_a_deadline(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    stream = rpc.send("Wait", timeout_s=0.2, id=raw.name)
    code = "answered"
    try:
        rpc.receive("Wait", stream, 3)
    except StatusError as error:
        code = Code(error.code).name
    except TimeoutError:
        code = "not answered"
    return {"code": code, "after": rpc.status(raw.name)}


@scenario(shim_is_a_process=True, task=True)
def connect(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    said = rpc.ask("Connect", id=raw.name)
    found = {"shim_is_a_process": said.shim_pid in host.shims()}
    found["task"] = said.task_pid == rpc.ask("State", id=raw.name).pid
    unknown = rpc.ask("Connect", id="unknown")
    return {**found, "version": bool(said.version), "unknown": unknown.task_pid}


@scenario()
def delete_response(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.ended()
    pid = rpc.ask("State", id=raw.name).pid
    waited = rpc.ask("Wait", id=raw.name)
    said = rpc.ask("Delete", id=raw.name)
    return {
        "pid": said.pid == pid,
        "status": said.exit_status,
        "time": said.exited_at == waited.exited_at,
    }


@scenario()
def signals(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    tried = (0, 10, 200, 65, 64)
    found = {str(n): rpc.tried("Kill", id=raw.name, signal=n) for n in tried}
    return {**found, "state": rpc.status(raw.name)}


@scenario(status=137)
def kill_then_everything_at_once(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    waiting = rpc.send("Wait", id=raw.name)
    first = rpc.send("Kill", id=raw.name, signal=KILL)
    rpc.receive("Kill", first)
    status = rpc.receive("Wait", waiting).exit_status
    return {"status": status, "kill": _try(raw, rpc, "Kill"), "delete": _try(raw, rpc, "Delete")}
