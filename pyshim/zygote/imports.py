"""What the zygote imports for its children, and what it keeps out of their memory.

asyncio wants TLS, which no service has a use for and which takes some 4 MB of a zygote and its
spare: OpenSSL is a third of all the libraries that they map.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

# What children need; a module that cannot be imported costs its child an error, not us.
WARM_MODULES = (
    "asyncio",
    "pyshim.api.task_pb2",
    "pyshim.api.state_pb2",
    "pyshim.api.info_pb2",
    "pyshim.service.activation",
    "pyshim.bootstrap",
    "pyshim.bootstrap.start",
    "pyshim.bootstrap.delete",
    "pyshim.bootstrap.info",
)


def import_all() -> None:
    """Imports all that can be imported."""
    with contextlib.suppress(Exception):
        import_asyncio()
    for name in WARM_MODULES:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def import_asyncio() -> None:
    """Imports asyncio without TLS.  Whoever imports ssl afterwards gets the real one."""
    if "ssl" in sys.modules:
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules["ssl"] = None  # asyncio does without what it cannot import
    try:
        importlib.import_module("asyncio")
    finally:
        del modules["ssl"]
