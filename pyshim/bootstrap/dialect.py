"""What containerd gives `start` and `-info` on stdin, and what `start` answers, by generation.

Up to 2.2 stdin is an Any with the runtime's options, or nothing; from 2.3 on BootstrapParams, which
holds the options among its extensions.  The answer is a bare address, which every daemon takes for
version 2 over ttrpc; who gave parameters gets a BootstrapResult (spec: shim.md 1.8).  Pure but for
``read_stdin``.
"""

from __future__ import annotations

import json
import os
import select
import time
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from pyshim.api import bootstrap_pb2, options_pb2
from pyshim.bootstrap.flags import Flags
from pyshim.runtime import options
from pyshim.ttrpc.status import StatusError

MAX_BYTES = 10 * 1024 * 1024  # the Go shim's bound
# containerd closes it at once; a person's terminal or a forgotten pipe must not hang us.
STDIN_TIMEOUT_S = 2.0
MAX_SOCKET_DIR_BYTES = 42  # containerd 2.3's bound
PROTOCOL = "ttrpc"
PLAIN, SHARED = 2, 3  # versions of the shim API


@dataclass
class Given:
    """What `start` is to know beyond its command line."""

    options: options_pb2.Options = field(default_factory=options_pb2.Options)
    socket_dir: str = ""
    ttrpc_address: str = ""
    in_params: bool = False  # BootstrapParams: the daemon reads a BootstrapResult


class DialectError(ValueError):
    """What came on stdin cannot be obeyed; the message says why."""


def parse(data: bytes, flags: Flags) -> Given:
    """Reads ``data`` in whichever dialect it is.  Raises DialectError.

    An Any is also, byte for byte, BootstrapParams of another container; so these must name ours.
    """
    params = _params(data)
    if params is not None and (params.instance_id, params.namespace) == (flags.id, flags.namespace):
        if len(params.socket_dir.encode()) > MAX_SOCKET_DIR_BYTES:
            text = f"socket_dir {params.socket_dir} is longer than {MAX_SOCKET_DIR_BYTES} bytes"
            raise DialectError(text)
        return Given(_among(params), params.socket_dir, params.containerd_ttrpc_address, True)
    packed = Any()
    try:
        packed.ParseFromString(data)
        return Given(options.decode(packed))
    except DecodeError:
        raise DialectError(f"{len(data)} bytes on stdin are no options of a runtime") from None
    except StatusError as error:
        raise DialectError(error.message) from error


def version(wanted: str, ceiling: str | None) -> int:
    """The version of the shim API to answer with.

    2 is understood by all.  With 3, containerd 2.x reaches a pod's other containers without
    executing us; no daemon says that it can, so an administrator does (``wanted``, PYSHIM_API).
    containerd 1.6 sets no MAX_SHIM_VERSION (``ceiling``) and reads nothing but an address.
    Raises DialectError.
    """
    if wanted not in {"", str(PLAIN), str(SHARED)}:
        raise DialectError(f"PYSHIM_API={wanted}: give {PLAIN} or {SHARED}, or nothing")
    return SHARED if wanted == str(SHARED) and ceiling is not None else PLAIN


def answer(given: Given, address: str, api: int) -> bytes:
    """What `start` prints.

    A result begins and ends with what is no white space, for the 2.3.x that trimmed it (#13801).
    """
    if given.in_params:
        result = bootstrap_pb2.BootstrapResult(version=api, address=address, protocol=PROTOCOL)
        return result.SerializeToString()
    if api == PLAIN:
        return address.encode()
    return json.dumps({"version": api, "address": address, "protocol": PROTOCOL}).encode()


def _params(data: bytes) -> bootstrap_pb2.BootstrapParams | None:
    try:
        return bootstrap_pb2.BootstrapParams.FromString(data)
    except DecodeError:
        return None


def _among(params: bootstrap_pb2.BootstrapParams) -> options_pb2.Options:
    """The runtime's options among the extensions; the others are not for us."""
    for extension in params.extensions:
        kind = extension.value.type_url.rpartition("/")[2]
        if kind in {options.RUNC, options.GENERIC}:
            try:
                return options.decode(extension.value)
            except StatusError as error:
                raise DialectError(error.message) from error
    return options_pb2.Options()


def read_stdin() -> bytes:
    """All of stdin, within bounds of time and size; nothing from a terminal."""
    data = b""
    deadline = time.monotonic() + STDIN_TIMEOUT_S
    while not os.isatty(0) and len(data) <= MAX_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([0], [], [], left)[0]:
            break
        part = os.read(0, 65536)
        if not part:
            break
        data += part
    return data
