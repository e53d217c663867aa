"""OCI specs as the scenarios need them, for shims that are spoken to without a containerd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Spec = dict[str, Any]
PATH = "PATH=/sbin:/bin"
NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
DEFAULT_CAPABILITIES = ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"]


def process(*command: str, **changes: Any) -> Spec:
    """A runtime-spec Process; ``changes`` replace its members."""
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(command),
        "env": [PATH],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), DEFAULT_CAPABILITIES),
        **changes,
    }


def spec(
    rootfs: Path | str,
    program: Spec,
    cgroup: str,
    *,
    namespaces: tuple[str, ...] = NAMESPACES,
    mounts: tuple[Spec, ...] = (),
    resources: Spec | None = None,
    **changes: Any,
) -> Spec:
    """A runtime-spec Spec; ``changes`` replace its members."""
    usual = (
        mount("/proc", "proc"),
        mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
    )
    linux = {
        "namespaces": [{"type": kind} for kind in namespaces],
        "resources": resources or {},
        "cgroupsPath": cgroup,
    }
    return {
        "ociVersion": "1.0.2",
        "process": program,
        "root": {"path": str(rootfs), "readonly": False},
        "hostname": "compat",
        "mounts": [*usual, *mounts],
        "linux": linux,
        **changes,
    }


def mount(destination: str, kind: str, *options: str, source: str = "") -> Spec:
    """A runtime-spec Mount."""
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": list(options),
    }
