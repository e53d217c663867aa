"""`pyshim install`, `uninstall` and `doctor`, on files of our own and with a containerd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BOUND_S, RUNTIME, Containerd, eventually
from .containerd import nothing_left, scripts

PROGRAM, RUNC_PROGRAM = "containerd-shim-pyshim-v2", "containerd-shim-runc-v2"
CRI = "io.containerd.grpc.v1.cri"
TOML = "# ours\nversion = 2\n[debug]\n  level = 'info'"
JSON = '{\n    "log-driver": "local"\n}\n'
NOBODY = 65534


class Place:
    """A host's folders in small, and the commands that change them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "bin"
        self.note = home / "etc/pyshim/interpreter"
        self.containerd = home / "etc/containerd/config.toml"
        self.docker = home / "etc/docker/daemon.json"
        self.programs = home / "programs"
        self.env = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYSHIM_RUNTIME_DIR": str(home / "run"),
        }
        for folder in (self.bin, self.programs, self.containerd.parent, self.docker.parent):
            folder.mkdir(parents=True)
        self.have_docker("28.5.1")

    def have_docker(self, version: str) -> None:
        """The version that dockerd says it has."""
        program = self.programs / "dockerd"
        program.write_text(f"#!/bin/sh\necho 'Docker version {version}, build 1234'\n")
        program.chmod(0o755)

    def arguments(self, *arguments: str) -> list[str]:
        """A command line that stays within our folders; later options win over these."""
        command = [arguments[0], "--bin-dir", str(self.bin), "--note", str(self.note)]
        command += ["--containerd-config", str(self.containerd)]
        command += ["--docker-config", str(self.docker)]
        if arguments[0] == "install" and "--containerd-address" not in arguments:
            command += ["--containerd-address", str(self.home / "nobody.sock")]
        return [*command, *arguments[1:]]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs ``pyshim`` with ``arguments`` as they are."""
        return subprocess.run(
            [scripts() / "pyshim", *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        """What a command says that succeeds."""
        done = self.run(*self.arguments(*arguments))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """The one line of a command that fails, and has changed nothing."""
        before = self.files()
        done = self.run(*self.arguments(*arguments))
        assert done.returncode == 1
        assert done.stderr.startswith("pyshim: ")
        assert done.stderr.count("\n") == 1
        assert self.files() == before
        return done.stderr

    def files(self) -> dict[str, tuple[int, int, int, int, bytes]]:
        """All there is: mode, owner, time of the last change, content."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            if path.is_file() and self.programs not in path.parents:
                about = path.stat()
                key = (about.st_mode, about.st_uid, about.st_gid, about.st_mtime_ns)
                found[str(path)] = (*key, path.read_bytes())
        return found

    def contents(self) -> dict[str, tuple[int, int, int, bytes]]:
        """As ``files``, without times."""
        return {path: (*found[:3], found[4]) for path, found in self.files().items()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def written(place: Place) -> Place:
    """One with configurations of somebody's."""
    place.containerd.write_text(TOML)
    place.docker.write_text(JSON)
    place.docker.chmod(0o600)
    os.chown(place.docker, NOBODY, NOBODY)
    return place


# --- Files ---------------------------------------------------------------------------------------


def test_install_and_uninstall(written: Place) -> None:
    before = written.contents()
    said = written.done("install")
    assert "systemctl restart containerd" in said
    assert "systemctl reload docker" in said
    assert (written.bin / PROGRAM).read_bytes() == (scripts() / PROGRAM).read_bytes()
    assert os.access(written.bin / PROGRAM, os.X_OK)
    python = Path(written.note.read_text().rstrip("\n"))
    assert python.parent == Path(sys.executable).parent
    assert written.containerd.read_text().startswith(TOML)
    assert f'runtime_type = "{RUNTIME}"' in written.containerd.read_text()
    runtimes = json.loads(written.docker.read_text())["runtimes"]
    assert runtimes == {"pyshim": {"runtimeType": RUNTIME}}
    about = written.docker.stat()
    assert (about.st_mode & 0o7777, about.st_uid, about.st_gid) == (0o600, NOBODY, NOBODY)
    for path, text in ((written.containerd, TOML), (written.docker, JSON)):
        assert path.with_name(f"{path.name}.before-pyshim").read_text() == text
    written.done("uninstall")
    assert written.contents() == before
    assert not written.note.parent.exists()


def test_a_second_run_changes_no_byte_and_no_time(written: Place) -> None:
    written.done("install")
    before = written.files()
    assert "nothing to do" in written.done("install")
    assert written.files() == before
    written.done("uninstall")
    before = written.files()
    assert "nothing to do" in written.done("uninstall")
    assert written.files() == before


def test_a_dry_run_shows_all_and_changes_nothing(written: Place) -> None:
    before = written.files()
    said = written.done("install", "--dry-run")
    assert written.files() == before
    assert not written.note.parent.exists()
    for path in (written.bin / PROGRAM, written.note, written.containerd, written.docker):
        assert str(path) in said
    assert f'\n+  runtime_type = "{RUNTIME}"\n' in said
    assert f'\n+            "runtimeType": "{RUNTIME}"\n' in said
    written.done("install")
    before = written.files()
    said = written.done("uninstall", "--dry-run")
    assert written.files() == before
    assert f'\n-  runtime_type = "{RUNTIME}"\n' in said


def test_files_that_were_not_there_go_again(place: Place) -> None:
    place.done("install")
    assert set(place.files()) == {
        str(path) for path in (place.bin / PROGRAM, place.note, place.containerd, place.docker)
    }
    place.done("uninstall")
    assert place.files() == {}


def test_what_others_have_written_since_stays(written: Place) -> None:
    written.done("install")
    for path in (written.containerd, written.docker):
        path.write_text(path.read_text().replace("'info'", "'warn'").replace("local", "none"))
    written.done("uninstall")
    assert written.containerd.read_text() == TOML.replace("info", "warn")
    assert written.docker.read_text() == JSON.replace("local", "none")
    kept = written.docker.with_name("daemon.json.before-pyshim")
    assert kept.read_text() == JSON
    written.done("install")
    assert kept.read_text() == JSON


def test_a_link_stays_one(written: Place) -> None:
    real = written.home / "real.json"
    written.docker.rename(real)
    written.docker.symlink_to(real)
    written.done("install")
    assert written.docker.is_symlink()
    assert "pyshim" in real.read_text()
    written.done("uninstall")
    assert real.read_text() == JSON


def test_configurations_may_be_left_alone(written: Place) -> None:
    written.done("install", "--no-docker", "--no-containerd")
    assert (written.containerd.read_text(), written.docker.read_text()) == (TOML, JSON)
    assert (written.bin / PROGRAM).exists()


def test_dockers_default(written: Place) -> None:
    written.done("install", "--default-runtime")
    assert json.loads(written.docker.read_text())["default-runtime"] == "pyshim"
    written.done("uninstall")
    assert written.docker.read_text() == JSON


def test_docker_23_finds_the_shim_by_name(written: Place) -> None:
    written.have_docker("23.0.0")
    assert f"docker run --runtime {RUNTIME}" in written.done("install")
    assert written.docker.read_text() == JSON


def test_docker_20_is_given_its_own_shims_name(written: Place) -> None:
    written.have_docker("20.10.24+dfsg1")
    other = written.bin / RUNC_PROGRAM
    other.write_text("#!/bin/sh\n")
    other.chmod(0o711)
    before = written.contents()
    assert "--replace-runc-shim" in written.done("install")
    assert "--replace-runc-shim" in written.refused("install", "--default-runtime")
    assert other.read_text() == "#!/bin/sh\n"
    written.done("install", "--replace-runc-shim")
    assert other.read_bytes() == (scripts() / PROGRAM).read_bytes()
    written.done("uninstall")
    assert written.contents() == before


def test_an_older_launcher_is_replaced(place: Place) -> None:
    older = (scripts() / PROGRAM).read_bytes() + b"older"
    (place.bin / PROGRAM).write_bytes(older)
    place.done("install")
    assert (place.bin / PROGRAM).read_bytes() == (scripts() / PROGRAM).read_bytes()


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "text", "named"),
    [
        ("version = 2\n[", JSON, "config.toml: it is no valid TOML"),
        ("version = 1\n", JSON, "containerd config migrate"),
        (TOML, "{", "daemon.json: it is no valid JSON"),
        (TOML, "[]", "daemon.json: it is no JSON object"),
        (TOML, "\udcff", "daemon.json: it is no UTF-8"),
    ],
)
def test_a_configuration_that_cannot_be_changed(
    place: Place, toml: str, text: str, named: str
) -> None:
    place.containerd.write_text(toml)
    place.docker.write_bytes(text.encode(errors="surrogateescape"))
    assert named in place.refused("install")


def test_a_folder_that_is_not_there(written: Place) -> None:
    assert "--bin-dir" in written.refused("install", "--bin-dir", "/nonexistent")


def test_somebody_elses_program(written: Place) -> None:
    (written.bin / PROGRAM).write_text("#!/bin/sh\n")
    assert f"{written.bin / PROGRAM} is no launcher" in written.refused("install")


def test_what_cannot_be_written_leaves_nothing_behind(written: Place) -> None:
    """The launcher is there already when the note turns out to have no place."""
    assert "/proc/nowhere" in written.refused("install", "--note", "/proc/nowhere/interpreter")


def test_who_is_not_root_is_told_so(written: Place) -> None:
    program = (
        "import os, sys, pyshim.cli.errors, pyshim.cli.installation\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "pyshim.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *written.arguments("install")],
        env=written.env,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "as root" in done.stderr


# --- A containerd --------------------------------------------------------------------------------


@pytest.fixture
def daemon(
    rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Containerd, Place]]:
    """A containerd whose PATH has a folder of ours, with a configuration of the usual kind."""
    home = tmp_path_factory.mktemp("i")
    containerd = Containerd(home, rootfs)
    place = Place(home / "host")
    containerd.env["PATH"] = f"{place.bin}:{os.environ['PATH']}"
    containerd.config = place.containerd
    place.note = containerd.runtime_dir / "interpreter"
    place.env["PYSHIM_RUNTIME_DIR"] = str(containerd.runtime_dir)
    containerd.config.write_text(
        f'version = 2\n[plugins."{CRI}"]\n  stream_server_address = "127.0.0.1"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{home}/opt"\n'
    )
    try:
        containerd.start()
        yield containerd, place
    finally:
        containerd.stop()


def test_a_containerd_runs_containers_after_install(daemon: tuple[Containerd, Place]) -> None:
    containerd, place = daemon
    at = ("--containerd-address", containerd.address)
    none = ("--docker-socket", str(place.home / "nobody.sock"))
    code, checks = examined(place, *at, *none)
    assert (code, checks["shim"]["status"]) == (1, "fail")
    assert "pyshim install" in checks["shim"]["hint"]
    assert containerd.ctr(*containerd.run("before", "/bin/true")).returncode != 0
    text = place.refused("install", *at, "--bin-dir", str(place.programs))
    assert containerd.process is not None
    assert f"containerd (pid {containerd.process.pid})" in text

    place.done("install", *at)
    containerd.kill()
    containerd.start()
    assert cri_status(containerd) == "ok"
    done = containerd.ctr(*containerd.run("c", "/bin/echo", "hello"))
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert containerd.ctr(*containerd.run("d", "/bin/sleep", "1000", flags=("-d",))).returncode == 0
    used = containerd.bundle("d") / "shim-binary-path"
    assert used.read_text() == str(place.bin / PROGRAM)
    containerd.ctr("task", "delete", "-f", "d")
    assert containerd.ctr("container", "delete", "d").returncode == 0

    code, checks = examined(place, *at, *none)
    assert code == 0, checks
    assert checks["shim"]["found"] == str(place.bin / PROGRAM)
    assert str(place.note) in checks["interpreter"]["found"]
    for name in ("shim", "interpreter", "zygote", "runc", "cgroups", "kernel", "containerd"):
        assert checks[name]["status"] == "ok", checks[name]
    assert "by name" in checks["containerd"]["found"]
    assert "--runtime pyshim" in checks["docker"]["found"]
    place.have_docker("20.10.24+dfsg1")
    assert "--replace-runc-shim" in examined(place, *at, *none)[1]["docker"]["hint"]
    lines = place.run("doctor", *at, *none).stdout.splitlines()
    assert {line[:4].strip() for line in lines} <= {"ok", "warn"}
    assert len(lines) == len(checks)

    place.done("uninstall")
    assert not (place.bin / PROGRAM).exists()
    nothing_left(containerd)


def examined(place: Place, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code of `pyshim doctor`, and its findings by name."""
    done = place.run("doctor", "--json", *arguments)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["usable"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in told["checks"]}


def cri_status(containerd: Containerd) -> str:
    """What containerd says of its CRI plugin, when it has loaded it."""
    status = ""

    def loaded() -> bool:
        nonlocal status
        rows = [line.split() for line in containerd.ctr("plugins", "ls").stdout.splitlines()]
        found = [row[-1] for row in rows if row[:2] == ["io.containerd.grpc.v1", "cri"]]
        status = found[0] if found else ""
        return bool(status)

    eventually(loaded, "the CRI plugin is listed")
    return status
