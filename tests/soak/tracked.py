"""One container of a life: asks for it, and notes what was begun and what came to its end."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Iterator

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import task_pb2
from pyshim.api.task_pb2 import Mount
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.shim import POD, Container, Edit, Given, Reply

from .ledger import Ledger
from .order import Told
from .world import World

# A monitor whose service was killed again and again waits up to 30 s for the next.
ANSWER_BOUND_S = 120
END_BOUND_S = 150
RETRY_S = 0.2
INIT = ""
SHIM_LOG = "log"  # the shim writes it when it is there, and the client is told all


class Refused(Exception):
    """A request failed with a clear error, while a fault excused it."""


class Tracked:
    """One container: asks for it, and notes what came of it."""

    def __init__(
        self,
        world: World,
        ledger: Ledger,
        who: str,
        name: str,
        command: tuple[str, ...],
        pod: str,
        edit: Edit,
    ) -> None:
        self._world, self._ledger, self._who = world, ledger, who
        self.name = name
        self.bundle = world.host.bundles / name
        self.told = Told()
        self.shim: Container | None = None
        self._left = self._refused = False
        self._gone: set[str] = set()
        self._ledger.begin("containers")
        self._ledger.tracked.append((self.name, self.told))
        spec = json.loads(json.dumps(world.host.spec))
        spec["process"]["args"] = list(command)
        spec["linux"]["cgroupsPath"] = f"/{world.host.namespace}/{name}"
        if pod:
            spec["annotations"] = {POD: pod}
        edit(spec)
        self._spec = spec

    def _note(self, text: str) -> None:
        self._ledger.note(self._who, f"{self.name} {text}")

    @contextlib.contextmanager
    def _asking(self, what: str, since_s: float | None = None) -> Iterator[None]:
        """A request, made now or at ``since_s``; one that fails while excused is refused."""
        since = self._ledger.age_s if since_s is None else since_s
        self._note(what)
        try:
            yield
        except (StatusError, OSError, AssertionError) as error:
            self._note(f"{what}: {type(error).__name__}: {error}")
            lost = isinstance(error, (TimeoutError, ConnectionError))
            if lost or not self._world.excuses.since(since):
                raise
            raise Refused(f"{what}: {error}") from error

    def connect(self) -> None:
        """The bundle, and `start`."""
        try:
            with self._asking("start of the shim"):
                self.bundle.mkdir()
                (self.bundle / SHIM_LOG).touch()
                (self.bundle / "config.json").write_text(json.dumps(self._spec))
                done = self._world.host.act("start", self.name, "-debug")
                assert (done.returncode, done.stderr) == (0, b""), done.stderr
                self.shim = Container(self._world.host, self.name, done.stdout.decode())
        except Refused:
            self._refuse()
            raise

    @property
    def asked(self) -> Container:
        """The connection to its shim."""
        assert self.shim is not None
        return self.shim

    # -- requests --------------------------------------------------------------------------------

    def _ask(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        return self.asked.call(method, request, reply, ANSWER_BOUND_S)

    def _persist(self, what: str, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A request that is made again while it is refused."""
        deadline = time.monotonic() + END_BOUND_S
        while True:
            try:
                with self._asking(what):
                    return self._ask(method, request, reply)
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def create(self, rootfs: tuple[Mount, ...] = (), **given: Given) -> None:
        """Create."""
        request = self.asked.create_request(**given)  # type: ignore[arg-type]
        request.rootfs.extend(rootfs)
        try:
            with self._asking("create"):
                self._ask("Create", request, task_pb2.CreateTaskResponse)
        except Refused:
            self._refuse()
            raise
        self.told.created = True
        self._ledger.begin("exit statuses")

    def _refuse(self) -> None:
        self._refused = True
        self._ledger.refuse("containers")

    def start(self) -> None:
        """Start."""
        self.told.started = None
        with self._asking("start"):
            self._ask("Start", task_pb2.StartRequest(id=self.name), task_pb2.StartResponse)
        self.told.started = True

    def exec(self, exec_id: str, *command: str, **given: Given) -> None:
        """Exec: registers one."""
        self._ledger.begin("execs")
        request = self.asked.exec_request(exec_id, *command, **given)  # type: ignore[arg-type]
        try:
            with self._asking(f"exec {exec_id}"):
                self._ask("Exec", request, Empty)
        except Refused:
            self._ledger.refuse("execs")
            raise
        self.told.execs[exec_id] = False

    def start_all(self, *exec_ids: str) -> None:
        """Start of several execs at once."""
        requests = [task_pb2.StartRequest(id=self.name, exec_id=name) for name in exec_ids]
        self.told.execs.update(dict.fromkeys(exec_ids))
        since_s = self._ledger.age_s
        streams = [self.asked.send("Start", request) for request in requests]
        refused = []
        for name, stream in zip(exec_ids, streams, strict=True):
            try:
                with self._asking(f"start {name}", since_s):
                    self.asked.client.receive(stream, ANSWER_BOUND_S)
            except Refused as error:
                refused.append(error)
                continue
            self.told.execs[name] = True
            self._ledger.begin("exit statuses")
        if refused:
            raise refused[0]

    def send_wait(self, exec_id: str = INIT) -> int:
        """Begins a Wait."""
        return self.asked.send_wait(exec_id)

    def receive_wait(self, stream: int, allowed: set[int], exec_id: str = INIT) -> int:
        """The answer to ``send_wait``: the status, which must be one of those ``allowed``."""
        data = self.asked.client.receive(stream, ANSWER_BOUND_S)
        status = task_pb2.WaitResponse.FromString(data).exit_status
        self.exited(status, allowed, exec_id)
        return status

    def wait(self, allowed: set[int], exec_id: str = INIT) -> int:
        """Wait; the status, which must be one of those ``allowed``."""
        self._note(f"wait {exec_id}")
        return self.receive_wait(self.send_wait(exec_id), allowed, exec_id)

    def exited(self, status: int, allowed: set[int], exec_id: str = INIT) -> None:
        """A process was said to have ended with ``status``."""
        known = self.told.statuses.setdefault(exec_id, status)
        if status != known or (allowed and status not in allowed):
            text = f"status {status} of {exec_id or 'the init'}, not {allowed or known}"
            self._ledger.complain(self._who, f"{self.name} {text}")

    def kill(self, number: int = signal.SIGKILL, exec_id: str = INIT, gone: bool = False) -> bool:
        """Kill; whether it was there to be killed, where it may be ``gone``."""
        request = task_pb2.KillRequest(id=self.name, exec_id=exec_id, signal=number)
        try:
            self._persist(f"kill {number} {exec_id}", "Kill", request, Empty)
        except StatusError as error:
            if not gone or error.code != Code.NOT_FOUND:
                raise
            return False
        return True

    def freeze(self) -> None:
        """Pause."""
        self._persist("pause", "Pause", task_pb2.PauseRequest(id=self.name), Empty)
        self.told.pauses += 1

    def thaw(self) -> None:
        """Resume."""
        self._persist("resume", "Resume", task_pb2.ResumeRequest(id=self.name), Empty)
        self.told.resumes += 1

    def state(self) -> int:
        """The init's status, one of task_pb2.Status."""
        reply = self._ask("State", task_pb2.StateRequest(id=self.name), task_pb2.StateResponse)
        return int(reply.status)

    def close_stdin(self, exec_id: str = INIT) -> None:
        """CloseIO."""
        request = task_pb2.CloseIORequest(id=self.name, exec_id=exec_id, stdin=True)
        self._ask("CloseIO", request, Empty)

    def resize(self, width: int, height: int, exec_id: str = INIT) -> None:
        """ResizePty."""
        request = task_pb2.ResizePtyRequest(
            id=self.name, exec_id=exec_id, width=width, height=height
        )
        self._ask("ResizePty", request, Empty)

    def delete(self, exec_id: str = INIT) -> None:
        """Delete; the status must be that of Wait."""
        request = task_pb2.DeleteRequest(id=self.name, exec_id=exec_id)
        reply = self._persist(f"delete {exec_id}", "Delete", request, task_pb2.DeleteResponse)
        if exec_id:
            self._removed(exec_id)
            if self.told.execs[exec_id] is not True:
                return
        else:
            self.told.deleted = True
            self._ledger.finish("exit statuses")
            for name in set(self.told.execs) - self._gone:
                self._removed(name)
        self.exited(reply.exit_status, set(), exec_id)

    def delete_again_by_another_client(self) -> None:
        """Delete by a client that goes away, and by one that asks again."""
        self._note("delete, and away")
        self.asked.send("Delete", task_pb2.DeleteRequest(id=self.name))
        self.asked.reconnect()
        self.delete()

    def _removed(self, exec_id: str) -> None:
        self._gone.add(exec_id)
        self._ledger.finish("execs")
        if self.told.execs[exec_id]:
            self._ledger.finish("exit statuses")

    def reconnect(self) -> None:
        """As a client that has been started again."""
        self.asked.reconnect()

    # -- its end ---------------------------------------------------------------------------------

    def leave(self) -> None:
        """All that containerd does after Delete."""
        self._left = True
        self._note("leave")
        self.asked.leave()
        if not self._refused:
            self._ledger.finish("containers")

    def finish(self) -> None:
        """Delete and all that follows it."""
        self.delete()
        self.leave()

    def end(self) -> None:
        """Whatever state it is in."""
        if self._left or not self.bundle.exists():
            return
        if self.shim is None:
            done = self._world.host.act("delete", self.name, "-bundle", str(self.bundle))
            assert done.returncode == 0, done.stderr
            shutil.rmtree(self.bundle)
            return
        if self.told.created and not self.told.deleted:
            self.kill(gone=True)
            self.wait(set())
            self.delete()
        self.leave()
