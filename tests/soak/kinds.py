"""The kinds of lives that containers have, each with its share; all by chance, none by time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from pyshim.api import task_pb2
from pyshim.api.task_pb2 import Mount
from pyshim.ttrpc.status import StatusError
from tests.integration.fifos import Reader
from tests.integration.shim import KILLED, SERVICE, without_pid_namespace
from tests.integration.test_logs import LOG_BOTH, logging_binary

from .life import Life
from .returning import ReturningReader
from .tracked import ANSWER_BOUND_S, Tracked
from .world import POD

SLEEP = ("/bin/sleep", "1000000")
MIB = 1024 * 1024
OOM_LIMIT_BYTES = 16 * MIB
# A shell that counts; it is at it for a few tenths of a second.
COUNT = 8000
COUNTING = f"i=0; while [ $i -lt {COUNT} ]; do echo $i; i=$((i+1)); done"
COUNTED = b"".join(b"%d\n" % number for number in range(COUNT))


def shell(script: str) -> tuple[str, str, str]:
    return ("/bin/sh", "-c", script)


def numbers(last: int, end: str = "\n") -> bytes:
    """What `seq 1 last` prints."""
    return "".join(f"{number}{end}" for number in range(1, last + 1)).encode()


def anywhere(life: Life) -> str:
    """The pod that is always there, or a shim of its own."""
    return POD if life.dice.random() < 0.4 else ""


# --- Streams -------------------------------------------------------------------------------------


def echo(life: Life) -> None:
    """What goes in comes out, by a reader that may be slow."""
    data = life.dice.randbytes(life.dice.randrange(MIB))
    output = life.reader("out", slow=life.dice.random() < 0.3)
    stdin = life.fifo("in")
    container = life.container(*shell(f"cat; exit {life.status}"), pod=anywhere(life))
    container.create(stdin=stdin, stdout=output.path)
    container.start()
    with stdin.open("wb") as writer:
        writer.write(data)
    container.close_stdin()
    container.wait({life.status})
    container.finish()
    life.bytes("echo", output.all(), data)


def last_instant(life: Life) -> None:
    """A megabyte on two streams, and gone."""
    output, errors = life.reader("out"), life.reader("err", slow=life.dice.random() < 0.3)
    script = f"cat /www/data; cat /www/data >&2; exit {life.status}"
    container = life.container(*shell(script), pod=anywhere(life))
    container.create(stdout=output.path, stderr=errors.path)
    container.start()
    container.wait({life.status})
    container.finish()
    life.bytes("stdout", output.all(), life.world.data)
    life.bytes("stderr", errors.all(), life.world.data)


def returning_reader(life: Life) -> None:
    """A reader that goes away and comes back misses nothing."""
    reader = ReturningReader(life.folder / "out", len(life.world.data), life.dice)
    container = life.container(*shell(f"cat /www/data; exit {life.status}"), pod=anywhere(life))
    try:
        container.create(stdout=reader.path)
        container.start()
        container.wait({life.status})
        got = reader.all()
        container.finish()
        life.bytes("stdout", got, life.world.data)
    finally:
        reader.give_up()


def terminal(life: Life) -> None:
    """A conversation in a terminal whose size changes."""

    def with_terminal(spec: dict[str, Any]) -> None:
        spec["process"]["terminal"] = True

    screen, stdin = life.reader("screen"), life.fifo("in")
    script = f"stty -echo; echo ready; read line; echo got $line; stty size; exit {life.status}"
    container = life.container(*shell(script), pod=anywhere(life), edit=with_terminal)
    container.create(stdin=stdin, stdout=screen.path, terminal=True)
    container.start()
    container.resize(100, 40)
    with stdin.open("wb") as writer:
        life.until(lambda: screen.size >= len("ready\r\n"), "the terminal is ready")
        writer.write(b"a word\n")
    container.wait({life.status})
    container.finish()
    life.bytes("terminal", screen.all(), b"ready\r\ngot a word\r\n40 100\r\n")


def logs(life: Life) -> None:
    """A logging binary, or a file."""
    count = life.dice.randrange(1, 30_000)
    script = f"seq 1 {count}; echo bad >&2; exit {life.status}"
    container = life.container(*shell(script), pod=anywhere(life))
    binary = life.dice.random() < 0.5
    if binary:
        uri = f"binary://{logging_binary(life.folder, LOG_BOTH)}?key=value"
    else:
        uri = f"file://{life.folder}/some/folder/log"
    container.create(stdout=uri, stderr=uri)
    container.start()
    container.wait({life.status})
    container.finish()
    if binary:
        life.bytes("binary's stdout", (life.folder / "out").read_bytes(), numbers(count))
        life.bytes("binary's stderr", (life.folder / "err").read_bytes(), b"bad\n")
    else:
        log = (life.folder / "some/folder/log").read_bytes()
        life.bytes("a log", log, numbers(count) + b"bad\n")


# --- Processes -----------------------------------------------------------------------------------


def execs(life: Life) -> None:
    """Several at once: with output, in terminals, killed, never started, left running."""
    container = life.container(*SLEEP, pod=anywhere(life))
    container.create()
    container.start()
    printing: dict[str, tuple[Reader, int, int]] = {}
    for number in range(life.dice.randrange(1, 8)):
        name, last, status = f"e{number}", life.dice.randrange(3000), life.dice.randrange(100)
        printing[name] = (life.reader(name), last, status)
        container.exec(
            name,
            *shell(f"seq 1 {last}; exit {status}"),
            stdout=printing[name][0].path,
            terminal=bool(number % 2),
        )
    container.exec("killed", *SLEEP)
    container.exec("never", *SLEEP)
    container.exec("left", *SLEEP)
    container.start_all(*printing, "killed", "left")
    waits = {name: container.send_wait(name) for name in [*printing, "killed"]}
    container.kill(exec_id="killed")
    for name, stream in waits.items():
        status = printing[name][2] if name in printing else KILLED
        container.receive_wait(stream, {status}, name)
        container.delete(name)
    if life.dice.random() < 0.5:
        container.delete("never")
    for number, (reader, last, _) in enumerate(printing.values()):
        end = "\r\n" if number % 2 else "\n"
        life.bytes("an exec", reader.all(), numbers(last, end))
    container.kill()
    container.wait({KILLED})
    container.wait({KILLED}, "left")
    container.finish()


def exec_with_stdin(life: Life) -> None:
    """An exec that is given something to read."""
    data = life.dice.randbytes(life.dice.randrange(MIB // 4))
    output, stdin = life.reader("out"), life.fifo("in")
    container = life.container(*SLEEP, pod=anywhere(life))
    container.create()
    container.start()
    container.exec("e", *shell(f"cat; exit {life.status}"), stdin=stdin, stdout=output.path)
    container.start_all("e")
    with stdin.open("wb") as writer:
        writer.write(data)
    container.close_stdin("e")
    container.wait({life.status}, "e")
    container.delete("e")
    life.bytes("an exec", output.all(), data)
    container.kill()
    container.wait({KILLED})
    container.finish()


def killed(life: Life) -> None:
    """SIGKILL, or a signal that is handled, at any moment."""
    output = life.reader("out")
    number = life.dice.choice([signal.SIGKILL, signal.SIGTERM])
    script = f"trap 'exit 111' TERM; {COUNTING}; exit {life.status}"
    container = life.container(*shell(script), pod=anywhere(life))
    container.create(stdout=output.path)
    container.start()
    life.pause(0.5)
    container.kill(number, gone=True)
    # A shell that has no handler yet is an init without one: SIGTERM does nothing to it.
    status = container.wait({life.status, KILLED if number == signal.SIGKILL else 111})
    container.finish()
    got = output.all()
    life.bytes("stdout", got, COUNTED if status == life.status else COUNTED[: len(got)])


def out_of_memory(life: Life) -> None:
    """The kernel kills it."""

    def limited(spec: dict[str, Any]) -> None:
        spec["linux"].setdefault("resources", {})["memory"] = {"limit": OOM_LIMIT_BYTES}

    container = life.container("/bin/tail", "/dev/zero", pod=anywhere(life), edit=limited)
    container.create()
    container.start()
    container.wait({KILLED})
    container.told.oom = True
    container.finish()


def hosts_pids(life: Life) -> None:
    """Without a pid namespace the shim ends what the init leaves behind."""
    script = f"sleep 1000000 & sleep 1000000 & echo both; exit {life.status}"
    output = life.reader("out")
    container = life.container(*shell(script), pod=anywhere(life), edit=without_pid_namespace)
    container.create(stdout=output.path)
    container.start()
    container.wait({life.status})
    container.finish()
    life.bytes("stdout", output.all(), b"both\n")


# --- States --------------------------------------------------------------------------------------


def frozen(life: Life) -> None:
    """Paused while it counts, and resumed or killed."""
    output = life.reader("out")
    container = life.container(*shell(f"{COUNTING}; sleep 1000000"), pod=anywhere(life))
    container.create(stdout=output.path)
    container.start()
    life.pause(0.2)
    container.freeze()
    life.check(container.state() == task_pb2.PAUSED, "a paused container is not PAUSED")
    life.pause(0.2)
    resumed = life.dice.random() < 0.6
    if resumed:
        container.thaw()
        life.until(lambda: output.size >= len(COUNTED), "it has counted to its end")
    container.kill()
    container.wait({KILLED})
    container.finish()
    got = output.all()
    life.bytes("stdout", got, COUNTED if resumed else COUNTED[: len(got)])


def never_started(life: Life) -> None:
    """Created, and deleted at once or after a kill."""
    container = life.container(*SLEEP, pod=anywhere(life))
    container.create()
    if life.dice.random() < 0.5:
        container.kill()
        container.wait({KILLED})
    container.finish()


def odd_deletes(life: Life) -> None:
    """Delete of what runs is refused; a second Delete is answered as the first."""
    container = life.container(*SLEEP, pod=anywhere(life))
    container.create()
    container.start()
    try:
        container.asked.delete()
    except StatusError:
        pass
    else:
        life.check(False, "what runs was deleted")
    life.check(container.state() == task_pb2.RUNNING, "a refused Delete has ended it")
    container.exec("e", *shell("exit 5"))
    container.start_all("e")
    container.wait({5}, "e")
    container.delete("e")
    life.check(container.asked.delete("e").exit_status == 5, "another answer to the same Delete")
    container.kill()
    container.wait({KILLED})
    container.delete_again_by_another_client()
    container.leave()


def pod(life: Life) -> None:
    """A pod of its own whose members end in any order, the first perhaps first."""
    members: list[tuple[Tracked, Reader, int]] = []
    for number in range(life.dice.randrange(2, 5)):
        reader = life.reader(f"out{number}")
        script = f"seq 1 {number * 1000}; exit {number}"
        member = life.container(*shell(script), pod=life.name)
        member.create(stdout=reader.path)
        members.append((member, reader, number))
    life.dice.shuffle(members)
    for member, _, _ in members:
        member.start()
    life.dice.shuffle(members)
    for member, reader, number in members:
        member.wait({number})
        member.finish()
        life.bytes("a member", reader.all(), numbers(number * 1000))


def mounted(life: Life) -> None:
    """A root that the shim mounts."""

    def in_bundle(spec: dict[str, Any]) -> None:
        spec["root"] = {"path": "rootfs", "readonly": False}

    lower, upper, work = life.world.rootfs, life.folder / "upper", life.folder / "work"
    for folder in (upper, work):
        folder.mkdir()
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
    overlay = Mount(type="overlay", source="overlay", options=options)
    script = f"echo text >/tmp/file; exit {life.status}"
    container = life.container(*shell(script), pod=anywhere(life), edit=in_bundle)
    (container.bundle / "rootfs").mkdir()
    container.create(rootfs=(overlay,))
    container.start()
    container.wait({life.status})
    container.finish()
    life.bytes("a file", (upper / "tmp/file").read_bytes(), b"text\n")


def many_waits(life: Life) -> None:
    """Clients that wait, each by itself; one goes away, and one comes again."""
    container = life.container(*SLEEP, pod=anywhere(life))
    container.create()
    container.start()
    request = task_pb2.WaitRequest(id=container.name)
    others = [container.asked.connect() for _ in range(3)]
    waiting = [(other, other.send(SERVICE, "Wait", request)) for other in others]
    waiting.pop(life.dice.randrange(3))[0].close()
    own = container.send_wait()
    life.pause(2.0)  # long enough for a service to park, at times
    container.kill()
    container.receive_wait(own, {KILLED})
    for other, stream in waiting:
        reply = task_pb2.WaitResponse.FromString(other.receive(stream, ANSWER_BOUND_S))
        life.check(reply.exit_status == KILLED, "another client's Wait has another status")
        other.close()
    container.reconnect()
    container.wait({KILLED})
    container.finish()


KINDS: dict[Callable[[Life], None], int] = {
    echo: 4,
    last_instant: 4,
    returning_reader: 2,
    terminal: 3,
    logs: 3,
    execs: 4,
    exec_with_stdin: 2,
    killed: 4,
    out_of_memory: 1,
    hosts_pids: 2,
    frozen: 3,
    never_started: 2,
    odd_deletes: 2,
    pod: 3,
    mounted: 2,
    many_waits: 2,
}
