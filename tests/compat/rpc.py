"""Calls to a shim's Task service, and their answers in words."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from pyshim.api import task_pb2
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import BOUND_S

EMPTY = empty_pb2.Empty
METHODS: dict[str, tuple[Any, Any]] = {
    "State": (task_pb2.StateRequest, task_pb2.StateResponse),
    "Create": (task_pb2.CreateTaskRequest, task_pb2.CreateTaskResponse),
    "Start": (task_pb2.StartRequest, task_pb2.StartResponse),
    "Delete": (task_pb2.DeleteRequest, task_pb2.DeleteResponse),
    "Pids": (task_pb2.PidsRequest, task_pb2.PidsResponse),
    "Pause": (task_pb2.PauseRequest, EMPTY),
    "Resume": (task_pb2.ResumeRequest, EMPTY),
    "Kill": (task_pb2.KillRequest, EMPTY),
    "Exec": (task_pb2.ExecProcessRequest, EMPTY),
    "ResizePty": (task_pb2.ResizePtyRequest, EMPTY),
    "CloseIO": (task_pb2.CloseIORequest, EMPTY),
    "Update": (task_pb2.UpdateTaskRequest, EMPTY),
    "Wait": (task_pb2.WaitRequest, task_pb2.WaitResponse),
    "Stats": (task_pb2.StatsRequest, task_pb2.StatsResponse),
    "Connect": (task_pb2.ConnectRequest, task_pb2.ConnectResponse),
    "Shutdown": (task_pb2.ShutdownRequest, EMPTY),
}
STATUSES = {value: name for name, value in task_pb2.Status.items()}


class Rpc:
    """One connection to a shim."""

    def __init__(self, address: str, service: str, normal: Callable[[str], str]) -> None:
        self.service = service
        self._normal = normal
        self._client = Client(address, BOUND_S)

    def __enter__(self) -> Rpc:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def ask(self, method: str, timeout_s: float | None = None, **fields: Any) -> Any:
        """The response.  Raises StatusError."""
        request, response = METHODS[method]
        return self._client.call(self.service, method, request(**fields), response, timeout_s)

    def tried(self, method: str, timeout_s: float | None = None, **fields: Any) -> str:
        """ "ok", or the code and message of the error."""
        try:
            self.ask(method, timeout_s, **fields)
        except StatusError as error:
            return f"{Code(error.code).name}: {self._normal(error.message)}"
        except ConnectionError:
            return "connection closed"
        return "ok"

    def code(self, method: str, timeout_s: float | None = None, **fields: Any) -> str:
        """ "ok", or the code of the error alone."""
        return self.tried(method, timeout_s, **fields).partition(":")[0]

    def foreign(self, service: str, method: str, request: Message) -> str:
        """The outcome of a call to whatever service."""
        try:
            self._client.call(service, method, request, EMPTY)
        except StatusError as error:
            return f"{Code(error.code).name}: {self._normal(error.message)}"
        return "ok"

    def send(self, method: str, timeout_s: float | None = None, **fields: Any) -> int:
        """Sends a request, whose answer may take ``timeout_s``; its stream."""
        request = METHODS[method][0](**fields)
        return self._client.send(self.service, method, request, timeout_s)

    def receive(self, method: str, stream: int, bound_s: float = BOUND_S) -> Any:
        """The response to what was sent.  Raises StatusError; TimeoutError at the bound."""
        return METHODS[method][1].FromString(self._client.receive(stream, bound_s))

    def state(self, name: str, exec_id: str = "") -> dict[str, Any]:
        """State, with what differs from run to run reduced to whether it is there."""
        found = self.ask("State", id=name, exec_id=exec_id)
        return {
            "id": found.id,
            "bundle": self._normal(found.bundle),
            "pid": bool(found.pid),
            "status": STATUSES[found.status],
            "stdio": [self._normal(p) for p in (found.stdin, found.stdout, found.stderr)],
            "terminal": found.terminal,
            "exit_status": found.exit_status,
            "exited": found.exited_at.seconds > 0,
        }

    def status(self, name: str, exec_id: str = "") -> str:
        """The status alone."""
        return STATUSES[self.ask("State", id=name, exec_id=exec_id).status]

    def wait(self, name: str, exec_id: str = "") -> int:
        """The exit status, when it is there."""
        return int(self.ask("Wait", id=name, exec_id=exec_id).exit_status)
