"""The ``portproxy`` command: forwards ports until it is told to stop.

It opens the listeners, starts one ``portproxy-relay`` for each and waits.  No byte of a connection
passes through Python.  No relay may outlive the tool, however the tool ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from portproxy.mapping import Mapping, MappingError, endpoint, parse
from pyshim.cli import errors

RELAY = "portproxy-relay"
START_BOUND_S = 10.0
STOP_BOUND_S = 5.0
STATUS_FD = 3  # docker-proxy's convention
LISTENER_FD = 4
ABOVE_BOTH = 10
READ_BYTES = 4096
PR_SET_PDEATHSIG = 1
EXIT_FAILED = 1
EXIT_USAGE = 2
STOPPING = {signal.SIGTERM, signal.SIGINT}


class PortproxyError(Exception):
    """A port cannot be forwarded; the message is one line for the user."""


@dataclass
class Relay:
    """A ``portproxy-relay``: ``line`` says what it forwards, ``ended`` that it was reaped."""

    pid: int
    line: str
    ended: bool = False


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-p",
    "--publish",
    "texts",
    multiple=True,
    metavar="[BIND:]PORT:HOST:PORT[/tcp]",
    help="Forward PORT of this machine to PORT of HOST. IPv6 addresses go in brackets; port 0 "
    "lets the system choose. Can be given more than once.",
)
@click.version_option(package_name="pyshim", message="portproxy %(version)s")
def command(texts: tuple[str, ...]) -> None:
    """Forward TCP ports of this machine to other addresses, until SIGTERM or Ctrl-C."""
    try:
        mappings = [parse(text) for text in texts]
    except MappingError as error:
        _leave(str(error), EXIT_USAGE)
    if not mappings:
        _leave("nothing to forward; name a port, as in -p 8080:10.0.0.2:80", EXIT_USAGE)
    try:
        forward(mappings)
    except PortproxyError as error:
        _leave(str(error), EXIT_FAILED)


def main() -> None:
    """The console script."""
    errors.run(command, "portproxy")


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"portproxy: {message}", err=True)
    sys.exit(code)


def forward(mappings: list[Mapping]) -> None:
    """Forwards all ``mappings`` until SIGTERM or SIGINT; leaves no relay behind.

    Raises PortproxyError when one cannot be started or has ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Blocked signals stay pending until sigwait() asks, so none can be missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPPING, signal.SIGCHLD})
    program = find_relay()
    relays: list[Relay] = []
    try:
        for mapping in mappings:
            relays.append(start(program, mapping))
            click.echo(f"listening on {relays[-1].line}")
        _check(relays)  # the end of an early one may have been taken for that of a later one
        while signal.sigwait({*STOPPING, signal.SIGCHLD}) not in STOPPING:
            _check(relays)
    finally:
        stop(relays)


def find_relay() -> str:
    """The path of the relay: beside the interpreter, or on PATH.  Raises PortproxyError."""
    beside = Path(sys.executable).parent / RELAY
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which(RELAY)
    if found is None:
        raise PortproxyError(f"{RELAY} is neither in {beside.parent} nor on PATH; reinstall pyshim")
    return found


def start(program: str, mapping: Mapping) -> Relay:
    """Starts the relay ``program`` for ``mapping`` and waits, within a bound, until it serves.

    Raises PortproxyError; a relay that does not serve has ended then.
    """
    address = _resolve(mapping)
    with _listen(mapping) as listener:
        port = listener.getsockname()[1]
        command = [program, "-proto", "tcp", "-host-ip", mapping.bind, "-host-port", str(port)]
        command += ["-container-ip", address, "-container-port", str(mapping.host_port)]
        where = endpoint(mapping.bind, port)
        line = f"{where} -> {endpoint(mapping.host, mapping.host_port)}"
        ours, theirs = os.pipe()
        try:
            relay = Relay(_spawn([*command, "-use-listen-fd"], theirs, listener.fileno()), line)
        finally:
            os.close(theirs)
    try:
        answer = _status(ours)
    finally:
        os.close(ours)
    if answer != b"0\n":
        stop([relay])
        reason = answer[2:].decode(errors="replace") or "the relay ended without a reason"
        raise PortproxyError(f"cannot forward {line}: {reason}")
    return relay


def _resolve(mapping: Mapping) -> str:
    """The address of the mapping's host."""
    try:
        found = socket.getaddrinfo(mapping.host, mapping.host_port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PortproxyError(f"cannot find host {mapping.host}: {error.strerror}") from error
    return str(found[0][4][0])


def _listen(mapping: Mapping) -> socket.socket:
    """A listener on the mapping's address."""
    family = socket.AF_INET6 if ":" in mapping.bind else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((mapping.bind, mapping.port))
            listener.listen(2**31 - 1)  # the kernel cuts it to somaxconn
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        where = endpoint(mapping.bind, mapping.port)
        text = (error.strerror or str(error)).lower()
        raise PortproxyError(f"cannot listen on {where}: {text}") from error
    return listener


def _spawn(command: list[str], status: int, listener: int) -> int:
    """Executes ``command`` with its status pipe and listener in place; returns its pid."""
    prctl = ctypes.CDLL(None).prctl
    # docker-proxy's default hides that an answer was cut off; the tool has no reason to.
    environment = {"PORTPROXY_RESET": "propagate", **os.environ}
    parent = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    reply = fcntl.fcntl(status, fcntl.F_DUPFD_CLOEXEC, ABOVE_BOTH)
    try:
        taken = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, ABOVE_BOTH)
        os.setpgid(0, 0)  # Ctrl-C is for the tool, which ends its relays in order
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == parent:  # else it died before the line above
            os.dup2(reply, STATUS_FD)
            os.dup2(taken, LISTENER_FD)
            os.execve(command[0], command, environment)
    except OSError as error:
        os.write(reply, f"1\ncannot run {command[0]}: {error.strerror}".encode())
    finally:
        os._exit(EXIT_FAILED)


def _status(pipe: int) -> bytes:
    """What a relay reports: ``0`` and a newline, or ``1``, a newline and the reason."""
    deadline = time.monotonic() + START_BOUND_S
    answer = b""
    while answer != b"0\n":
        left = max(0.0, deadline - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            return f"1\nthe relay has not reported within {START_BOUND_S:.0f} s".encode()
        part = os.read(pipe, READ_BYTES)
        if not part:
            break
        answer += part
    return answer


def _check(relays: list[Relay]) -> None:
    """Raises PortproxyError if one of ``relays`` has ended."""
    for relay in relays:
        pid, status = os.waitpid(relay.pid, os.WNOHANG)
        if pid:
            relay.ended = True
            code = os.waitstatus_to_exitcode(status)
            how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            raise PortproxyError(f"the relay of {relay.line} has ended {how}")


def stop(relays: list[Relay]) -> None:
    """Ends ``relays`` with SIGINT and, after a bound, SIGKILL; returns when all were reaped."""
    for relay in relays:
        if not relay.ended:
            os.kill(relay.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_BOUND_S
    for relay in relays:
        while not relay.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                os.kill(relay.pid, signal.SIGKILL)
            relay.ended = os.waitpid(relay.pid, 0 if left <= 0 else os.WNOHANG)[0] != 0
            if not relay.ended:
                signal.sigtimedwait({signal.SIGCHLD}, min(left, 0.1))
