"""What the zygote imports for its children, and what it keeps out of their memory.

uvloop and asyncio want TLS, which no service has a use for and which takes some 4 MB of a zygote
and its spare: OpenSSL is a third of all the libraries that they map.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

# What children need; a module that cannot be imported costs its child an error, not us.
WARM_MODULES = (
    "uvloop",
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
# What uvloop 0.21 and 0.22 take from ssl when they are imported.
ERRORS = (
    "SSLError",
    "SSLWantReadError",
    "SSLSyscallError",
    "SSLZeroReturnError",
    "CertificateError",
)
NUMBERS = ("SSL_ERROR_WANT_READ", "SSL_ERROR_WANT_WRITE", "SSL_ERROR_SYSCALL")
OTHERS = ("SSLContext", "MemoryBIO", "create_default_context")


def import_all() -> None:
    """Imports all that can be imported."""
    with contextlib.suppress(Exception):
        import_loop()
    for name in WARM_MODULES:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def import_loop() -> None:
    """Imports asyncio and uvloop without TLS.

    Raises what a uvloop raises that wants more of it; it is imported with all of it then.  Whoever
    imports ssl afterwards gets the real one.
    """
    if "ssl" in sys.modules:
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    try:
        modules["ssl"] = None  # asyncio does without what it cannot import
        importlib.import_module("asyncio")
        modules["ssl"] = stand_in()
        importlib.import_module("uvloop")
    finally:
        del modules["ssl"]


def stand_in() -> ModuleType:
    """A module with the names that uvloop looks for, and nothing behind them."""
    made = ModuleType("ssl")
    for name in ERRORS:
        setattr(made, name, type(name, (OSError,), {}))
    for name in NUMBERS:
        setattr(made, name, 0)
    for name in OTHERS:
        setattr(made, name, None)
    return made
