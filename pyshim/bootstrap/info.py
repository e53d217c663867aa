"""What `-v` and `-info` say of this runtime."""

from __future__ import annotations

import json

from pyshim import __version__
from pyshim.api import info_pb2
from pyshim.bootstrap import dialect
from pyshim.bootstrap.flags import Flags
from pyshim.runtime.command import DEFAULT_RUNTIME
from pyshim.zygote.address import build_id

RUNTIME_NAME = "io.containerd.pyshim.v2"
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
FEATURES_TIMEOUT_S = 2


def version_text(program: str) -> str:
    """The lines that the native launcher prints too."""
    return f"{program}:\n  Version:  {__version__}\n  Revision: {build_id()}\n"


def runtime_info(request: bytes) -> bytes:
    """A serialized containerd.types.RuntimeInfo; ``request`` is an Any with the options.

    It holds what the runtime says of its features, when it says something: containerd 2.x decides
    by it whether a runtime can do user namespaces and recursive read-only mounts.
    """
    version = info_pb2.RuntimeVersion(version=__version__, revision=build_id())
    info = info_pb2.RuntimeInfo(name=RUNTIME_NAME, version=version)
    chosen = dialect.parse(request, Flags()).options
    if text := runtime_features(chosen.binary_name or DEFAULT_RUNTIME):
        info.features.type_url = FEATURES_TYPE
        info.features.value = text
    return info.SerializeToString()


def runtime_features(runtime: str) -> bytes:
    """What ``runtime features`` prints; nothing for one that has no such command (runc < 1.1)."""
    import subprocess

    try:
        done = subprocess.run(
            [runtime, "features"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FEATURES_TIMEOUT_S,
            check=True,
        )
        json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return b""
    return done.stdout.strip()
