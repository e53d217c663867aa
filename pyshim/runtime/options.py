"""The options of a container, by whichever route its client sends them (spec: shim.md 2.16).

Typed runc options come from CRI and Docker for runc's own runtime type; for ours CRI sends
``runtimeoptions`` with a TOML text or file; 1.6 clients send the removed v1 shim's messages.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from pyshim.api import linuxrunc_pb2, options_pb2, runtimeoptions_pb2
from pyshim.ttrpc.status import Code, StatusError

# CRI's keys of the options table, and the fields that they stand for.
TOML_KEYS = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "CriuPath": "criu_path",
    "SystemdCgroup": "systemd_cgroup",
    "CriuImagePath": "criu_image_path",
    "CriuWorkPath": "criu_work_path",
    "TaskApiAddress": "task_api_address",
    "TaskApiVersion": "task_api_version",
}
RUNC = "containerd.runc.v1.Options"
GENERIC = "runtimeoptions.v1.Options"
LEGACY_CREATE = "containerd.linux.runc.CreateOptions"
CHECKPOINT = "containerd.runc.v1.CheckpointOptions"
LEGACY_CHECKPOINT = "containerd.linux.runc.CheckpointOptions"
LEGACY_RUNTIME = "containerd.linux.runc.RuncOptions"
MAX_FILE_BYTES = 1024 * 1024


def decode(packed: AnyMessage) -> options_pb2.Options:
    """The options in ``packed``, which may be empty.

    Raises StatusError INVALID_ARGUMENT for a type that is none of ours, and for what cannot be
    read; it names what is wrong.
    """
    kind = packed.type_url.rpartition("/")[2]
    try:
        if not kind and not packed.value:
            return options_pb2.Options()
        if kind == RUNC:
            return options_pb2.Options.FromString(packed.value)
        if kind == GENERIC:
            return _generic(runtimeoptions_pb2.Options.FromString(packed.value))
        if kind == LEGACY_CREATE:
            found = options_pb2.Options()
            _copy_shared(linuxrunc_pb2.CreateOptions.FromString(packed.value), found)
            return found
        if kind == LEGACY_RUNTIME:
            old = linuxrunc_pb2.RuncOptions.FromString(packed.value)
            return options_pb2.Options(
                binary_name=old.runtime,
                root=old.runtime_root,
                criu_path=old.criu_path,
                systemd_cgroup=old.systemd_cgroup,
            )
    except DecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"options {kind}: {error}") from error
    raise StatusError(Code.INVALID_ARGUMENT, f"unsupported options type {kind!r}")


def decode_checkpoint(packed: AnyMessage) -> options_pb2.CheckpointOptions:
    """The options of a Checkpoint in ``packed``, which may be empty.  Raises as ``decode``."""
    kind = packed.type_url.rpartition("/")[2]
    found = options_pb2.CheckpointOptions()
    try:
        if kind == CHECKPOINT:
            found.ParseFromString(packed.value)
        elif kind == LEGACY_CHECKPOINT:
            _copy_shared(linuxrunc_pb2.CheckpointOptions.FromString(packed.value), found)
        elif kind or packed.value:
            raise StatusError(Code.INVALID_ARGUMENT, f"unsupported checkpoint options {kind!r}")
    except DecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"options {kind}: {error}") from error
    return found


def _copy_shared(old: Message, new: Message) -> None:
    """Copies the fields that two messages share by name; their numbers differ."""
    for field, value in old.ListFields():
        if field.name not in new.DESCRIPTOR.fields_by_name:
            continue
        if isinstance(value, (bool, int, str)):
            setattr(new, field.name, value)
        else:
            getattr(new, field.name).extend(value)


def _generic(generic: runtimeoptions_pb2.Options) -> options_pb2.Options:
    body = generic.config_body
    where = "options"
    if not body and generic.config_path:
        where = generic.config_path
        try:
            with open(where, "rb") as file:
                body = file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"{where}: {error.strerror}") from error
    return from_toml(body, where)


def from_toml(body: bytes, where: str) -> options_pb2.Options:
    """The options in a TOML text; keys that are not ours are for somebody else.

    Raises StatusError INVALID_ARGUMENT with ``where``.
    """
    found = options_pb2.Options()
    try:
        for key, value in parse_toml(body.decode()).items():
            if key in TOML_KEYS:
                setattr(found, TOML_KEYS[key], value)
    except (ValueError, TypeError) as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"{where}: {error}") from error
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML text as a table; the parser is imported late, since most containers bring none.

    tomli is what 3.11's tomllib was made from.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    table: dict[str, Any] = importlib.import_module(name).loads(text)
    return table
