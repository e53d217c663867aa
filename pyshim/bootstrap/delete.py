"""`delete`: removes what a container left behind, whoever has died before; may be repeated.

containerd gives it 5 s and runs it after every container, so the normal case, nothing left, must
be quick and every step bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import empty_pb2

from pyshim.api import events_pb2, forward_pb2, state_pb2, task_pb2
from pyshim.bootstrap import address, start
from pyshim.bootstrap.flags import Flags
from pyshim.events import spool
from pyshim.runtime import mounts
from pyshim.runtime.command import DEFAULT_ROOT, DEFAULT_RUNTIME

# Twice, with a lock that is held, and twice the shim, less than the five seconds together.
RUNTIME_TIMEOUT_S = 1.3
SHIM_TIMEOUT_S = 0.5
KILLED = 137
TASK_SERVICE = "containerd.task.v2.Task"


def delete(flags: Flags) -> bytes:
    """Cleans up; a serialized DeleteResponse."""
    bundle = Path(flags.bundle or os.curdir).absolute()
    kept = spool.read(str(bundle))
    end_container(bundle, flags.namespace, flags.id)
    mounts.unmount_all(str(bundle / "rootfs"))
    end_shim(bundle, flags.id)
    now = time.time_ns()
    response = task_pb2.DeleteResponse(pid=init_pid(bundle), exit_status=KILLED)
    response.exited_at.seconds, response.exited_at.nanos = divmod(now, 1_000_000_000)
    if (known := kept_exit(kept, flags.id)) is not None:
        response.exit_status = known.exit_status
        response.exited_at.CopyFrom(known.exited_at)
    return response.SerializeToString()


def kept_exit(kept: Iterable[state_pb2.Event], container_id: str) -> events_pb2.TaskExit | None:
    """The exit of the container's init that a monitor kept on disk before it was killed itself.

    containerd publishes what `delete` answers (1.6 to 2.x, clean-up after a dead shim).
    """
    for event in kept:
        if event.is_exit:
            envelope = forward_pb2.Envelope.FromString(event.envelope)
            found = events_pb2.TaskExit.FromString(envelope.event.value)
            if found.id == found.container_id == container_id:
                return found
    return None


def end_container(bundle: Path, namespace: str, container_id: str) -> None:
    """Has the runtime kill and forget the container, when it knows it."""
    options = read_options(bundle)
    root = Path(options.get("root") or DEFAULT_ROOT) / namespace
    if not (root / container_id).is_dir():
        return
    command = [runtime_binary(bundle, options), "--root", str(root), "delete"]
    # With --force runc waits until the killed init is reaped, which is process 1's affair where the
    # shim is dead, and may take seconds; without, a zombie is a stopped container to it.
    for way in (["--force"], []):
        with contextlib.suppress(OSError):
            if ends([*command, *way, container_id]):
                break
    from pyshim.cgroups import remains

    remains.remove(bundle)


def ends(command: list[str]) -> bool:
    """Runs a command of the runtime; whether it came to an end within its time.  Raises OSError."""
    import subprocess

    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=RUNTIME_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return True


def read_options(bundle: Path) -> dict[str, str]:
    """The texts in `options.json`, which Create leaves in the bundle."""
    try:
        options = json.loads((bundle / "options.json").read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(options, dict):
        return {}
    return {name: value for name, value in options.items() if isinstance(value, str)}


def runtime_binary(bundle: Path, options: dict[str, str]) -> str:
    """The runtime that Create used."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if text := (bundle / "runtime").read_text().strip():
            return text
    return options.get("binary_name") or DEFAULT_RUNTIME


def end_shim(bundle: Path, container_id: str) -> None:
    """Lets a monitor that still lives drop the container, and end when that was its last."""
    try:
        path = address.path_of((bundle / "address").read_text())
    except (OSError, UnicodeDecodeError):
        return
    if not path or not os.path.isdir(os.path.dirname(path)):
        return
    with contextlib.suppress(start.StartError), start.locked(os.path.dirname(path)):
        if not start.is_served(path):
            with contextlib.suppress(OSError):
                os.unlink(path)
            return
    ask_to_end(path, container_id)


def ask_to_end(path: str, container_id: str) -> None:
    """Task.Delete and Task.Shutdown; failures are the daemon's to find."""
    from pyshim.ttrpc.client import Client

    requests = (
        ("Delete", task_pb2.DeleteRequest(id=container_id), task_pb2.DeleteResponse),
        ("Shutdown", task_pb2.ShutdownRequest(id=container_id, now=True), empty_pb2.Empty),
    )
    for method, request, response_type in requests:
        with contextlib.suppress(Exception), Client(path, SHIM_TIMEOUT_S) as client:
            client.call(TASK_SERVICE, method, request, response_type)


def init_pid(bundle: Path) -> int:
    """The container's first process, as the runtime noted it; 0 when there is no note."""
    try:
        return int((bundle / "init.pid").read_text())
    except (OSError, ValueError):
        return 0
