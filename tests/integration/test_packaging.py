"""What `pip install .` delivers: built from the sdist, into environments of its own."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import hatch_build
from hatch_build import BuildError

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ("pyinit", "pyshim-monitor", "containerd-shim-pyshim-v2", "portproxy-relay")
CONSOLE = ("pyshim", "portproxy")
MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine (elf(5))
NOT_COPIED = (".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
EXECUTABLE = 0o111
BUILD_BOUND_S = 840
RUN_BOUND_S = 60

# Building is slow where zig has not built its libc yet.
pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, **env: str) -> str:
    """What ``command`` prints; fails the test with its output when it fails."""
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_BOUND_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(tree: Path, *flags: str, **env: str) -> Path:
    """The one file that `python -m build` makes of ``tree``."""
    out = Path(tempfile.mkdtemp(prefix="out-", dir=tree.parent))
    run(
        *(sys.executable, "-m", "build", "--no-isolation", *flags, "--outdir", out, tree),
        PYTHONDONTWRITEBYTECODE="1",
        **env,
    )
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the checkout, since a build writes into its tree."""
    tree = tmp_path_factory.mktemp("copy") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return build(tree, "--sdist")


@pytest.fixture(scope="module")
def wheels(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel for each architecture, built from the sdist alone."""
    folder = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xf", sdist, "-C", folder)
    (tree,) = folder.iterdir()
    return {arch: build(tree, "--wheel", PYSHIM_ARCH=arch) for arch in MACHINES}


@pytest.fixture(params=sorted(MACHINES))
def wheel(request: pytest.FixtureRequest, wheels: dict[str, Path]) -> tuple[str, Path]:
    """An architecture and its wheel."""
    return request.param, wheels[request.param]


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with this machine's wheel; dependencies are those of the tests."""
    made = tmp_path_factory.mktemp("env") / "venv"
    venv.create(made, symlinks=True)
    run(
        *(sys.executable, "-m", "pip", "--python", made / "bin/python", "install", "--quiet"),
        *("--no-deps", "--no-index", wheels[platform.machine()]),
    )
    (packages,) = made.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


# --- The sdist -----------------------------------------------------------------------------------


def test_the_sdist_has_what_a_build_needs_and_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "PKG-INFO"}
    wanted |= {"native/linux.pxd", "native/main.c", "native/python/Python.h"}
    wanted |= {"native/bare.c", "native/bare.h", "native/bare.ld"}
    wanted |= set(hatch_build.PROGRAMS.values())
    wanted |= {str(Path(name).with_suffix(".pxd")) for name in hatch_build.PROGRAMS.values()}
    assert wanted - names == set()
    assert {name for name in names if name.startswith(("build", "tests", "bench"))} == set()
    assert "pyshim/_build.py" not in names


# --- The wheel -----------------------------------------------------------------------------------


def test_the_wheel_is_for_a_platform_and_for_any_python(wheel: tuple[str, Path]) -> None:
    arch, path = wheel
    assert path.name.endswith(f"-py3-none-manylinux2014_{arch}.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        about = archive.read(name).decode()
    assert "Root-Is-Purelib: false" in about
    assert f"Tag: py3-none-manylinux2014_{arch}\n" in about


def test_the_wheel_has_the_native_programs_as_scripts(
    wheel: tuple[str, Path], tmp_path: Path
) -> None:
    arch, path = wheel
    with zipfile.ZipFile(path) as archive:
        scripts = {i.filename.rpartition("/")[2]: i for i in archive.infolist() if is_script(i)}
        assert sorted(scripts) == sorted(NATIVE)
        for name, info in scripts.items():
            assert info.external_attr >> 16 & EXECUTABLE == EXECUTABLE, name
            data = archive.read(info)
            (tmp_path / name).write_bytes(data)
            assert struct.unpack_from("<H", data, 18) == (MACHINES[arch],), name
            assert b"Py_" not in data and b"PyObject" not in data, name
            # 64 bits and static, or it would say so; and stripped.
            with pytest.raises(BuildError, match="no symbol table"):
                hatch_build.check_binary(tmp_path / name)


def is_script(info: zipfile.ZipInfo) -> bool:
    """Whether an installer puts this member on PATH."""
    return ".data/scripts/" in info.filename


def test_the_wheel_has_the_commands_and_says_of_what_it_was_built(
    wheel: tuple[str, Path],
) -> None:
    _, path = wheel
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (name,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        parser = ConfigParser()
        parser.read_string(archive.read(name).decode())
        stamp = archive.read("pyshim/_build.py").decode()
    assert sorted(parser["console_scripts"]) == sorted(CONSOLE)
    assert len(names) == len(set(names))
    assert f'BUILD_ID = "{hatch_build.build_id(ROOT)}"' in stamp


# --- Installed -----------------------------------------------------------------------------------


def test_pip_puts_all_commands_on_path(environment: Path) -> None:
    for name in (*NATIVE, *CONSOLE):
        assert shutil.which(name, path=str(environment / "bin")), name


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("pyinit --version", "pyinit {version}\n"),
        ("portproxy-relay --version", "{version}"),
        ("containerd-shim-pyshim-v2 -v", "  Version:  {version}\n  Revision: {build}\n"),
        ("pyshim-monitor --version", "pyshim-monitor {version} {build}\n"),
        ("pyshim --version", "pyshim {version}\n"),
        ("portproxy --version", "portproxy {version}\n"),
        ("python -I -c 'import pyshim;print(pyshim.__file__)'", "{environment}/"),
    ],
)
def test_installed_commands_say_their_version(
    environment: Path, command: str, expected: str
) -> None:
    printed = run("sh", "-c", f"{environment}/bin/{command}")
    values = {"version": hatch_build.version(ROOT), "build": hatch_build.build_id(ROOT)}
    assert expected.format(environment=environment, **values) in printed


# --- What a build refuses ------------------------------------------------------------------------


def test_a_dynamic_program_is_refused() -> None:
    with pytest.raises(BuildError, match="/bin/ls: has a dynamic section"):
        hatch_build.check_binary(Path("/bin/ls"))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01" + bytes(100)])
def test_what_is_no_64_bit_elf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "program").write_bytes(content)
    with pytest.raises(BuildError, match="not a 64-bit ELF file"):
        hatch_build.check_binary(tmp_path / "program")


def test_a_symbol_of_the_python_runtime_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "program.c"
    source.write_text(
        '__attribute__((noinline)) void PyErr_Touch(void) { __asm__ volatile(""); }\n'
        "int program_main(int argc, char **argv) { PyErr_Touch(); return 0; }\n"
    )
    with pytest.raises(BuildError, match="reaches the Python runtime: PyErr_Touch"):
        hatch_build.compile_and_link(source, tmp_path / "program", "x86_64")
    assert not (tmp_path / "program").exists()


def tiny(folder: Path, body: str, declared: str = "noexcept nogil") -> Path:
    """The C of a program whose main does ``body`` and ends with 3."""
    (folder / "tiny.py").write_text(f"def program_main(argc, argv):\n    {body}\n    return 3\n")
    declaration = f"cdef public int program_main(int argc, char **argv) {declared}\n"
    (folder / "tiny.pxd").write_text(declaration)
    hatch_build.translate(folder / "tiny.py", folder / "tiny.c")
    return folder / "tiny.c"


def test_cython_that_touches_no_object_is_built(tmp_path: Path) -> None:
    hatch_build.compile_and_link(tiny(tmp_path, "argc += 1"), tmp_path / "tiny", "x86_64")
    assert subprocess.run([tmp_path / "tiny"], check=False, timeout=RUN_BOUND_S).returncode == 3


def test_cython_that_touches_an_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="gil"):
        tiny(tmp_path, "print(argc)")
    source = tiny(tmp_path, "print(argc)", "noexcept")
    with pytest.raises(BuildError, match="Py"):
        hatch_build.compile_and_link(source, tmp_path / "tiny", "x86_64")
    assert not (tmp_path / "tiny").exists()
