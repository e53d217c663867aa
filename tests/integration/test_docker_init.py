"""pyinit in Docker containers whose image holds nothing but one static binary."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatch_build

from .conftest import Containerd, eventually, mounts_below, processes_of
from .dockerd import Dockerd
from .test_docker import nothing_left

IMAGE = "one-static-binary"
INITS = ("init", "tini", "dumb-init", "catatonit", "pyinit", "pause")
HARD = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=4711:4712")
# Says where it runs; ends on TERM, of which it has a handler; forks an orphan that dies.
PROGRAM = """
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void end(int number) { write(1, "told\\n", 5); _exit(number + 8); }
int main(int count, char **words) {
    signal(SIGTERM, end);
    if (!fork()) { if (!fork()) { usleep(1000); _exit(0); } _exit(0); }
    printf("pid %d of %d%s\\n", getpid(), getppid(), getenv("PYINIT_OPTS") ? " leaked" : "");
    fflush(stdout);
    if (count > 1) return atoi(words[1]);
    for (;;) pause();
}
"""


@pytest.fixture(scope="module")
def docker(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """A dockerd with an image of one file, and pyinit in another image beside that file."""
    containerd = Containerd(tmp_path_factory.mktemp("i"), rootfs)
    daemon = Dockerd(containerd)
    try:
        daemon.make_namespace()
        containerd.start()
        daemon.start()
        source = daemon.home / "program.c"
        source.write_text(PROGRAM)
        program = source.with_suffix("")
        subprocess.run(["gcc", "-static", "-w", "-o", program, source], check=True, timeout=60)
        import_image(daemon, IMAGE, {"program": program})
        init = daemon.scripts / "pyinit"
        import_image(
            daemon, f"{IMAGE}-and-init", {"program": program, **dict.fromkeys(INITS, init)}
        )
        yield daemon
        for name in daemon.containers():
            daemon.docker("rm", "--force", name)
        nothing_left(daemon)
    finally:
        daemon.remove()
    assert processes_of(containerd.home) == {}
    assert mounts_below(containerd.home) == []
    assert daemon.cgroups() == []


def import_image(daemon: Dockerd, name: str, files: dict[str, Path]) -> None:
    """An image of those files."""
    archive = daemon.home / f"{name}.tar"
    with tarfile.open(archive, "w") as file:
        for inside, path in files.items():
            data = path.read_bytes()
            entry = tarfile.TarInfo(inside)
            entry.size, entry.mode = len(data), 0o755
            file.addfile(entry, io.BytesIO(data))
    done = daemon.docker("import", str(archive), name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [(), HARD], ids=["as it comes", "with as little as can be"])
def test_docker_run_init(docker: Dockerd, flags: tuple[str, ...]) -> None:
    done = docker.run("--rm", "--init", "--network=none", *flags, IMAGE, "/program", "7")
    assert (done.returncode, done.stderr) == (7, "")
    (said,) = done.stdout.splitlines()
    assert said.endswith(" of 1")


@pytest.mark.parametrize("flags", [(), HARD], ids=["as it comes", "with as little as can be"])
@pytest.mark.parametrize("init", INITS[:-1])
def test_entrypoint(docker: Dockerd, init: str, flags: tuple[str, ...]) -> None:
    """With dockerd's own seccomp profile, and as PID 1 of whatever persona."""
    options = ("--network=none", *flags, "--entrypoint", f"/{init}")
    name = docker.started(*options, f"{IMAGE}-and-init", "--", "/program")
    eventually(lambda: "of 1" in docker.docker("logs", name).stdout, "the program")
    assert docker.docker("stop", "--time", "20", name).returncode == 0
    assert docker.inspect(name, ".State.ExitCode") == "23"
    assert docker.docker("logs", name).stdout.endswith("told\n")
    assert docker.docker("rm", name).returncode == 0


def test_pause(docker: Dockerd) -> None:
    name = docker.started("--network=none", "--entrypoint", "/pause", f"{IMAGE}-and-init")
    assert docker.docker("stop", "--time", "20", name).returncode == 0
    assert docker.inspect(name, ".State.ExitCode") == "0"
    assert "got signal: SIGTERM" in docker.docker("logs", name).stderr
    assert docker.docker("rm", name).returncode == 0


def test_options_by_environment(docker: Dockerd) -> None:
    options = ("--env", "PYINIT_OPTS=-e 7:9 --why", "--network=none")
    done = docker.run("--rm", "--init", *options, IMAGE, "/program", "7")
    assert done.returncode == 9
    assert "leaked" not in done.stdout
    assert "Main child exited with status 7, at most " in done.stderr


def test_dockerd_reads_the_version(docker: Dockerd) -> None:
    """With the name pyinit it is native; dockerd looks at what stands behind "tini version"."""
    done = docker.docker("version", "--format", "{{json .Server}}")
    parts = {part["Name"]: part["Version"] for part in json.loads(done.stdout)["Components"]}
    assert parts["pyinit"] == f"{hatch_build.version()}_pyinit"
