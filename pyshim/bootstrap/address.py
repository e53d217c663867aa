"""Which shim serves a container, and at what address.  Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

try:  # hashlib would load OpenSSL, which costs more than the rest of `start`
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    from _sha256 import sha256  # type: ignore[import-not-found]

DEFAULT_FOLDER = "/run/containerd/s"
# sockaddr_un has 108 bytes; Go keeps one for the terminating zero and one for abstract names.
MAX_PATH_BYTES = 106
SCHEME = "unix://"
# The Go shim's two, and CRI-O's own.
GROUP_ANNOTATIONS = (
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
)


class AddressError(ValueError):
    """There can be no socket at this address; the message says why."""


def group_id(container_id: str, config: Mapping[str, Any]) -> str:
    """The id that the containers of one shim share: the pod's, or the container's own."""
    annotations = config.get("annotations")
    if isinstance(annotations, Mapping):
        for name in GROUP_ANNOTATIONS:
            value = annotations.get(name)
            if isinstance(value, str) and value:
                return value
    return container_id


def socket_path(folder: str, grpc_address: str, namespace: str, group: str) -> str:
    """The path of the shim's socket, the same for each container of the group."""
    # Joined as the Go shim does it (filepath.Join).
    subject = posixpath.normpath(
        "/".join(part for part in (grpc_address, namespace, group) if part)
    )
    digest = sha256(subject.encode("utf-8", "surrogateescape")).hexdigest()
    path = f"{folder.rstrip('/')}/{digest}"
    size = len(path.encode("utf-8", "surrogateescape"))
    if size > MAX_PATH_BYTES:
        raise AddressError(
            f"socket path {path} has {size} bytes and may have {MAX_PATH_BYTES};"
            f" use a shorter folder (PYSHIM_SOCKET_DIR)"
        )
    return path


def path_of(address: str) -> str:
    """The path in an address; "" when it does not name a file."""
    path = address.strip().removeprefix(SCHEME)
    return path if path.startswith("/") else ""
