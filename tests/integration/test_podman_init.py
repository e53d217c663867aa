"""pyinit in Podman containers whose image holds nothing but one static binary, and in a pod."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import eventually, mounts_below, processes_of
from .containerd import scripts

IMAGE = "one-static-binary"
PARENT = "libpod_parent"
CGROUPS = Path("/sys/fs/cgroup")
BOUND_S = 60
NOBODY = 65534
PROGRAM = """
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void end(int number) { write(1, "told\\n", 5); _exit(number + 8); }
int main(int count, char **words) {
    signal(SIGTERM, end);
    printf("of %d\\n", getppid());
    fflush(stdout);
    if (count > 1) return atoi(words[1]);
    for (;;) pause();
}
"""
CONFIGURATION = """
[engine]
helper_binaries_dir = ["{folder}"]
infra_image = ""
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""


class Podman:
    """Podman with folders of its own, and pyinit as its init and as catatonit.

    Rootless as ``user``; for root that is None.
    """

    def __init__(self, home: Path, user: int | None = None) -> None:
        self.home = home
        self.user = user
        self.init = home / "pyinit"
        shutil.copy(scripts() / "pyinit", self.init)
        shutil.copy(self.init, home / "catatonit")
        configuration = home / "containers.conf"
        configuration.write_text(CONFIGURATION.format(folder=home))
        self.env = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self.become: list[str] = []
        if user is not None:
            configuration.write_text("")  # a user may not raise limits
            self.env |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
            self.become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            for folder in (home, *home.parents[:2]):
                folder.chmod(0o755)
            shutil.chown(home, user, user)
        self.parents = cgroups()

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs podman."""
        command = [
            *self.become,
            "podman",
            "--cgroup-manager",
            "cgroupfs",
            "--storage-driver",
            "vfs",
        ]
        command += ["--runtime", "runc", "--events-backend", "none"]
        for option in ("root", "runroot", "tmpdir"):
            command += [f"--{option}", str(self.home / option)]
        return subprocess.run(
            [*command, *arguments], cwd=self.home,
            env=self.env, capture_output=True, text=True, timeout=BOUND_S, check=False,
        )  # fmt: skip

    def remove(self) -> None:
        """Leaves nothing behind."""
        self("pod", "rm", "--force", "--all")
        self("rm", "--force", "--all")
        if self.user is not None:
            self("system", "migrate")  # ends the process that keeps the user's namespaces
        eventually(lambda: processes_of(self.home) == {}, "all processes have ended")
        for point in reversed(mounts_below(self.home)):
            subprocess.run(["umount", "--lazy", point], timeout=BOUND_S, check=False)
        for parent in cgroups() - self.parents:
            for folder, _, _ in os.walk(parent, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def cgroups() -> set[Path]:
    """Podman's parent groups, under every controller."""
    return {
        folder for folder in (CGROUPS / PARENT, *CGROUPS.glob(f"*/{PARENT}")) if folder.exists()
    }


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with an image of one file."""
    yield from with_image(Podman(tmp_path_factory.mktemp("p")))


@pytest.fixture
def rootless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """The same for a user without rights."""
    yield from with_image(Podman(tmp_path_factory.mktemp("u"), NOBODY))


def with_image(made: Podman) -> Iterator[Podman]:
    """Podman with an image of one file, as long as it is wanted."""
    source = made.home / "program.c"
    source.write_text(PROGRAM)
    program = source.with_suffix("")
    subprocess.run(["gcc", "-static", "-w", "-o", program, source], check=True, timeout=BOUND_S)
    archive = made.home / "image.tar"
    with tarfile.open(archive, "w") as file:
        data = program.read_bytes()
        entry = tarfile.TarInfo("program")
        entry.size, entry.mode = len(data), 0o755
        file.addfile(entry, io.BytesIO(data))
    try:
        done = made("import", str(archive), IMAGE)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.remove()
    assert mounts_below(made.home) == []
    assert cgroups() == made.parents


HARD = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--user=4711:4712")


@pytest.mark.parametrize("flags", [(), HARD], ids=["as it comes", "with as little as can be"])
@pytest.mark.parametrize("init", ["pyinit", "catatonit"])
def test_podman_run_init(podman: Podman, init: str, flags: tuple[str, ...]) -> None:
    path = str(podman.home / init)
    options = ["--rm", "--init", "--init-path", path, "--network=none", *flags]
    done = podman("run", *options, IMAGE, "/program", "7")
    assert (done.returncode, done.stdout) == (7, "of 1\n"), done.stderr


def test_rootless(rootless: Podman) -> None:
    options = ["--rm", "--init", "--init-path", str(rootless.init), "--network=none"]
    done = rootless("run", *options, IMAGE, "/program", "7")
    assert (done.returncode, done.stdout) == (7, "of 1\n"), done.stderr


def test_podman_stop(podman: Podman) -> None:
    options = ["--detach", "--init", "--init-path", str(podman.init), "--network=none"]
    done = podman("run", *options, IMAGE, "/program")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    eventually(lambda: "of 1" in podman("logs", name).stdout, "the program")
    assert podman("stop", "--time", "20", name).returncode == 0
    assert podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout == "23\n"
    assert podman("logs", name).stdout == "of 1\ntold\n"


def test_the_pause_of_a_pod(podman: Podman) -> None:
    assert podman("pod", "create", "--network=none", "--name", "pod").returncode == 0
    done = podman("pod", "start", "pod")
    assert done.returncode == 0, done.stderr
    (infra,) = podman("ps", "--all", "--filter", "pod=pod", "--quiet", "--no-trunc").stdout.split()
    pid = int(podman("inspect", "--format", "{{.State.Pid}}", infra).stdout)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/catatonit\0-P\0"
    assert Path(f"/proc/{pid}/comm").read_text() == "catatonit\n"
    assert podman("pod", "stop", "pod").returncode == 0
    assert podman("inspect", "--format", "{{.State.ExitCode}}", infra).stdout == "0\n"
