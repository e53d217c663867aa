"""`start`: finds the shim that serves a container, or makes one; its address is the answer.

When it fails it leaves nothing: no socket, no monitor.  When it is killed and done again, the
second finds what the first has made.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyshim.api import state_pb2
from pyshim.bootstrap import address, dialect
from pyshim.bootstrap.flags import Flags
from pyshim.cgroups import locate
from pyshim.monitor import channel
from pyshim.monitor.fds import memfd
from pyshim.service.migrations import STATE_VERSION
from pyshim.zygote import messages
from pyshim.zygote.address import close_from
from pyshim.zygote.address import socket_path as zygote_socket_path
from pyshim.zygote.messages import Kind

PROBE_TIMEOUT_S = 0.1
# What it is held for takes a millisecond; `delete` has five seconds for everything.
LOCK_TIMEOUT_S = 1.0
LOCK_POLL_S = 0.005
LAUNCHER_TIMEOUT_S = 30.0
BACKLOG = 128
MAX_OOM_SCORE = 1000
PR_SCHED_CORE, PR_SCHED_CORE_CREATE, PIDTYPE_TGID = 62, 1, 1
FIRST_FREE_FD = 5  # of a monitor: 3 is its listener, 4 its state


class StartError(Exception):
    """`start` cannot go on; the message says why and what to try."""


def start(flags: Flags, launcher: socket.socket | None, zygote: str) -> bytes:
    """The address of the monitor for this container, which is started here when there is none."""
    bundle = os.path.abspath(flags.bundle or os.getcwd())
    group = address.group_id(flags.id, read_config(bundle))
    given = dialect.parse(dialect.read_stdin(), flags)
    api = dialect.version(os.environ.get("PYSHIM_API", ""), os.environ.get("MAX_SHIM_VERSION"))
    if given.ttrpc_address:
        os.environ["TTRPC_ADDRESS"] = given.ttrpc_address
    folder = os.environ.get("PYSHIM_SOCKET_DIR") or given.socket_dir or address.DEFAULT_FOLDER
    if not folder.startswith("/"):
        raise StartError(f"the sockets' folder {folder} is relative; PYSHIM_SOCKET_DIR is a path")
    path = address.socket_path(folder, flags.address, flags.namespace, group)
    url = f"{address.SCHEME}{path}"
    with contextlib.ExitStack() as undo:
        # Before the socket is there, so that a cleanup after a crash finds it.
        write_address(bundle, url)
        listener = claim(path)
        if listener is not None:
            undo.callback(remove, path)
            undo.enter_context(listener)
            starter = messages.peer(launcher)[0] if launcher is not None else os.getpid()
            raise_oom_score(starter)
            if given.options.shim_cgroup:
                enter_cgroup(starter, given.options.shim_cgroup)
            state = first_state(flags, bundle, group, path)
            state.shared = api == dialect.SHARED
            start_monitor(state, listener, launcher, zygote)
            listener.close()
            # Who comes after this may die on the way; a service sees to it that we then end.
            is_served(path)
        undo.pop_all()
    return dialect.answer(given, url, api)


# --- The bundle ----------------------------------------------------------------------------------


def read_config(bundle: str) -> dict[str, Any]:
    """The container's OCI configuration; raises StartError naming the file.

    Some callers of containerd 2.x have none (shim.md 2.3); Create says so to the others.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            config = json.load(file)
    except FileNotFoundError:
        if not os.path.isdir(bundle):
            raise StartError(f"{bundle} is no folder; -bundle names one") from None
        return {}
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}; is this a bundle?") from error
    except ValueError as error:
        raise StartError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise StartError(f"{path} is not an OCI configuration: not a JSON object")
    return config


def write_address(bundle: str, text: str) -> None:
    """Writes the bundle's file `address`, whole or not at all.  Raises StartError."""
    path = Path(bundle) / "address"
    draft = path.with_name(".address")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise StartError(f"cannot write {path}: {error.strerror}") from error


# --- The socket ----------------------------------------------------------------------------------


def claim(path: str) -> socket.socket | None:
    """A listener at ``path``; None when another monitor of this group listens there already."""
    folder = os.path.dirname(path)
    previous = os.umask(0o077)  # whatever our starter's is
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    finally:
        os.umask(previous)
    with locked(folder):
        if is_served(path):
            return None
        remove(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            previous = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(previous)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keeps two starts of one pod from both finding a dead socket and replacing it.

    The folder itself is locked, so that nothing has to lie in it.  Raises StartError at the bound.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _lock(fd):
            if time.monotonic() > deadline:
                text = f"{folder} has been locked for {LOCK_TIMEOUT_S} s; is a `start` stopped?"
                raise StartError(text)
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_served(path: str) -> bool:
    """Whether somebody accepts connections at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except TimeoutError:
            return True  # a full backlog: busy, not dead
        except OSError as error:
            return error.errno == errno.EAGAIN
    return True


def remove(path: str) -> None:
    """Unlinks a socket that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


# --- The monitor ---------------------------------------------------------------------------------


def start_monitor(
    first: state_pb2.State,
    listener: socket.socket,
    launcher: socket.socket | None,
    zygote: str,
) -> int:
    """Starts the monitor with its ``first`` state; its pid."""
    bundle = first.bundle
    command = [find_monitor(), "--zygote", zygote or zygote_socket_path()]
    command += ["--python", sys.executable]
    state = memfd(first.SerializeToString())
    try:
        if launcher is None:
            return spawn(command, bundle, listener.fileno(), state)
        return ask_launcher(launcher, command, bundle, listener.fileno(), state)
    finally:
        os.close(state)


def find_monitor() -> str:
    """pyshim-monitor beside the interpreter, or on PATH; raises StartError."""
    beside = os.path.join(os.path.dirname(sys.executable), "pyshim-monitor")
    found = beside if os.access(beside, os.X_OK) else shutil.which("pyshim-monitor")
    if found is None:
        raise StartError(f"pyshim-monitor is neither at {beside} nor on PATH; reinstall pyshim")
    return found


def first_state(flags: Flags, bundle: str, group: str, path: str) -> state_pb2.State:
    """What every service of this monitor has to know."""
    environment = {name: value for name, value in os.environ.items() if is_text(name + value)}
    return state_pb2.State(
        version=STATE_VERSION,
        namespace=flags.namespace,
        id=group,
        bundle=bundle,
        address=flags.address,
        ttrpc_address=events_address(flags),
        publish_binary=flags.publish_binary,
        debug=flags.debug,
        socket=path,
        socket_inode=os.stat(path).st_ino,
        env=environment,
    )


def events_address(flags: Flags) -> str:
    """Where events go; "" for a daemon that takes none, as CRI-O (it gives no address at all)."""
    beside = f"{flags.address}.ttrpc" if flags.address else ""
    return os.environ.get("TTRPC_ADDRESS") or beside


def is_text(value: str) -> bool:
    """Whether protobuf can carry it: an environment may hold any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def ask_launcher(
    launcher: socket.socket, command: list[str], bundle: str, listener: int, state: int
) -> int:
    """Has the launcher start the monitor, in containerd's cgroup and namespaces; its pid."""
    program = memfd(channel.encode_program(bundle, command, dict(os.environ)))
    try:
        launcher.settimeout(LAUNCHER_TIMEOUT_S)
        request = messages.header(Kind.START_MONITOR)
        socket.send_fds(launcher, [request], [program, listener, state])
        answer = launcher.recv(messages.VALUE.size)
    finally:
        os.close(program)
    if len(answer) != messages.VALUE.size:
        raise StartError("the launcher ended before it had started the monitor")
    pid = messages.VALUE.unpack(answer)[-1]
    if answer != messages.with_value(Kind.STARTED, pid):
        raise StartError("the launcher and its Python are of different versions; reinstall pyshim")
    if pid <= 0:
        raise StartError(f"cannot start {command[0]}: {os.strerror(-pid)}")
    return int(pid)


def spawn(command: list[str], bundle: str, listener: int, state: int) -> int:
    """Starts the monitor from here; its pid."""
    report, failed = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become_monitor(command, bundle, listener, state, failed)
        except OSError as error:
            os.write(FIRST_FREE_FD, struct.pack("<i", error.errno or 0))
        finally:
            os._exit(127)
    os.close(failed)
    with open(report, "rb") as file:
        reason = file.read()
    if reason:
        os.waitpid(child, 0)
        raise StartError(f"cannot start {command[0]}: {os.strerror(*struct.unpack('<i', reason))}")
    return child


def become_monitor(command: list[str], bundle: str, listener: int, state: int, failed: int) -> None:
    """In the child: a session of its own, and nothing open but what a monitor has."""
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (listener, state, failed)]
    null = fcntl.fcntl(os.open(os.devnull, os.O_RDWR), fcntl.F_DUPFD_CLOEXEC, 16)
    os.dup2(kept[2], FIRST_FREE_FD, inheritable=False)
    os.setsid()
    os.chdir(bundle)
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for target, fd in enumerate((null, null, null, kept[0], kept[1])):
        os.dup2(fd, target)
    close_from(FIRST_FREE_FD + 1)
    share_core()
    os.execv(command[0], command)


def share_core() -> None:
    """Gives this process a core-scheduling cookie when containerd asks for it, as the launcher.

    A kernel without core scheduling leaves things as they are (prctl(2)).  Raises OSError.
    """
    if not os.environ.get("SCHED_CORE"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, PIDTYPE_TGID, 0):
        error = ctypes.get_errno()
        if error not in {errno.EINVAL, errno.ENODEV}:
            raise OSError(error, os.strerror(error))


# --- Its place --------------------------------------------------------------------------------


def raise_oom_score(starter: int) -> None:
    """Makes whoever starts the monitor, and by that the monitor, one point better to kill.

    The kernel shall end it before containerd, which executed ``starter``, the launcher or us (the
    Go shim's rule).  Not permitted in user namespaces; then it stays as it is.
    """
    with contextlib.suppress(OSError, ValueError):
        caller = parent_of(starter)
        score = int(Path(f"/proc/{caller}/oom_score_adj").read_text())
        Path(f"/proc/{starter}/oom_score_adj").write_text(str(min(score + 1, MAX_OOM_SCORE)))


def enter_cgroup(starter: int, name: str) -> None:
    """Moves whoever starts the monitor into the control group ``name`` of every hierarchy.

    The option ShimCgroup; the groups are there already, as for the Go shim.  Raises StartError.
    """
    points = locate.mount_points(Path("/proc/self/mountinfo").read_text())
    unified = {locate.UNIFIED: points[locate.UNIFIED]} if list(points) == [locate.UNIFIED] else {}
    moved = False
    for controller, (_, point) in (unified or points).items():
        path = os.path.join(point, name.lstrip("/"), "cgroup.procs")
        if controller == locate.UNIFIED and not unified:
            continue
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(starter))
            moved = True
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StartError(f"cannot enter the shim's cgroup {path}: {error.strerror}") from error
    if not moved:
        raise StartError(
            f"the shim's cgroup {name} is in no hierarchy; make it, or drop ShimCgroup"
        )


def parent_of(pid: int) -> int:
    """The parent of ``pid`` (proc(5)).  Raises OSError or ValueError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{pid}/status has no PPid")
