"""Builds the fuzzers: the C of a native program, a harness around its decoders, and libFuzzer.

It is the C that the product build compiles, with clang's address and undefined sanitizers.  A
harness includes it, so that it reaches the functions by their names (``harness/common.h``).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import hatch_build

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
COMPILERS = ("clang", "clang-14")
FLAGS = (
    "-std=gnu11 -O1 -g -w -Werror=implicit-function-declaration "
    "-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined "
    "-ffunction-sections -Wl,--gc-sections -no-pie "
    # As in tests/sanitized.py: Cython's dead module set-up refers to a Python that is not there.
    "-Wl,--unresolved-symbols=ignore-all "
    # gcc says so by itself; what is linked without a libc asks for it.
    "-D__SANITIZE_ADDRESS__=1"
).split()
GLOBAL = re.compile(r"^static (?!const )[^()=;]*?\b(__pyx_v_\w+)(?:\[[^;]*\])?;$", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A harness, the program that it is about, and the longest input that makes sense (bytes).

    ``kept`` are tables that the harness clears by itself, since most of a large one is untouched.
    """

    name: str
    program: str
    max_bytes: int
    kept: tuple[str, ...] = ()

    @property
    def corpus(self) -> Path:
        """The inputs in the repository."""
        return CORPUS / self.name


TARGETS = (
    Target(
        "monitor_channel",
        "pyshim-monitor",
        4096,
        ("processes", "helds", "relays", "pieces", "replies", "datagram", "batch", "path"),
    ),
    Target("launcher_answer", "containerd-shim-pyshim-v2", 3000, ("answer",)),
    Target("launcher_interpreter", "containerd-shim-pyshim-v2", 8192),
    Target("relay_header", "portproxy-relay", 4096),
    Target("relay_settings", "portproxy-relay", 2048, ("datagrams", "buffer")),
    Target("relay_control", "portproxy-relay", 4096, ("datagrams", "buffer", "reply")),
    Target("pyinit_options", "pyinit", 2048),
)


def build(target: Target, folder: Path) -> Path:
    """The fuzzer of ``target``, built in ``folder``.  Raises BuildError."""
    source = hatch_build.ROOT / hatch_build.PROGRAMS[target.program]
    c_file = folder / f"{target.program}.c"
    if not c_file.exists():
        hatch_build.translate(source, c_file)
    place = folder / target.name
    place.mkdir()
    text = c_file.read_text()
    module = mangled(source)
    (place / "reset.h").write_text(reset(text, {f"__pyx_v_{module}{name}" for name in target.kept}))
    command = [compiler(), *FLAGS, *hatch_build.source_flags(), f"-I{place}"]
    command += [f'-DPROGRAM_C="{c_file}"', f"-DNAMES={module}"]
    command += [str(HERE / "harness" / name) for name in (f"{target.name}.c", "common.c")]
    hatch_build.run([*command, "-o", str(place / "fuzzer")])
    return place / "fuzzer"


def compiler() -> str:
    """clang; raises BuildError."""
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise hatch_build.BuildError("clang is missing; `make test` installs it (tests/packages.txt)")


def mangled(source: Path) -> str:
    """What Cython puts before the names of the module ``source``: each part with its length."""
    parts = source.relative_to(hatch_build.ROOT).with_suffix("").parts
    return "".join(f"{len(part)}{part}_" for part in parts)


def reset(text: str, kept: set[str]) -> str:
    """C that gives every global of the C ``text`` but those ``kept`` the value of its start, 0."""
    names = [name for name in GLOBAL.findall(text) if name not in kept]
    lines = "".join(f"  memset((void *)&{name}, 0, sizeof {name});\n" for name in names)
    return f"static void fuzz_reset(void) {{\n{lines}}}\n"
