"""The control socket: one JSON object a line, one answer a line.

Only root and the user that the service runs as are listened to.  ``ask`` is the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 20
ASK_BOUND_S = 60.0
PEER_BOUND_S = 30.0
MOST_PEERS = 64
CREDENTIALS = struct.Struct("3i")
DEFAULT_PATH = "/run/portproxy/control.sock"
Json = dict[str, Any]


class ApiError(Exception):
    """The service cannot be reached, or has refused; the message is one line."""


@dataclass
class Server:
    """Answers at a path; ``handle`` carries a request out, and raises ApiError if it will not."""

    handle: Callable[[Json], Awaitable[Json]]
    path: str = ""
    server: asyncio.AbstractServer | None = None
    peers: int = 0

    async def listen(self, path: str) -> None:
        """Begins.  Raises ApiError if another service is there already."""
        if is_served(path):
            raise ApiError(f"another portproxy serves {path}; end it, or choose another --control")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            self.server = await asyncio.start_unix_server(self._serve, path, limit=MOST_BYTES)
        except OSError as error:
            raise ApiError(f"cannot make {path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        self.path = path

    def close(self) -> None:
        """Ends; the path goes too."""
        if self.server is not None:
            self.server.close()
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers += 1
        # With a limit of 0, drain() waits until the peer has taken everything.
        writer.transport.set_write_buffer_limits(0)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.TimeoutError):
            # close() would wait for one who does not read what is left.
            writer.transport.abort()
        finally:
            self.peers -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one peer until it has nothing more to ask, or takes too long over it."""
        peer = writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size
        )
        _, uid, _ = CREDENTIALS.unpack(peer)
        refusal = ""
        if uid not in {0, os.geteuid()}:
            refusal = "only root and the service's own user may ask"
        elif self.peers > MOST_PEERS:
            refusal = f"{MOST_PEERS} others ask already"
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), PEER_BOUND_S)
            except ValueError:
                line, refusal = b"", f"a request has at most {MOST_BYTES} bytes"
            if not line and not refusal:
                return
            answer = {"error": refusal} if refusal else await self._answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), PEER_BOUND_S)
            if refusal:
                return

    async def _answer(self, line: bytes) -> Json:
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ApiError(f"not JSON: {error}") from None
            if not isinstance(request, dict) or not isinstance(request.get("do"), str):
                raise ApiError('a request is an object such as {"do": "status"}')
            return await self.handle(request)
        except ApiError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


def is_served(path: str) -> bool:
    """Whether somebody listens at ``path``."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def ask(path: str, request: Json) -> Json:
    """One request.  Raises ApiError, also for what the service refuses."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ASK_BOUND_S)
            asking.connect(path)
            asking.sendall(json.dumps(request).encode() + b"\n")
            with asking.makefile("rb") as answers:
                line = answers.readline()
    except OSError as error:
        left = " (its data plane still serves)" if Path(f"{path}.relay").exists() else ""
        reason = error.strerror or str(error)
        raise ApiError(f"no portproxy answers at {path}: {reason.lower()}{left}") from error
    if not line:
        raise ApiError(f"the portproxy at {path} has ended")
    answer: Json = json.loads(line)
    if "error" in answer:
        raise ApiError(answer["error"])
    return answer
