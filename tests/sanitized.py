"""The native programs once more, with the checks of gcc's address and undefined sanitizers.

The C is the one that the product build compiles; only the compiler differs, because zig has no
AddressSanitizer.  A program that does something undefined ends with EXIT_REPORTED and leaves a
report in the ``reports`` folder beside its own::

    python -m tests.sanitized FOLDER     # then: PYSHIM_BIN=FOLDER/bin pytest ...
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hatch_build

EXIT_REPORTED = 86
# Some tests clear the environment, so the options are compiled in.  Reports must not go to stderr:
# tests compare it.  Leaks are not looked for: the programs leave by _exit, with their tables full.
# The monitor resets the dispositions that it finds; the runtime keeps those of faults (…=2).
# vfork needs no option: the runtime has one of its own, which forgets what the child has poisoned
# of the stack that both use.
OPTIONS = (
    "detect_leaks=0:handle_segv=2:handle_sigbus=2:handle_sigfpe=2:print_stacktrace=1"
    ":exitcode={status}:log_path={reports}/report"
)
OPTIONS_SOURCE = """
const char *__asan_default_options(void) { return OPTIONS; }
const char *__ubsan_default_options(void) { return OPTIONS; }
"""
FLAGS = (
    "-std=gnu11 -O1 -g -w -fsanitize=address,undefined -fno-sanitize-recover=all "
    "-ffunction-sections -Wl,--gc-sections "
    # Registering the globals keeps Cython's dead module set-up alive, which refers to a Python that
    # is not there.  That it is dead is what the product build checks; here its symbols become 0.
    "-no-pie -Wl,--unresolved-symbols=ignore-all "
    # The two shared runtimes do not share log_path.
    "-static-libasan -static-libubsan"
).split()


def build(folder: Path) -> Path:
    """An environment like the running one, but with sanitized programs; its ``bin``."""
    prepare(folder)
    # The launcher and the service find the monitor beside their interpreter.
    ours = Path(sys.executable).parent.parent
    (folder / "pyvenv.cfg").write_text((ours / "pyvenv.cfg").read_text())
    (folder / "lib").symlink_to(ours / "lib")
    (folder / "bin/python3").symlink_to(Path(sys.executable).resolve())
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: build_program(name, folder), hatch_build.PROGRAMS))
    return folder / "bin"


def shared(folder: Path) -> Path:
    """The environment in ``folder``, which whoever comes first builds; its ``bin``."""
    folder.mkdir(exist_ok=True)
    made = folder / "environment"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(made, ignore_errors=True)  # of one that was given up
            build(made)
            (folder / "done").touch()
    return made / "bin"


def prepare(folder: Path) -> None:
    """Makes ``folder`` and what compile_and_link needs in it."""
    (folder / "bin").mkdir(parents=True)
    (folder / "reports").mkdir()
    (folder / "options.c").write_text(OPTIONS_SOURCE)


def build_program(name: str, folder: Path) -> None:
    """Builds one program into the ``bin`` of ``folder``."""
    c_file = folder / f"{name}.c"
    hatch_build.translate(hatch_build.ROOT / hatch_build.PROGRAMS[name], c_file)
    entry = hatch_build.entry(hatch_build.ROOT, name in hatch_build.BARE)
    compile_and_link([c_file, entry], name, folder)


def compile_and_link(sources: list[Path], name: str, folder: Path) -> Path:
    """Compiles ``sources`` into the program ``name``, which reports into ``folder``."""
    options = OPTIONS.format(status=EXIT_REPORTED, reports=folder / "reports")
    command = ["gcc", *FLAGS, *hatch_build.source_flags(), f'-DOPTIONS="{options}"']
    command += [str(source) for source in [*sources, folder / "options.c"]]
    hatch_build.run([*command, "-o", str(folder / "bin" / name)])
    return folder / "bin" / name


def reports(programs: Path) -> str:
    """What the programs of the folder ``programs`` have reported, and forgets it."""
    files = sorted((programs.parent / "reports").glob("report.*"))
    text = "\n".join(file.read_text(errors="replace") for file in files)
    for file in files:
        file.unlink()
    return text


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]).absolute()))
    except (hatch_build.BuildError, subprocess.TimeoutExpired) as error:
        sys.exit(f"sanitized: {error}")
