"""What can go wrong before the command runs, and what it finds when it does."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only

from .inits import (
    NEW_PIDS,
    ORIGINALS,
    PERSONAS,
    QUIET,
    children,
    eventually,
    installed,
    listening,
    run,
)

NOBODY = 65534
# What an exec that fails with this errno makes of each persona.
FAILING = ("tini", "dumb-init", "catatonit", "pyinit")
FAILURES = {
    "ENOENT": (127, 2, 1, 127),
    "EACCES": (126, 2, 1, 126),
    "ENOTDIR": (1, 2, 1, 127),
    "ELOOP": (1, 2, 1, 126),
    "E2BIG": (1, 2, 1, 126),
    "ENAMETOOLONG": (1, 2, 1, 126),
}
TEXTS = {
    "ENOENT": "No such file or directory",
    "EACCES": "Permission denied",
    "ENOTDIR": "Not a directory",
    "ELOOP": "Too many levels of symbolic links",
    "E2BIG": "Argument list too long",
    "ENAMETOOLONG": "File name too long",
}


def failing(kind: str, folder: Path) -> list[list[str]]:
    """Commands whose exec fails so."""
    plain, stub = folder / "plain", folder / "stub"
    plain.write_text("no program")
    (folder / "loop").symlink_to(folder / "loop")
    stub.write_text("#!/no/interpreter\n")
    stub.chmod(0o755)
    return {
        "ENOENT": [["no-such-command"], [str(folder / "none")], [""], [str(stub)]],
        "EACCES": [[str(plain)], [str(folder)]],
        "ENOTDIR": [[str(plain / "below")]],
        "ELOOP": [[str(folder / "loop")]],
        "ENAMETOOLONG": [["/" + "x" * 300]],
    }[kind]


@pytest.mark.parametrize("kind", [kind for kind in FAILURES if kind != "E2BIG"])
def test_exec_failures(inits: Path, tmp_path: Path, kind: str) -> None:
    for name, expected in zip(FAILING, FAILURES[kind], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        for command in failing(kind, folder):
            done = run(str(inits / name), *QUIET[name], "--", *command)
            assert done.returncode == expected, (name, command)
            assert TEXTS[kind] in done.stderr
            assert done.stderr.count("\n") == 1
            if name in ORIGINALS:
                theirs = run(installed(name), *QUIET[name], "--", *command)
                assert theirs.returncode == expected, (name, command)


def test_arguments_that_are_too_long(inits: Path, tmp_path: Path) -> None:
    script = tmp_path / ("s" * 200)
    script.write_text("#!/bin/sh " + "-" * 100 + "\n")
    script.chmod(0o755)
    for name, expected in zip(FAILING, FAILURES["E2BIG"], strict=True):
        done = at_the_limit(str(inits / name), *QUIET[name], "--", str(script))
        assert done.returncode == expected, done.stderr
        assert TEXTS["E2BIG"] in done.stderr


def at_the_limit(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs with the largest environment that ``command`` itself can be executed with.

    What an interpreter line adds is then too much.  A quarter of the stack limit counts, see
    execve(2).
    """
    for size in range(72000, 60000, -64):
        given = {"A": "x" * 60000, "B": "x" * size}
        try:
            return run(*command, env=given, preexec_fn=small_stack)
        except OSError:
            continue
    raise AssertionError("no size is small enough")


def small_stack() -> None:
    """128 KiB for arguments and environment."""
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 19, 1 << 19))


NO_FORMAT = (1, 2, 1, 126)
NO_SHELL = (127, 2, 1, 126)


def test_a_program_for_another_machine(inits: Path, programs: Path, tmp_path: Path) -> None:
    """The originals give it to the shell, which takes it for a script."""
    foreign = tmp_path / "foreign"
    code = bytearray((programs / "pyinit").read_bytes())
    code[18] = 0  # e_machine of elf(5): none
    foreign.write_bytes(code)
    foreign.chmod(0o755)
    for name, expected in zip(FAILING, NO_FORMAT, strict=True):
        done = run(str(inits / name), *QUIET[name], "--", str(foreign), errors="replace")
        assert (done.returncode, "Exec format error" in done.stderr) == (expected, True), name
        if name in ORIGINALS:
            theirs = run(installed(name), *QUIET[name], "--", str(foreign), errors="replace")
            assert theirs.returncode and "Exec format error" not in theirs.stderr, name


@plain_only
def test_a_format_that_nobody_knows_in_an_image_without_a_shell(
    programs: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    for name, expected in zip(FAILING, NO_SHELL, strict=True):
        shutil.copy(programs / "pyinit", tmp_path / name)
        done = run("chroot", str(tmp_path), f"/{name}", *QUIET[name], "--", "/text")
        assert done.returncode == expected, name
        assert ("Exec format error" in done.stderr) == (name == "pyinit")
        if name in {"tini", "catatonit"}:  # dumb-init wants a libc there
            shutil.copy(installed(name), tmp_path / name)
            theirs = run("chroot", str(tmp_path), f"/{name}", *QUIET[name], "--", "/text")
            assert theirs.returncode == expected, name


@pytest.mark.parametrize("name", PERSONAS)
def test_550_kilobytes_of_arguments_arrive(inits: Path, name: str) -> None:
    words = ["x" * 50000 for _ in range(11)]
    script = 'n=0; for word; do n=$((n + ${#word})); done; echo "$n"'
    done = run(str(inits / name), *QUIET[name], "--", "sh", "-c", script, "sh", *words)
    assert (done.returncode, done.stdout) == (0, "550000\n")


def test_a_script_without_interpreter_line_runs_in_the_shell(inits: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"\n')
    script.chmod(0o755)
    for name in PERSONAS:
        init = [str(inits / name), *QUIET[name]]
        assert run(*init, str(script), "a", "b c").stdout == f"{script} a b c\n"
        found = run(*init, "script", env={"PATH": f"/nowhere:{tmp_path}"})
        assert found.stdout == f"{script}\n"
        assert run(*init, "script", cwd=tmp_path, env={"PATH": ":/x"}).stdout == "script\n"


def test_a_path_that_is_not_allowed_says_more_than_one_that_is_not_there(
    inits: Path, tmp_path: Path
) -> None:
    (tmp_path / "command").write_text("")
    done = run(str(inits / "pyinit"), "command", env={"PATH": f"{tmp_path}:/nowhere"})
    assert done.returncode == 126
    assert run(str(inits / "pyinit"), "true", env={}).returncode == 0  # the usual folders


CLOSED = [fds for count in range(4) for fds in itertools.combinations((0, 1, 2), count)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_closed_standard_files(inits: Path, closed: tuple[int, ...]) -> None:
    shut = " ".join(f"{fd}>&-" for fd in closed)
    for name in PERSONAS:
        for prefix in ("", "unshare -fp "):
            script = f'{prefix}"$0" "$@" sh -c "exit 5" {shut}; exit $?'
            done = run("sh", "-c", script, str(inits / name), *QUIET[name])
            assert (done.returncode, done.stdout, done.stderr) == (5, "", ""), name


def test_the_command_finds_the_same_files_closed(inits: Path) -> None:
    for closed in CLOSED:
        shut = " ".join(f"{fd}>&-" for fd in closed)
        script = f'"$@" sh -c "exec ls /proc/self/fd" 3>&2 {shut}'
        for name in PERSONAS:
            below = run("sh", "-c", script, "sh", str(inits / name), *QUIET[name])
            assert below.stdout == run("sh", "-c", script, "sh").stdout


@pytest.mark.parametrize("name", PERSONAS)
def test_fork_refused(inits: Path, name: str, tmp_path: Path) -> None:
    shutil.copy((inits / name).resolve(), tmp_path / name)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)

    def prepare() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    done = run(str(tmp_path / name), *QUIET[name], "true", preexec_fn=prepare)
    assert done.returncode == (125 if name == "pyinit" else 1)
    assert "cannot start a process: Resource temporarily unavailable" in done.stderr


CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def full_group() -> Iterator[Path]:
    """A control group whose one process may have no other beside it."""
    first = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
    if first == CGROUPS and "pids" not in (first / "cgroup.subtree_control").read_text():
        (first / "cgroup.subtree_control").write_text("+pids")
    folder = first / f"pyinit-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "pids.max").write_text("1")
        yield folder
    finally:
        assert eventually(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


@pytest.mark.parametrize("name", PERSONAS)
def test_fork_refused_by_a_control_group(inits: Path, name: str, full_group: Path) -> None:
    programs = [str(inits / name)] + ([installed(name)] if name in ORIGINALS else [])
    for program in programs:

        def join() -> None:
            (full_group / "cgroup.procs").write_text("0")

        done = run(program, *QUIET[name], "true", preexec_fn=join)
        assert done.returncode == (125 if name == "pyinit" else 1), program
        assert "fork" in done.stderr or "Resource temporarily unavailable" in done.stderr


def test_socket_activation(inits: Path) -> None:
    script = 'echo "$LISTEN_PID $LISTEN_FDS $LISTEN_PIDFDID $$"; echo >&3'
    for name in PERSONAS:
        for as_pid_1 in (False, True):
            prefix = "unshare -fp" if as_pid_1 else ""
            ours, theirs = socket.socketpair()
            outer = 'export LISTEN_PID=$$; exec "$@"' if not as_pid_1 else 'exec "$@"'
            given = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_PIDFDID": "9"}
            command = [*prefix.split(), str(inits / name), *QUIET[name], "--", "sh", "-c", script]

            def pass_on(fd: int = theirs.fileno()) -> None:
                os.dup2(fd, 3)

            done = run(
                "sh", "-c", outer, "sh", *command, env=given, preexec_fn=pass_on, close_fds=False
            )
            theirs.close()
            pid, count, *identity, own = done.stdout.split()
            assert (pid, count, identity) == (own, "1", []), name
            assert ours.recv(10) == b"\n"
            ours.close()


def test_somebody_elses_listen_pid_is_left_alone(inits: Path) -> None:
    given = {**os.environ, "LISTEN_PID": "1", "LISTEN_PIDFDID": "9"}
    for name in PERSONAS:
        done = run(
            str(inits / name), *QUIET[name], "--",
            "sh", "-c", 'echo "$LISTEN_PID $LISTEN_PIDFDID"', env=given,
        )  # fmt: skip
        assert done.stdout == "1 9\n"


@pytest.mark.parametrize("name", PERSONAS)
def test_it_keeps_no_folder_file_or_pipe(inits: Path, name: str, tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held, listening(
        str(inits / name), *QUIET[name], cwd=tmp_path, pass_fds=[held.fileno()]
    ) as init:  # fmt: skip
        assert os.readlink(f"/proc/{init.pid}/cwd") == "/"
        files = {fd: os.readlink(f"/proc/{init.pid}/fd/{fd}") for fd in "012"}
        assert sorted(os.listdir(f"/proc/{init.pid}/fd")) == ["0", "1", "2"]
        assert files["0"] == files["1"] == files["2"]
        command = children(init.pid)[0]
        assert os.readlink(f"/proc/{command}/cwd") == str(tmp_path)
        assert os.path.exists(f"/proc/{command}/fd/{held.fileno()}")


def test_stdio_can_be_kept(inits: Path) -> None:
    with listening(str(inits / "pyinit"), "--keep-stdio") as init:
        assert os.readlink(f"/proc/{init.pid}/fd/1").startswith("pipe:")


# --- Where it has to work ------------------------------------------------------------------------


ROUGH = {
    "without /proc": [*NEW_PIDS[:3], "-m", "sh", "-c", 'umount -l /proc; exec "$@"', "sh"],
    "read-only": ["unshare", "-m", "sh", "-c", 'mount -o remount,bind,ro /; exec "$@"', "sh"],
    "no capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
    "any user": ["setpriv", "--reuid=4711", "--regid=4712", "--clear-groups"],
    "all of it": [
        *("unshare", "-m", "--pid", "--fork", "--kill-child", "sh", "-c"),
        'umount -l /proc; mount -o remount,bind,ro /; exec "$@"',
        *("sh", "setpriv", "--reuid=4711", "--regid=4712", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
    ],
    "no /dev": ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev; exec "$@"', "sh"],
}


@pytest.mark.parametrize("place", ROUGH)
@pytest.mark.parametrize("name", PERSONAS)
def test_rough_places(inits: Path, tmp_path: Path, name: str, place: str) -> None:
    shutil.copy((inits / name).resolve(), tmp_path / name)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    command = [*ROUGH[place], str(tmp_path / name), *QUIET[name], "--"]
    orphan = "" if place == "no /dev" else "(sleep 0.05 &) ; sleep 0.2; "  # & wants /dev/null
    done = run(*command, "sh", "-c", f"{orphan}kill -TERM $$")
    assert done.returncode == 143
    # A sanitizer's runtime misses /proc.
    assert done.stderr == "" or "reading executable name failed" in done.stderr
