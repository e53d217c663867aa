"""The distribution's dockerd with our shim, our init and our port proxy, as its users run it."""

from __future__ import annotations

import os
import signal
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BOUND_S, Containerd, eventually, mounts_below, processes_of
from .dockerd import IMAGE, Dockerd, get

# Ends only when it is told to, as PID 1 and as a child of the init.
PROGRAM = "trap 'echo bye; exit 23' TERM; trap 'echo heard' USR1; httpd -p 80 -h /www; " + (
    "echo ready; while :; do sleep 1000 & wait $!; done"
)
PUBLISHED = ("--publish", "127.0.0.1:0:80")


@pytest.fixture(scope="module")
def daemon(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """A running dockerd with an image; nothing of it is left afterwards."""
    containerd = Containerd(tmp_path_factory.mktemp("d"), rootfs)
    started = Dockerd(containerd)
    try:
        started.make_namespace()
        containerd.start()
        started.start()
        _import_image(started, rootfs)
        yield started
    finally:
        started.remove()
    assert processes_of(containerd.home) == {}
    assert mounts_below(containerd.home) == []
    assert started.cgroups() == []
    assert not (Path("/run/netns") / started.space).exists()


def _import_image(daemon: Dockerd, rootfs: Path) -> None:
    archive = daemon.home / "image.tar"
    with tarfile.open(archive, "w") as file:
        file.add(rootfs, ".")
    done = daemon.docker("import", str(archive), IMAGE)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def docker(daemon: Dockerd) -> Iterator[Dockerd]:
    """The dockerd, with no container before the test and after it."""
    assert daemon.containers() == []
    try:
        yield daemon
    finally:
        for name in daemon.containers():
            assert daemon.docker("rm", "--force", name).returncode == 0
    nothing_left(daemon)


def nothing_left(docker: Dockerd) -> None:
    """No monitor, relay, mount, socket, interface, cgroup, bundle or fifo of a container."""
    containerd = docker.containerd
    eventually(lambda: not containerd.monitors(), "the monitors have ended")
    eventually(lambda: not docker.relays(), "the relays have ended")
    eventually(lambda: docker.interfaces() == {"lo", "docker0"}, "the veth pairs have gone")
    assert [p for p in containerd.sockets.glob("*") if p.is_socket()] == []
    assert mounts_below(containerd.home / "state") == []
    assert [p for p in mounts_below(docker.home / "data") if p.endswith(("/merged", "/shm"))] == []
    assert [p for p in mounts_below(docker.home / "exec/netns") if not p.endswith("/default")] == []
    bundles = containerd.home / "state/io.containerd.runtime.v2.task/moby"
    for folder in (
        bundles,
        docker.home / "exec/containerd",
        docker.home / "exec/runtime-runc/moby",
    ):
        assert not folder.exists() or list(folder.iterdir()) == []
    assert [f for f in docker.cgroups() if f.name != docker.space] == []


def serving(docker: Dockerd, *flags: str) -> str:
    """A container whose program has set its traps and serves; its id."""
    name = docker.started(*flags, IMAGE, "sh", "-c", PROGRAM)
    eventually(lambda: docker.docker("logs", name).stdout.rstrip() == "ready", "the program")
    return name


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sockets_of(pid: int) -> int:
    """How many sockets a process holds."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links)


def test_serves_a_page_through_our_relay_under_our_init_and_shim(docker: Dockerd) -> None:
    name = serving(docker, "--init", *PUBLISHED)
    port = docker.port(name)
    assert docker.page(port) == "a page\n"

    init = docker.pid(name)
    assert docker.runs(init, "pyinit")
    assert docker.runs(parent(init), "pyshim-monitor")
    assert parent(init) in docker.containerd.monitors()

    (relay,) = docker.relays()
    assert docker.process is not None and parent(relay) == docker.process.pid
    before = sockets_of(relay)
    with docker.connect(port) as connection:
        eventually(lambda: sockets_of(relay) == before + 2, "the relay's both ends of it")
        assert get(connection) == "a page\n"

    done = docker.docker("exec", name, "cat", "/proc/1/cmdline")
    assert done.stdout.split("\0")[0] == "/sbin/docker-init"
    assert "httpd -p 80" in docker.docker("top", name).stdout


def test_exec(docker: Dockerd) -> None:
    name = serving(docker)
    done = docker.docker("exec", name, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    text = "".join(f"line {n}\n" for n in range(20_000))
    done = docker.docker("exec", "--interactive", name, "cat", stdin=text)
    assert (done.returncode, done.stdout) == (0, text)
    done = docker.docker("exec", "--tty", name, "sh", "-c", "test -t 1 && echo yes; exit 6")
    assert (done.returncode, done.stdout) == (6, "yes\n")
    done = docker.docker("exec", name, "/no/such/program")
    assert done.returncode in {126, 127}
    # Once: what the runtime says on the exec's own stderr is not passed on.
    assert (done.stdout + done.stderr).count("no such file or directory") == 1


def test_terminals(docker: Dockerd) -> None:
    # The client sets the size after the start, so the program waits for it.
    sized = 'until test "$(stty size)" = "33 97"; do sleep 0.05; done; exit 4'
    done = docker.on_terminal("", "run", *docker.flags, "--rm", "-it", IMAGE, "sh", "-c", sized)
    assert done[0] == 4, done[1]
    name = serving(docker, "--tty")
    done = docker.on_terminal("", "exec", "-it", name, "sh", "-c", sized)
    assert done[0] == 4, done[1]
    code, screen = docker.on_terminal("echo $((6 * 7))0; exit 5\n", "exec", "-it", name, "sh")
    assert (code, "\n420" in screen) == (5, True), screen
    done = docker.run("--rm", "--tty", IMAGE, "sh", "-c", "tty; exit 6")
    assert (done.returncode, done.stdout) == (6, "/dev/pts/0\n")


def test_run_in_the_foreground(docker: Dockerd) -> None:
    done = docker.run("--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    text = "".join(f"line {n}\n" for n in range(20_000))
    done = docker.run("--rm", "--interactive", "--init", IMAGE, "cat", stdin=text)
    assert (done.returncode, done.stdout) == (0, text)


@pytest.mark.parametrize("init", [(), ("--init",)])
def test_stop_keeps_the_exit_code_of_who_handles_sigterm(
    docker: Dockerd, init: tuple[str, ...]
) -> None:
    name = serving(docker, *init)
    waiting = docker.spawn("wait", name)
    stopped = docker.docker("stop", "--time", str(BOUND_S), name)
    assert (stopped.returncode, stopped.stdout.strip()) == (0, name)
    assert waiting.communicate(timeout=BOUND_S)[0] == "23\n"
    assert docker.docker("wait", name).stdout == "23\n"
    assert docker.inspect(name, ".State.ExitCode") == "23"
    assert docker.docker("logs", name).stdout == "ready\nbye\n"


def test_kill(docker: Dockerd) -> None:
    name = serving(docker, "--init")
    assert docker.docker("kill", name).returncode == 0
    assert docker.docker("wait", name).stdout == "137\n"
    assert docker.inspect(name, ".State.Status") == "exited"


def test_restart(docker: Dockerd) -> None:
    name = serving(docker, "--init", *PUBLISHED)
    assert docker.page(docker.port(name)) == "a page\n"
    before = docker.pid(name)
    assert docker.docker("restart", "--time", str(BOUND_S), name).returncode == 0
    assert docker.pid(name) != before
    eventually(lambda: docker.page(docker.port(name)) == "a page\n", "the page again")
    assert docker.docker("logs", name).stdout == "ready\nbye\nready\n"


def test_restart_policies(docker: Dockerd) -> None:
    command = ("sh", "-c", "echo ran; exit 3")
    failing = docker.started("--restart", "on-failure:2", IMAGE, *command)
    always = serving(docker, "--restart", "always")
    before = docker.pid(always)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: docker.pid(always) not in {0, before}, "it runs again")

    def ended() -> bool:
        return docker.inspect(failing, ".State.Status") == "exited"

    eventually(ended, "the last attempt")
    assert docker.inspect(failing, ".RestartCount") == "2"
    assert docker.inspect(failing, ".State.ExitCode") == "3"
    assert docker.docker("logs", failing).stdout == "ran\n" * 3


def test_out_of_memory_is_told(docker: Dockerd) -> None:
    limits = ("--memory", "16m", "--memory-swap", "16m")
    name = docker.started(*limits, IMAGE, "tail", "/dev/zero")
    assert docker.docker("wait", name).stdout == "137\n"
    assert docker.inspect(name, ".State.OOMKilled") == "true"


def test_missing_program_gives_the_runtimes_reason(docker: Dockerd) -> None:
    done = docker.run("--rm", IMAGE, "/no/such/program")
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr
    assert done.stderr.count("no such file or directory") == 1


def test_busy_port(docker: Dockerd) -> None:
    listener = docker.inside(lambda: socket.create_server(("127.0.0.1", 0)))
    with listener:
        published = f"127.0.0.1:{listener.getsockname()[1]}:80"
        done = docker.run("--rm", "--publish", published, IMAGE, "true")
    assert done.returncode == 125
    assert "address already in use" in done.stderr


def test_many_at_once(docker: Dockerd) -> None:
    running = [
        docker.spawn("run", *docker.flags, "--rm", IMAGE, "sh", "-c", f"echo {n}; exit {n}")
        for n in range(8)
    ]
    results = [(p.communicate(timeout=BOUND_S)[0], p.returncode) for p in running]
    assert results == [(f"{n}\n", n) for n in range(8)]


def test_dockerd_killed_and_started_again(docker: Dockerd) -> None:
    lives = serving(docker, "--init", *PUBLISHED)
    speaks, ends = serving(docker), serving(docker)
    port = docker.port(lives)
    pids = {name: docker.pid(name) for name in (lives, speaks, ends)}

    docker.kill()
    os.kill(pids[speaks], signal.SIGUSR1)
    os.kill(pids[ends], signal.SIGTERM)
    eventually(lambda: docker.tasks()[ends] == "STOPPED", "its end")
    docker.start()

    assert docker.pid(lives) == pids[lives]
    assert docker.pid(speaks) == pids[speaks]
    assert docker.docker("wait", ends).stdout == "23\n"
    eventually(lambda: docker.page(port) == "a page\n", "the page again")
    assert len(docker.relays()) == 1
    done = docker.docker("exec", lives, "sh", "-c", "echo here; exit 8")
    assert (done.returncode, done.stdout) == (8, "here\n")
    eventually(lambda: docker.docker("logs", speaks).stdout == "ready\nheard\n", "what it said")
    waiting = docker.spawn("wait", lives)
    assert docker.docker("stop", "--time", str(BOUND_S), lives).returncode == 0
    assert waiting.communicate(timeout=BOUND_S)[0] == "23\n"


def test_containerd_killed_and_started_again(docker: Dockerd) -> None:
    name = serving(docker, "--init", *PUBLISHED)
    pid, port = docker.pid(name), docker.port(name)
    docker.containerd.kill()
    assert docker.page(port) == "a page\n"
    docker.containerd.start()
    eventually(lambda: docker.docker("top", name).returncode == 0, "dockerd is back")
    done = docker.docker("exec", name, "sh", "-c", "echo here; exit 8")
    assert (docker.pid(name), done.returncode, done.stdout) == (pid, 8, "here\n")
    waiting = docker.spawn("wait", name)
    assert docker.docker("stop", "--time", str(BOUND_S), name).returncode == 0
    assert waiting.communicate(timeout=BOUND_S)[0] == "23\n"


def test_pause_stats_and_update(docker: Dockerd) -> None:
    name = serving(docker, "--memory", "64m")
    assert docker.docker("pause", name).returncode == 0
    assert docker.docker("inspect", "-f", "{{.State.Status}}", name).stdout.strip() == "paused"
    assert docker.docker("unpause", name).returncode == 0
    shown = docker.docker("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", name)
    assert shown.returncode == 0, shown.stderr
    assert "/ 64MiB" in shown.stdout
    assert int(shown.stdout.split()[-1]) >= 2
    updated = docker.docker("update", "--memory", "96m", "--memory-swap", "96m", name)
    assert updated.returncode == 0, updated.stderr
    shown = docker.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", name)
    assert "/ 96MiB" in shown.stdout
