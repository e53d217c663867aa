"""The command lines of an OCI runtime (runc, crun, youki), and what it says when it fails."""

from __future__ import annotations

import json
import os

from pyshim.api import options_pb2, state_pb2

INIT_PID_FILE = "init.pid"
LOG_FILE = "log.json"
CRIU_WORK_FOLDER = "criu-work"
MAX_PID_BYTES = 32
PID_MAX = 1 << 22  # the kernel's PID_MAX_LIMIT
MAX_LOG_BYTES = 1 << 20
DEFAULT_RUNTIME = "runc"
DEFAULT_ROOT = "/run/containerd/runc"  # the Go shim's


def global_flags(container: state_pb2.Container) -> list[str]:
    """The runtime's binary and the flags that precede every sub-command.

    In a bundle that has become read-only it could not open its log, and would refuse to kill or
    delete: there it says on stderr what is wrong.
    """
    flags = [container.runtime, "--root", container.root]
    if os.access(container.bundle, os.W_OK):
        flags += ["--log", os.path.join(container.bundle, LOG_FILE), "--log-format", "json"]
    if container.systemd_cgroup:
        flags.append("--systemd-cgroup")
    if container.criu_path:
        flags += ["--criu", container.criu_path]
    return flags


def create(container: state_pb2.Container) -> list[str]:
    """``create`` for the container's init."""
    command = [*global_flags(container), "create", "--bundle", container.bundle]
    command += ["--pid-file", pid_path(container, container.init), *console_flags(container.init)]
    if container.no_pivot_root:
        command.append("--no-pivot")
    if container.no_new_keyring:
        command.append("--no-new-keyring")
    return [*command, container.id]


def start(container: state_pb2.Container) -> list[str]:
    """``start``."""
    return [*global_flags(container), "start", container.id]


def delete(container: state_pb2.Container) -> list[str]:
    """``delete``; also for a container whose init was only created (hence --force)."""
    return [*global_flags(container), "delete", "--force", container.id]


def kill(container: state_pb2.Container, signal: int, *, everyone: bool) -> list[str]:
    """``kill`` of the init, or of ``everyone`` in the container."""
    who = ["--all"] if everyone else []
    return [*global_flags(container), "kill", *who, container.id, str(signal)]


def pause(container: state_pb2.Container) -> list[str]:
    """``pause``."""
    return [*global_flags(container), "pause", container.id]


def resume(container: state_pb2.Container) -> list[str]:
    """``resume``."""
    return [*global_flags(container), "resume", container.id]


def update(container: state_pb2.Container) -> list[str]:
    """``update`` with the resources that come on stdin."""
    return [*global_flags(container), "update", "--resources", "-", container.id]


def checkpoint(
    container: state_pb2.Container, images: str, work: str, chosen: options_pb2.CheckpointOptions
) -> list[str]:
    """``checkpoint`` into the folder ``images``; criu logs in ``work``."""
    flags = ["--image-path", images, "--work-path", work]
    if chosen.parent_path:
        flags += ["--parent-path", chosen.parent_path]
    for wanted, flag in (
        (chosen.open_tcp, "--tcp-established"),
        (chosen.external_unix_sockets, "--ext-unix-sk"),
        (chosen.terminal, "--shell-job"),
        (chosen.file_locks, "--file-locks"),
        (not chosen.exit, "--leave-running"),
    ):
        if wanted:
            flags.append(flag)
    for space in chosen.empty_namespaces:
        flags += ["--empty-ns", space]
    if chosen.cgroups_mode:
        flags += ["--manage-cgroups-mode", chosen.cgroups_mode]
    return [*global_flags(container), "checkpoint", *flags, container.id]


def restore(container: state_pb2.Container) -> list[str]:
    """``restore`` from the images in ``container.checkpoint``."""
    work = container.criu_work_path or os.path.join(container.bundle, CRIU_WORK_FOLDER)
    command = [*global_flags(container), "restore", "--detach", "--no-subreaper"]
    command += ["--image-path", container.checkpoint, "--work-path", work]
    command += ["--pid-file", pid_path(container, container.init)]
    command += console_flags(container.init)
    if container.no_pivot_root:
        command.append("--no-pivot")
    return [*command, "--bundle", container.bundle, container.id]


def execute(container: state_pb2.Container, process: state_pb2.Process) -> list[str]:
    """``exec --detach`` of a registered exec; its spec is read from ``exec_spec_path``."""
    pid_file = exec_pid_path(container, process)
    command = [*global_flags(container), "exec", "--process", exec_spec_path(container, process)]
    command += console_flags(process)
    return [*command, "--detach", "--pid-file", pid_file, container.id]


def console_flags(process: state_pb2.Process) -> list[str]:
    """Where the runtime, which runs in the bundle, is to deliver the terminal."""
    if not process.console_path:
        return []
    return ["--console-socket", os.path.basename(process.console_path)]


def exec_pid_path(container: state_pb2.Container, process: state_pb2.Process) -> str:
    """Where the runtime writes the pid of an exec (as containerd's Go shim names it).

    But the init's file must not be taken for that of an exec of this name.
    """
    name = f"{process.id}.pid"
    return os.path.join(container.bundle, f"exec:{name}" if name == INIT_PID_FILE else name)


def pid_path(container: state_pb2.Container, process: state_pb2.Process) -> str:
    """Where the runtime writes the pid of an exec or, restored, of the init."""
    if process.id:
        return exec_pid_path(container, process)
    return os.path.join(container.bundle, INIT_PID_FILE)


def pid_drafts(path: str) -> list[str]:
    """A pid file and what runc leaves of it where there was no room; it refuses to start over."""
    folder, name = os.path.split(path)
    return [path, os.path.join(folder, f".{name}")]


def exec_spec_path(container: state_pb2.Container, process: state_pb2.Process) -> str:
    """Where the service leaves an exec's spec for the runtime."""
    return os.path.join(container.bundle, f"{process.id}.spec.json")


def read_pid(path: str) -> int:
    """The pid in a pid file.  Raises OSError, or ValueError naming the file."""
    with open(path, "rb") as file:
        text = file.read(MAX_PID_BYTES)
    if not text.strip().isdigit() or not 0 < int(text) <= PID_MAX:
        raise ValueError(f"{path}: the OCI runtime has left no pid there but {text!r}")
    return int(text)


def failure(
    container: state_pb2.Container, action: str, status: int, log_size: int, printed: str
) -> str:
    """The Go shim's text for a runtime command that has ended with ``status``.

    Arguments as for ``reason``.
    """
    return f"OCI runtime {action} failed: {reason(container, status, log_size, printed)}"


def reason(container: state_pb2.Container, status: int, log_size: int, printed: str) -> str:
    """Why a runtime command has failed: by its log, else by what it ``printed``, else ``status``.

    What the log had before, in its first ``log_size`` bytes, is about other commands.
    """
    said = " ".join(printed.split())
    text = last_error(container, log_size) or f"exit status {status}{said and f': {said}'}"
    return f"{text}; no space is left in {container.bundle}" if _is_full(container.bundle) else text


def _is_full(bundle: str) -> bool:
    """Whether the bundle takes no byte or no file more, so that a runtime's log may be empty."""
    try:
        found = os.statvfs(bundle)
    except OSError:
        return False
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def log_size(bundle: str) -> int:
    """The size of the runtime's log, in bytes; 0 before there is one."""
    try:
        return os.stat(os.path.join(bundle, LOG_FILE)).st_size
    except OSError:
        return 0


def last_error(container: state_pb2.Container, start: int = 0) -> str:
    """The last error that the runtime logged from byte ``start`` on, "" when it logged none.

    The Go shim of containerd 1.6 reports the same line of the same file.  Of a huge log the last
    MAX_LOG_BYTES are read.
    """
    path = os.path.join(container.bundle, LOG_FILE)
    found = ""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - MAX_LOG_BYTES))
            for line in file:
                try:
                    entry = json.loads(line.decode(errors="replace"))
                    if entry.get("level") == "error":
                        found = str(entry.get("msg", "")).strip()
                except (ValueError, AttributeError):
                    continue
    except OSError:
        return ""
    return found
