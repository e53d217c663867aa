"""Lives under a real containerd that is killed, restarted and stopped meanwhile.

A client of a daemon that goes away learns nothing of its last request: it looks what has become
of it when the daemon is back.  So a failed `ctr` is refused where containerd was absent, and what
the client can know afterwards, it checks all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import threading
import time

from tests.integration.containerd import BOUND_S, Containerd, eventually
from tests.integration.shim import KILLED

from .ledger import Ledger
from .order import Event, Told
from .tracked import Refused
from .world import World

TASK_BOUND_S = 150
POLL_S = 0.1
WATCHED = "watched"
EXEC_NUMBERS = 100
# `ctr` itself fails with 1.
FIRST_STATUS = 2


def numbers(last: int) -> str:
    """What `seq 1 last` prints."""
    return "".join(f"{number}\n" for number in range(1, last + 1))


class Feed:
    """What `ctr events` prints, for as long as there is a containerd; begun again with it."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self.seen: dict[str, list[Event]] = {}
        self._begun_s = float("inf")
        self._over = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(BOUND_S)

    def complete_since(self, when_s: float) -> bool:
        """Whether nothing since ``when_s`` (monotonic) can have been missed."""
        return self._begun_s <= when_s

    def _run(self) -> None:
        while not self._over.is_set():
            self._process = self._containerd.spawn("events", stdin=subprocess.DEVNULL)
            assert self._process.stdout is not None
            with self._process.stdout as stream:
                prompt = threading.Thread(target=self._prompt)
                prompt.start()
                for line in stream:
                    self._take(line)
            self._begun_s = float("inf")
            self._process.wait(BOUND_S)
            prompt.join(BOUND_S)
            self._over.wait(POLL_S)

    def _prompt(self) -> None:
        """It is subscribed when it has seen something."""
        process = self._process
        assert process is not None
        number = 0
        while self._begun_s == float("inf") and process.poll() is None:
            number += 1
            with contextlib.suppress(subprocess.SubprocessError):
                self._containerd.ctr("namespaces", "create", WATCHED)
                self._containerd.ctr("namespaces", "label", WATCHED, f"number={number}")
            self._over.wait(POLL_S)

    def _take(self, line: str) -> None:
        if self._begun_s == float("inf"):
            self._begun_s = time.monotonic()
        topic, event = line.split(" ", 6)[5:]
        if topic.startswith("/tasks/"):
            fields = json.loads(event)
            name = fields.get("exec_id", "")
            if topic == "/tasks/exit" and fields["id"] != fields["container_id"]:
                name = fields["id"]
            status = fields.get("exit_status", 0) if topic == "/tasks/exit" else 0
            events = self.seen.setdefault(fields["container_id"], [])
            events.append((topic.removeprefix("/tasks/"), name, status))


class DaemonLife:
    """One container's life by `ctr`: numbers into a log, execs, an end by itself or by a kill."""

    def __init__(
        self, world: World, ledger: Ledger, feed: Feed, who: str, number: int, dice: random.Random
    ) -> None:
        self._world, self._ledger, self._feed, self._dice = world, ledger, feed, dice
        self._ctr = world.containerd.ctr
        self.name = f"{who}n{number}"
        self._who = f"{self.name} containerd"
        self._folder = world.fifos / self.name
        self._folder.mkdir()
        self._log = self._folder / "log"
        self._status = dice.randrange(FIRST_STATUS, 100)
        self._numbers = dice.randrange(1, 50_000)
        self._attached = dice.random() < 0.3
        self._killed = dice.random() < 0.5
        self._execs = dice.randrange(3)
        self._told = Told()
        self._since_s, self._since_monotonic_s = ledger.age_s, time.monotonic()

    def run(self) -> None:
        """Lives; whatever happens, nothing of it is left."""
        self._ledger.begin("containers")
        try:
            self._live_attached() if self._attached else self._live()
        except Refused as refused:
            self._ledger.note(self._who, f"refused: {refused}")
        except Exception as error:
            self._ledger.complain(self._who, f"{type(error).__name__}: {error}")
        try:
            self._end()
            self._ledger.finish("containers")
        except Exception as error:
            self._ledger.complain(self._who, f"its end: {type(error).__name__}: {error}")
        shutil.rmtree(self._folder)

    def _live_attached(self) -> None:
        """`ctr run --rm`, which passes on what it prints and its status."""
        script = f"seq 1 {self._numbers}; read line; exit {self._status}"
        command = self._world.containerd.run(self.name, "/bin/sh", "-c", script)
        printed = self._conversed(numbers(self._numbers), self._status, *command)
        self._told.created = self._told.started = True
        self._told.statuses[""] = self._status
        self._ledger.begin("exit statuses")
        self._ledger.finish("exit statuses")
        self._compare("stdout", printed, self._numbers)
        self._watch()

    def _watch(self) -> None:
        """Its events are accounted for when none of them can have been missed."""
        if self._feed.complete_since(self._since_monotonic_s) and not self._absent():
            self._told.deleted = True
            self._ledger.watched.append((self.name, self._told))

    def _live(self) -> None:
        sleep = "sleep 1000000" if self._killed or self._execs else ":"
        script = f"seq 1 {self._numbers}; {sleep}; exit {self._status}"
        flags = ("-d", "--log-uri", f"file://{self._log}")
        self._asked(*self._world.containerd.run(self.name, "/bin/sh", "-c", script, flags=flags))
        self._told.created = self._told.started = True
        for number in range(self._execs):
            self._exec(f"e{number}", FIRST_STATUS + number)
        if self._killed or self._execs:
            self._until(self._logged, "it has counted")
            self._asked("task", "kill", "-s", "SIGKILL", self.name)
        status = KILLED if self._killed or self._execs else self._status
        self._until(lambda: self._state() == "STOPPED", "it has stopped")
        self._bytes()
        self._delete(status)
        self._watch()

    def _absent(self) -> bool:
        return self._world.absences.since(self._since_s)

    def _asked(self, *arguments: str) -> str:
        """What `ctr` prints; raises Refused when it fails, and may."""
        since_s = self._note(arguments)
        return self._judge(since_s, self._ctr(*arguments), 0)

    def _conversed(self, expected: str, status: int, *arguments: str) -> str:
        """What an attached `ctr` prints, which is given a line when all that is ``expected`` came.

        Not before: at the end of its task ctr 1.6 throws away what it has not read yet, with any
        shim.  Raises Refused when its ``status`` is another, and may be.
        """
        since_s = self._note(arguments)
        reader, writer = os.pipe()
        process = self._world.containerd.spawn(*arguments, stdin=reader)
        try:
            os.close(reader)
            printed = self._read(process, len(expected))
            with contextlib.suppress(BrokenPipeError):  # cut off
                os.write(writer, b"a line\n")
            rest, error = process.communicate(timeout=TASK_BOUND_S)
        finally:
            process.kill()
            process.wait(BOUND_S)
            os.close(writer)
        done = subprocess.CompletedProcess(arguments, process.returncode, printed + rest, error)
        return self._judge(since_s, done, status)

    @staticmethod
    def _read(process: subprocess.Popen[str], size: int) -> str:
        """The first ``size`` bytes that a process prints; fewer at its end, or at the bound."""
        assert process.stdout is not None
        fd = process.stdout.fileno()
        deadline = time.monotonic() + TASK_BOUND_S
        got = b""
        while len(got) < size and time.monotonic() < deadline:
            if select.select([fd], [], [], POLL_S)[0]:
                part = os.read(fd, size - len(got))
                if not part:
                    break
                got += part
        return got.decode()

    def _note(self, arguments: tuple[str, ...]) -> float:
        """Logs a command; when that was, in seconds."""
        since_s = self._ledger.age_s
        self._ledger.note(self._who, " ".join(arguments[:4]))
        return since_s

    def _judge(self, since_s: float, done: subprocess.CompletedProcess[str], status: int) -> str:
        if done.returncode == status:
            return done.stdout
        text = f"{' '.join(done.args[:2])}: {done.returncode}: {done.stderr.strip()}"
        self._ledger.note(self._who, text)
        if self._excused(since_s):
            raise Refused(text)
        raise AssertionError(text)

    def _excused(self, since_s: float) -> bool:
        return self._world.absences.since(since_s) or self._world.excuses.since(since_s)

    def _exec(self, name: str, status: int) -> None:
        self._ledger.begin("execs")
        script = f"seq 1 {EXEC_NUMBERS}; read line; exit {status}"
        fifos = ("--fifo-dir", str(self._world.containerd.home / "fifo"))
        command = ("task", "exec", "--exec-id", name, *fifos, self.name, "/bin/sh", "-c", script)
        try:
            printed = self._conversed(numbers(EXEC_NUMBERS), status, *command)
        except Refused:
            self._ledger.refuse("execs")
            raise
        self._told.execs[name] = True
        self._told.statuses[name] = status
        self._compare(f"exec {name}", printed, EXEC_NUMBERS)
        self._ledger.begin("exit statuses")
        self._ledger.finish("exit statuses")
        self._ledger.finish("execs")

    def _compare(self, what: str, got: str, last: int) -> None:
        """Whether ``got`` is what `seq 1 last` prints."""
        expected = numbers(last)
        self._ledger.begin("bytes of stdio", len(expected))
        if got == expected:
            self._ledger.finish("bytes of stdio", len(expected))
        else:
            self._ledger.complain(self._who, f"{what}: {len(got)} of {len(expected)} bytes")

    def _bytes(self) -> None:
        # Whoever has exited may have its last bytes on their way.
        with contextlib.suppress(AssertionError):
            self._until(self._logged, "its log is whole")
        self._compare("its log", self._log.read_text(), self._numbers)

    def _logged(self) -> bool:
        last = f"{self._numbers}\n"
        return self._log.exists() and self._log.read_text()[-len(last) - 1 :].strip() == last[:-1]

    def _delete(self, status: int) -> None:
        """`ctr task delete`, which says the status; unless containerd went while it was told."""
        since_s = self._ledger.age_s
        done = self._ctr("task", "delete", self.name)
        if f"exit code {status}" in done.stderr:
            self._ledger.begin("exit statuses")
            self._ledger.finish("exit statuses")
            self._told.statuses[""] = status
            return
        text = f"delete: not {status} but {done.returncode}: {done.stderr.strip()}"
        if self._excused(since_s):
            raise Refused(text)
        self._ledger.begin("exit statuses")
        raise AssertionError(text)

    def _state(self) -> str:
        """The task's status, "" where there is none; "?" when nobody can say."""
        done = self._ctr("task", "ls")
        if done.returncode:
            return "?"
        rows = (line.split() for line in done.stdout.splitlines()[1:])
        return next((row[2] for row in rows if row[0] == self.name), "")

    def _until(self, true: object, what: str) -> None:
        eventually(true, f"{self.name}: {what}", TASK_BOUND_S)  # type: ignore[arg-type]

    def _end(self) -> None:
        """Nothing is left of the task and the container, whatever was refused on the way."""
        deadline = time.monotonic() + TASK_BOUND_S
        while (state := self._state()) != "":
            assert time.monotonic() < deadline, f"the task is {state} and does not go"
            if state in {"RUNNING", "CREATED", "PAUSED"}:
                self._ctr("task", "kill", "-s", "SIGKILL", self.name)
            elif state == "STOPPED":
                self._ctr("task", "delete", self.name)
            time.sleep(POLL_S)
        while True:
            done = self._ctr("container", "delete", self.name)
            if done.returncode == 0 or "not found" in done.stderr:
                return
            assert time.monotonic() < deadline, done.stderr
            time.sleep(POLL_S)
