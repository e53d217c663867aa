"""Several containers in one shim: the containers of a pod."""

from __future__ import annotations

import json

from tests.compat.host import Host
from tests.compat.raw import RawShim, address_in
from tests.compat.rpc import Rpc
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually

POD = {"io.kubernetes.cri.sandbox-id": "pod"}
GROUP = {"io.containerd.runc.v2.group": "pod"}


def two(host: Host, annotations: dict[str, str]) -> tuple[RawShim, Rpc, RawShim, Rpc]:
    """Two running containers with the same annotations, and their connections."""
    first, second = host.raw("first"), host.raw("second")
    return (
        first,
        first.running(annotations=annotations),
        second,
        second.running(annotations=annotations),
    )


def _one_shim(host: Host, annotations: dict[str, str]) -> Observation:
    first, rpc, second, other = two(host, annotations)
    found: Observation = {"same address": first.address == second.address}
    found["shims"] = len(host.shims())
    found["across"] = [rpc.status(second.name), other.status(first.name)]
    pids = [rpc.ask("Connect", id=raw.name).task_pid for raw in (first, second)]
    found["pids"] = pids == [rpc.ask("State", id=raw.name).pid for raw in (first, second)]
    rpc.ask("Kill", id=first.name, signal=9)
    rpc.wait(first.name)
    found["delete"] = rpc.tried("Delete", id=first.name)
    found["shutdown"] = rpc.tried("Shutdown", id=first.name)
    found["second"] = other.status(second.name)
    other.ask("Kill", id=second.name, signal=9)
    other.wait(second.name)
    found["delete second"] = other.tried("Delete", id=second.name)
    found["end"] = other.code("Shutdown", id=second.name) in {"ok", "connection closed"}
    eventually(lambda: not host.shims(), "the shim has ended")
    return found


@scenario(shims=1)
def pod_in_one_shim(host: Host) -> Observation:
    return _one_shim(host, POD)


@scenario(shims=1)
def group_in_one_shim(host: Host) -> Observation:
    return _one_shim(host, GROUP)


@scenario(shims=2)
def no_group_no_sharing(host: Host) -> Observation:
    first, _, second, other = two(host, {})
    return {
        "shims": len(host.shims()),
        "same address": first.address == second.address,
        "across": other.tried("State", id=first.name),
    }


@scenario(second="RUNNING")
def delete_action_in_a_pod(host: Host) -> Observation:
    """It ends the one container alone."""
    first, rpc, second, _ = two(host, POD)
    said = first.execute(*first.flags("-bundle", str(first.bundle), "delete"))
    found: Observation = {"code": said.returncode, "first": rpc.tried("Wait", id=first.name)}
    return {
        **found,
        "second": rpc.status(second.name),
        "delete": rpc.tried("Delete", id=first.name),
    }


@scenario(code=0)
def config_without_annotations(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    path = raw.bundle / "config.json"
    made = json.loads(path.read_text())
    made["annotations"] = None
    path.write_text(json.dumps(made))
    said = raw.execute(*raw.flags("start"))
    raw.address = address_in(said.stdout.decode())
    raw.connect()
    return {"code": said.returncode}
