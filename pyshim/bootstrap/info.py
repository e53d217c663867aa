"""What `-v` and `-info` say of this runtime."""

from __future__ import annotations

from pyshim import __version__
from pyshim.api import info_pb2
from pyshim.zygote.address import build_id

RUNTIME_NAME = "io.containerd.pyshim.v2"


def version_text(program: str) -> str:
    """The lines that the native launcher prints too."""
    return f"{program}:\n  Version:  {__version__}\n  Revision: {build_id()}\n"


def runtime_info() -> bytes:
    """A serialized containerd.types.RuntimeInfo."""
    version = info_pb2.RuntimeVersion(version=__version__, revision=build_id())
    info = info_pb2.RuntimeInfo(name=RUNTIME_NAME, version=version)
    return info.SerializeToString()
