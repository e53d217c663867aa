"""Builds the native programs and puts them into the wheel as scripts.

Each program is one Cython source in pure Python mode.  Cython turns it into C, ``ziglang`` (a
wheel) compiles that into a static musl binary, and the result is refused when it is dynamic or
holds a symbol of the Python runtime.  Used by hatchling as a build hook, and as a command::

    python hatch_build.py --arch aarch64 --out build/aarch64 [pyinit ...]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
PROGRAMS = {
    "pyinit": "pyinit/init.py",
    "pyshim-monitor": "pyshim/monitor/monitor.py",
    "containerd-shim-pyshim-v2": "pyshim/launcher/launcher.py",
    "portproxy-relay": "portproxy/relay.py",
}
# Linked with no libc; what is left are its own start and calls (native/bare.c).
BARE = {"pyinit"}
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
DIRECTIVES = (
    "language_level=3,boundscheck=False,wraparound=False,cdivision=True,"
    "initializedcheck=False,emit_code_comments=False"
)
CFLAGS = (
    *("-std=gnu11", "-g", "-Os", "-Wno-everything", "-ffunction-sections", "-fdata-sections"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-sanitize=all"),
)
LINK = ("-static", "-Wl,--gc-sections")
BARE_CFLAGS = (
    *("-ffreestanding", "-fno-inline-functions", "-fomit-frame-pointer", "-fno-jump-tables"),
)
BARE_LINK = ("-nostdlib",)
PT_LOAD, PT_DYNAMIC, PT_INTERP, SHT_SYMTAB = 1, 2, 3, 2
E_SHOFF, E_SHNUM = 40, 60  # offsets in an ELF64 header


class BuildError(Exception):
    """A native program could not be built, or is not what it must be."""


def build_id(root: Path = ROOT) -> str:
    """Sixteen hex digits that change with any source file of the programs."""
    digest = hashlib.sha256()
    for folder in ("native", "pyinit", "pyshim", "portproxy"):
        for path in sorted((root / folder).rglob("*")):
            if (
                path.suffix in {".py", ".pxd", ".c", ".h", ".ld", ".proto"}
                and path.name != "_build.py"
            ):
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def version(root: Path = ROOT) -> str:
    """The version in ``pyshim/__init__.py``, the only place that states it."""
    for line in (root / "pyshim/__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise BuildError("pyshim/__init__.py: no line begins with __version__")


def translate(source: Path, target: Path, root: Path = ROOT) -> None:
    """Turns one pure-mode Cython ``source`` into the C file ``target``."""
    command = [sys.executable, "-m", "cython", "-X", DIRECTIVES, "-I", str(root / "native")]
    run([*command, "-o", str(target), str(source)])


def compile_and_link(
    c_file: Path, output: Path, arch: str, root: Path = ROOT, bare: bool = False
) -> None:
    """Compiles ``c_file`` for ``arch`` into the static, stripped binary ``output``.

    A ``bare`` program gets no libc, and ``native/bare.ld`` says where its parts lie.

    Raises BuildError when the compiler fails or the binary is not free of Python.
    """
    whole = c_file.with_suffix(".symbols")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl"]
    sources = [c_file, entry(root, bare)]
    if bare:
        # In steps, because zig finds no headers when it is to do without the library.
        objects = [c_file.with_name(f"{source.stem}.o") for source in sources]
        for source, target in zip(sources, objects, strict=True):
            flags = [*CFLAGS, *BARE_CFLAGS, *source_flags(root)]
            run([*zig, *flags, "-c", str(source), "-o", str(target)])
        script = f"-Wl,-T,{root / 'native/bare.ld'}"
        run([*zig, *LINK, *BARE_LINK, script, *map(str, objects), "-o", str(whole)])
    else:
        run([*zig, *CFLAGS, *LINK, *source_flags(root), *map(str, sources), "-o", str(whole)])
    check_binary(whole)
    strip(whole, output)


def entry(root: Path, bare: bool) -> Path:
    """The C file that calls a program's ``program_main``."""
    return root / "native" / ("bare.c" if bare else "main.c")


def source_flags(root: Path = ROOT) -> list[str]:
    """What the C needs of any compiler: where its headers are, and what it is told."""
    return [
        "-D_GNU_SOURCE",
        f"-I{root / 'native/python'}",
        f"-I{root / 'native'}",
        f'-DPYSHIM_VERSION="{version(root)}"',
        f'-DPYSHIM_BUILD="{build_id(root)}"',
    ]


def run(command: list[str]) -> None:
    """Runs a build command; its output becomes the error when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def check_binary(path: Path) -> None:
    """Raises BuildError unless ``path`` is a static ELF64 without any ``Py…`` symbol (elf(5))."""
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        raise BuildError(f"{path}: not a 64-bit ELF file")
    phoff, shoff = struct.unpack_from("<QQ", data, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", data, 54)
    kinds = {struct.unpack_from("<I", data, phoff + i * phentsize)[0] for i in range(phnum)}
    if kinds & {PT_DYNAMIC, PT_INTERP}:
        raise BuildError(f"{path}: has a dynamic section; it must be static")
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize) for i in range(shnum)
    ]
    names = [name for s in sections if s[1] == SHT_SYMTAB for name in symbols(data, s, sections)]
    if not names:
        raise BuildError(f"{path}: no symbol table to check")
    python = sorted(name for name in names if name.startswith(("Py", "_Py")))
    if python:
        raise BuildError(f"{path}: reaches the Python runtime: {', '.join(python[:10])}")


def symbols(data: bytes, table: tuple[int, ...], sections: list[tuple[int, ...]]) -> list[str]:
    """The names in one ELF64 symbol table."""
    offset, size, link = table[4], table[5], table[6]
    strings = sections[link][4]
    found = []
    for at in range(offset, offset + size, 24):
        start = strings + struct.unpack_from("<I", data, at)[0]
        found.append(data[start : data.index(b"\0", start)].decode())
    return [name for name in found if name]


def strip(whole: Path, output: Path) -> None:
    """Writes what ``whole`` loads, without sections and symbols: what was checked is delivered.

    Linking a second time would do, but has zig build its libc a second time, for a minute.
    """
    data = bytearray(whole.read_bytes())
    (phoff,) = struct.unpack_from("<Q", data, 32)
    phentsize, phnum = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, phoff + i * phentsize) for i in range(phnum)]
    loaded = [header for header in headers if header[0] == PT_LOAD and header[5]]
    end = max(offset + size for _, _, offset, _, _, size in loaded)
    struct.pack_into("<Q", data, E_SHOFF, 0)
    struct.pack_into("<HH", data, E_SHNUM, 0, 0)
    draft = output.with_suffix(".draft")  # the program may be running
    draft.write_bytes(data[:end])
    draft.chmod(0o755)
    draft.replace(output)


def build(names: list[str], arch: str, out: Path, root: Path = ROOT) -> dict[str, Path]:
    """Builds the programs ``names`` for ``arch`` into ``out``; returns name → path."""
    out.mkdir(parents=True, exist_ok=True)
    built = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pyshim-build-") as scratch:
            c_file = Path(scratch) / f"{name}.c"
            translate(root / PROGRAMS[name], c_file, root)
            compile_and_link(c_file, out / name, arch, root, name in BARE)
        built[name] = out / name
    return built


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling's entry: the wheel gets the binaries as scripts and a platform tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        machine = os.environ.get("PYSHIM_ARCH") or platform.machine()
        arch = ARCHITECTURES.get(machine.lower())
        if arch is None:
            raise BuildError(f"{machine}: only x86_64 and aarch64 are supported")
        built = build(list(PROGRAMS), arch, root / "build" / arch, root)
        build_data["shared_scripts"] = {str(path): name for name, path in built.items()}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux2014_{arch}"
        stamp = root / "build" / "_build.py"
        stamp.write_text(f'"""Written by the build."""\n\nBUILD_ID = "{build_id(root)}"\n')
        build_data["force_include"][str(stamp)] = "pyshim/_build.py"


def main() -> int:
    """The command line: builds the named programs (all when none is named)."""
    parser = argparse.ArgumentParser(description="build the native programs")
    parser.add_argument("--arch", default=platform.machine(), choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS))
    arguments = parser.parse_args()
    arch = ARCHITECTURES[arguments.arch]
    try:
        built = build(arguments.programs, arch, arguments.out or ROOT / "build" / arch)
    except BuildError as error:
        print(f"hatch_build: {error}", file=sys.stderr)
        return 1
    for name, path in built.items():
        print(f"{name}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
