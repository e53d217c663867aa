"""Flags, environment, texts and exit codes of each persona."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import hatch_build

from .inits import (
    ORIGINALS,
    PERSONAS,
    PYTHON,
    QUIET,
    installed,
    line,
    listening,
    run,
    started,
)

VERSION = hatch_build.version()


@pytest.mark.parametrize("name", PERSONAS)
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_ends_with_the_status_of_the_command(
    inits: Path, name: str, script: str, status: int
) -> None:
    done = run(str(inits / name), *QUIET[name], "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_every_exit_code(inits: Path, request: pytest.FixtureRequest) -> None:
    step = 17 if "sanitized" in request.node.name else 1  # those start slowly
    script = (
        f'for n in $(seq 0 {step} 255); do "$0" sh -c "exit $n"; [ $? = $n ] || echo "$n"; done'
    )
    for name in PERSONAS:
        assert run("sh", "-c", script, str(inits / name)).stdout == ""


@pytest.mark.parametrize(
    ("name", "options", "fd", "text"),
    [
        ("pyinit", "--version", 1, f"tini version {VERSION}_pyinit - pyinit {VERSION}\n"),
        ("pyinit", "-V", 1, f"tini version {VERSION}_pyinit - pyinit {VERSION}\n"),
        ("tini", "--version", 1, f"tini version 0.19.0 - pyinit {VERSION}\n"),
        ("docker-init", "--version", 1, f"tini version 0.19.0 - pyinit {VERSION}\n"),
        ("init", "--version", 1, f"tini version 0.19.0 - pyinit {VERSION}\n"),
        ("podman-init", "--version", 1, f"tini version 0.19.0 - pyinit {VERSION}\n"),
        ("tini-static", "--version", 1, f"tini version 0.19.0 - pyinit {VERSION}\n"),
        ("dumb-init", "-V", 2, "dumb-init v1.2.5\n"),
        ("dumb-init", "--version", 2, "dumb-init v1.2.5\n"),
        ("dumb-init", "--vers", 2, "dumb-init v1.2.5\n"),
        ("catatonit", "-V", 1, f"tini version 0.2.1_catatonit - pyinit {VERSION}\n"),
        ("catatonit", "--version", 1, f"tini version 0.2.1_catatonit - pyinit {VERSION}\n"),
        ("pause", "-v", 1, f"pause 3.10 - pyinit {VERSION}\n"),
        ("pyinit", "--as=dumb-init -V", 2, "dumb-init v1.2.5\n"),
        ("dumb-init", "--as=catatonit -V", 1, f"tini version 0.2.1_catatonit - pyinit {VERSION}\n"),
    ],
)
def test_version(inits: Path, name: str, options: str, fd: int, text: str) -> None:
    done = run(str(inits / name), *options.split())
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == ((text, "") if fd == 1 else ("", text))


@pytest.mark.parametrize(
    ("name", "option", "fd", "text"),
    [
        ("pyinit", "-h", 1, "--grace="),
        ("pyinit", "--help", 1, "--grace="),
        ("tini", "-h", 1, "supervision of a valid init process"),
        ("tini", "-h", 1, "more verbose"),
        ("dumb-init", "-h", 2, "--rewrite"),
        ("dumb-init", "--help", 2, "--single-child"),
        ("catatonit", "-h", 2, "-P run nothing"),
        ("tini", "-l", 1, "Apache"),
        ("pyinit", "-l", 1, "Apache"),
        ("pyinit", "-L", 1, "Apache"),
        ("catatonit", "-L", 1, "Apache"),
    ],
)
def test_help_and_licence(inits: Path, name: str, option: str, fd: int, text: str) -> None:
    done = run(str(inits / name), option)
    assert done.returncode == 0
    assert text in (done.stdout if fd == 1 else done.stderr)
    assert (done.stderr if fd == 1 else done.stdout) == ""


FOREIGN = {"tini": "VcrLP", "dumb-init": "wgslpeLP", "catatonit": "vwslpecr"}


@pytest.mark.parametrize("name", ORIGINALS)
def test_letters_of_the_others_are_refused_as_the_original_does(inits: Path, name: str) -> None:
    original = installed(name)
    for letter in FOREIGN[name] + "xZ9":
        ours = run(str(inits / name), f"-{letter}", "true")
        theirs = run(original, f"-{letter}", "true")
        assert ours.returncode == theirs.returncode == 1
        first = f"invalid option -- '{letter}'"
        assert ours.stderr.splitlines()[0] == f"{inits / name}: {first}"
        assert theirs.stderr.splitlines()[0] == f"{original}: {first}"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pyinit", "", "no command to run"),
        ("pyinit", "--", "no command to run"),
        ("pyinit", "-x true", "pyinit: invalid option -- 'x'"),
        ("pyinit", "--frob true", "unrecognized option '--frob'"),
        ("pyinit", "--st=1 true", "unrecognized option '--st'"),  # could be two
        ("pyinit", "--nnp=1 true", "no value is wanted by '--nnp'"),
        ("pyinit", "--stop", "option requires an argument '--stop'"),
        ("pyinit", "-e", "requires an argument -- 'e'"),
        ("pyinit", "-e 256 true", "'256'"),
        ("pyinit", "-e 1:256 true", "'1:256'"),
        ("pyinit", "-e= true", "'='"),
        ("pyinit", "-p SIGFOO true", "'SIGFOO'"),
        ("pyinit", "-p 65 true", "'65'"),
        ("pyinit", "-p RTMIN+31 true", "'RTMIN+31'"),
        ("pyinit", "-r TERM true", "'TERM'"),
        ("pyinit", "-r 0:1 true", "'0:1'"),
        ("pyinit", "--stop=x true", "'x'"),
        ("pyinit", "--stop=25000m true", "'25000m'"),
        ("pyinit", "--stop=1s:FOO true", "'FOO'"),
        ("pyinit", "--stop-on=TERM,FOO true", "'FOO'"),
        ("pyinit", "--wait=first true", "'first'"),
        ("pyinit", "--delay=TERM true", "'TERM'"),
        ("pyinit", "--log=xml true", "'xml'"),
        ("pyinit", "--user=root true", "'root'"),
        ("pyinit", "--user=1:x true", "'1:x'"),
        ("pyinit", "--env=K true", "'K'"),
        ("pyinit", "--as=nobody true", "no such persona 'nobody'"),
        ("pyinit", "--log-fd=x true", "'x'"),
        ("pyinit", "--log-fd=9 true", "--log-fd: nothing is open for writing under the number '9'"),
    ],
)
def test_a_wrong_native_command_line_is_one_line_and_125(
    inits: Path, name: str, arguments: str, message: str
) -> None:
    done = run(str(inits / name), *arguments.split())
    assert (done.returncode, done.stdout) == (125, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_log_that_cannot_be_written_to_is_refused(inits: Path, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    for flags in (os.O_RDONLY, os.O_PATH):
        file = os.open(tmp_path / "log", flags)
        done = run(str(inits / "pyinit"), f"--log-fd={file}", "true", pass_fds=[file])
        os.close(file)
        assert done.returncode == 125
        assert done.stderr.startswith("pyinit: --log-fd: nothing is open for writing")
        assert done.stderr.count("\n") == 1
    for flags in (os.O_WRONLY, os.O_RDWR):
        file = os.open(tmp_path / "log", flags)
        options = ["--log=text", f"--log-fd={file}"]
        assert run(str(inits / "pyinit"), *options, "true", pass_fds=[file]).returncode == 0
        os.close(file)
    assert " ev=exit code=0 " in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["tini", "tini-static", "docker-init", "podman-init", "init"])
def test_names_of_tini(inits: Path, name: str) -> None:
    """Each is the same persona: exit codes, the -- behind the command, and the warning."""
    init = str(inits / name)
    for command, status in ((["no-such"], 127), (["/etc"], 126), (["/etc/passwd/below"], 1)):
        assert run(init, "-s", "--", *command).returncode == status
    done = run(init, "echo", "--", "-x")
    assert (done.returncode, done.stdout) == (0, "-x\n")
    assert done.stderr.startswith("[WARN  tini (") and "zombie reaping won't work" in done.stderr
    assert run(init, "-P").returncode == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tini", "", "supervision of a valid init process"),
        ("tini", "--version true", "invalid option -- '-'"),
        ("tini", "--help", "invalid option -- '-'"),
        ("tini", "-p TERMINATE true", "Not a valid"),
        ("tini", "-e 256 true", "Not a valid option for -e"),
        ("tini", "-e -1 true", "Not a valid option for -e"),
        ("tini", "-e 1x true", "Not a valid option for -e"),
        ("tini", "-e 0x10 true", "Not a valid option for -e"),
        ("dumb-init", "", "Try {name} --help for full usage."),
        ("dumb-init", "--frob true", "{name}: unrecognized option '--frob'"),
        ("dumb-init", "-r 15 true", "takes <signum>:<signum>"),
        ("dumb-init", "-r 0:15 true", "takes <signum>:<signum>"),
        ("catatonit", "", "missing program name"),
        ("catatonit", "--help", "unrecognized option '--help'"),
        ("catatonit", "--frob true", "usage: catatonit [-ghLPV]"),
    ],
)
def test_a_wrong_command_line_of_the_others_is_1(
    inits: Path, name: str, arguments: str, message: str
) -> None:
    program = str(inits / name)
    done = run(program, *arguments.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert message.format(name=program) in done.stderr
    assert run(installed(name), *arguments.split()).returncode == 1


@pytest.mark.parametrize("value", [" 5", "+5", "005", "5"])
def test_numbers_are_read_as_strtol_does(inits: Path, value: str) -> None:
    for program in (str(inits / "tini"), installed("tini")):
        assert run(program, "-s", "-e", value, "--", "sh", "-c", "exit 5").returncode == 0


def test_only_its_own_arguments_are_taken(inits: Path) -> None:
    native, tini = str(inits / "pyinit"), str(inits / "tini")
    assert run(native, "echo", "-x", "--", "-y").stdout == "-x -- -y\n"
    assert run(native, "--", "echo", "--", "x").stdout == "-- x\n"
    assert run(native, "echo", "--", "x").stdout == "-- x\n"
    assert run(tini, "-s", "echo", "--", "-x").stdout == "-x\n"
    assert run(tini, "-s", "echo", "-x").stdout == "-x\n"  # an error in tini with glibc
    assert run(str(inits / "dumb-init"), "echo", "--", "x").stdout == "-- x\n"
    assert run(str(inits / "catatonit"), "echo", "--", "x").stdout == "x\n"


def test_exit_codes_can_be_mapped(inits: Path) -> None:
    native = str(inits / "pyinit")
    assert run(native, "-e", "143", "-e3", "sh", "-c", "exit 3").returncode == 0
    assert run(native, "-e", "143", "sh", "-c", "kill -TERM $$").returncode == 0
    assert run(native, "-e", "143", "sh", "-c", "exit 4").returncode == 4
    assert run(native, "--exit=4:9", "sh", "-c", "exit 4").returncode == 9
    mapped = {**os.environ, "PYINIT_OPTS": "-e 4:9  -e 5"}
    for name in PERSONAS:
        assert run(str(inits / name), "sh", "-c", "exit 4", env=mapped).returncode == 9
        assert run(str(inits / name), "sh", "-c", "exit 5", env=mapped).returncode == 0


def test_the_persona_by_environment(inits: Path) -> None:
    as_dumb = {**os.environ, "PYINIT_AS": "dumb-init"}
    assert run(str(inits / "tini"), "no-such-command", env=as_dumb).returncode == 2
    done = run(str(inits / "tini"), "--as=native", "no-such-command", env=as_dumb)
    assert done.returncode == 127
    assert done.stderr.startswith("pyinit: ")
    assert run(str(inits / "tini"), "x", env={**os.environ, "PYINIT_AS": "x"}).returncode == 125


def test_our_variables_are_not_passed_on_and_theirs_are(inits: Path) -> None:
    given = {"PATH": os.environ["PATH"], "PYINIT_OPTS": "", "PYINIT_X": "1", "TINI_SUBREAPER": "0"}
    for name in PERSONAS:
        seen = run(str(inits / name), "env", env=given).stdout
        assert "PYINIT" not in seen
        assert "TINI_SUBREAPER=0\n" in seen


def test_wrong_options_in_the_environment(inits: Path) -> None:
    for options in ("--frob", "true", "-e", "--stop=x", "--log-fd=9"):
        for name in PERSONAS:
            done = run(str(inits / name), "true", env={**os.environ, "PYINIT_OPTS": options})
            assert done.returncode == (125 if name == "pyinit" else 1), (name, options)
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith(("PYINIT_OPTS: ", "pyinit: "))
    too_many = {**os.environ, "PYINIT_OPTS": "-w " * 100}
    assert "too many" in run(str(inits / "pyinit"), "true", env=too_many).stderr


EMPTY = "import ctypes, sys; ctypes.CDLL(None).execv(sys.argv[1].encode(), (ctypes.c_char_p * 1)())"


def test_no_arguments_at_all(inits: Path) -> None:
    """Not even a name: newer kernels put an empty one there.  Then only the environment tells."""
    said = {
        "native": (125, "no command to run"),
        "tini": (1, "supervision of a valid init process"),
        "dumb-init": (1, "--help for full usage"),
        "catatonit": (1, "missing program name"),
    }
    for persona, (status, text) in said.items():
        given = {**os.environ, "PYINIT_AS": persona}
        done = run(*PYTHON, EMPTY, str(inits / "pyinit"), env=given)
        assert (done.returncode, text in done.stderr) == (status, True), persona
    assert run(*PYTHON, EMPTY, str(inits / "tini")).returncode == 125
    for name in ORIGINALS:
        assert run(*PYTHON, EMPTY, installed(name)).returncode == 1


@pytest.mark.parametrize("name", ["pyinit", "tini"])
@pytest.mark.parametrize("wanted", ["SIGUSR1", "usr1", "10"])
def test_the_signal_of_a_dead_parent(inits: Path, name: str, wanted: str) -> None:
    middle = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=1); p.wait()"
    command = ["sh", "-c", "trap 'echo told; exit' USR1; echo ready; while :; do sleep 0.02; done"]
    with started(*PYTHON, middle, str(inits / name), "-s", "-p", wanted, *command) as process:
        assert line(process) == "ready"
        process.kill()
        assert line(process) == "told"


@pytest.mark.parametrize("name", ["tini", "catatonit", "pyinit"])
def test_group_by_option_and_environment(inits: Path, name: str) -> None:
    script = "trap 'wait; echo outer; exit 9' TERM; "
    script += "(trap 'echo inner; exit' TERM; echo ready; while :; do sleep 0.02; done) & wait"
    variable = "CATATONIT_KILLPG" if name == "catatonit" else "TINI_KILL_PROCESS_GROUP"
    for options, extra in ((["-g"], {}), ([], {variable: "0"})):
        command = [str(inits / name), *QUIET[name], *options, "--", "sh", "-c", script]
        with started(*command, env={**os.environ, **extra}) as process:
            assert line(process) == "ready"
            os.kill(process.pid, signal.SIGTERM)
            assert {line(process), line(process)} == {"inner", "outer"}
            assert process.wait(20) == 9


@pytest.mark.parametrize(
    ("name", "rule", "sent", "seen"),
    [
        ("dumb-init", "15:2", 15, 2),
        ("dumb-init", " 15: 2", 15, 2),
        ("dumb-init", "+15:+2", 15, 2),
        ("dumb-init", "15:2x", 15, 2),
        ("dumb-init", "TERM:quit", 15, 3),
        ("pyinit", "TERM:RTMIN+2", 15, 36),
        ("pyinit", "RTMAX-1:SIGUSR2", 63, 12),
    ],
)
def test_signals_can_be_rewritten(inits: Path, name: str, rule: str, sent: int, seen: int) -> None:
    with listening(str(inits / name), "-r", rule) as init:
        os.kill(init.pid, sent)
        assert line(init.outer).split()[0] == str(seen)


def test_signals_can_be_dropped(inits: Path) -> None:
    given = {**os.environ, "PYINIT_OPTS": "--map=TERM:0"}
    for name in PERSONAS:
        with listening(str(inits / name), env=given) as init:
            os.kill(init.pid, signal.SIGTERM)
            os.kill(init.pid, signal.SIGWINCH)
            assert line(init.outer).split()[0] == str(int(signal.SIGWINCH))
