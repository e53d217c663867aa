"""Newer containerd and dockerd, from Debian's other suites, in a cache folder.

The packages come from the mirror that this machine's apt uses, are verified with the keyring that
it names for it, and are unpacked, never installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

BOUND_S = 240
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unreachable(Exception):
    """A peer cannot be had: no mirror, no network, no such package."""


@dataclass(frozen=True)
class Peer:
    """Packages of one suite."""

    suite: str
    packages: tuple[str, ...]


TRIXIE = Peer("trixie", ("containerd",))
SID = Peer("sid", ("containerd", "docker.io", "docker-cli"))


def cache() -> Path:
    """The folder that keeps what was fetched."""
    if named := os.environ.get("PYSHIM_PEERS"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pyshim-peers"


def fetch(peer: Peer) -> dict[str, Path]:
    """The folders that the peer's packages are unpacked in, by package.

    The newest version that the mirror has; with no network, the newest that was fetched before.
    Raises Unreachable.
    """
    try:
        return _from_mirror(peer)
    except (OSError, subprocess.SubprocessError, Unreachable) as error:
        if kept := _kept(peer):
            return kept
        raise Unreachable(f"Debian {peer.suite} cannot be fetched: {_reason(error)}") from error


def programs(folders: dict[str, Path]) -> list[str]:
    """What goes in front of PATH for unpacked packages."""
    found = []
    for folder in folders.values():
        found += [str(f) for f in (folder / "usr/bin", folder / "usr/sbin") if f.is_dir()]
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        return lines[-1] if lines else str(error)
    return str(error)


def _mirror() -> tuple[str, Path]:
    """The Debian mirror of this machine's sources, and the keyring that verifies it."""
    wanted = ["Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main"]
    line = "$(REPO_URI) $(SIGNED_BY)"
    for found in _run("apt-get", "indextargets", "--format", line, *wanted).splitlines():
        uri, _, keyring = found.partition(" ")
        if uri.startswith(("http", "file:", "copy:", "mirror")):
            return uri, Path(keyring) if keyring.startswith("/") else KEYRING
    raise Unreachable("no source of this machine's apt is a Debian mirror")


def _from_mirror(peer: Peer) -> dict[str, Path]:
    uri, keyring = _mirror()
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".fetching-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = folder / "sources.list"
        source.write_text(f"deb [signed-by={keyring}] {uri} {peer.suite} main\n")
        for needed in ("lists/partial", "archives/partial", "debs"):
            (folder / needed).mkdir(parents=True)
        apt = _options(folder)
        _run("apt-get", *apt, "update", "--quiet=2", "--error-on=any")
        return {name: _unpacked(peer, name, folder, apt) for name in peer.packages}


def _options(folder: Path) -> list[str]:
    """What has apt use ``folder`` and neither the machine's sources nor its caches."""
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _unpacked(peer: Peer, package: str, folder: Path, apt: list[str]) -> Path:
    """The folder of the package's present version, which is fetched if it is not there yet."""
    shown = _run("apt-cache", *apt, "show", "--no-all-versions", package)
    found = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
    if not found:
        raise Unreachable(f"{peer.suite} has no {package}")
    target = cache() / f"{peer.suite}_{package}_{found[1]}"
    if target.is_dir():
        return target
    debs = folder / "debs"
    _run("apt-get", *apt, "--quiet=2", "download", package, cwd=debs)
    (deb,) = debs.glob(f"{package}_*.deb")
    made = folder / package
    _run("dpkg", "-x", str(deb), str(made))
    try:
        made.rename(target)
    except OSError:  # another run was quicker
        if not target.is_dir():
            raise
    return target


def _kept(peer: Peer) -> dict[str, Path]:
    """What an earlier run fetched; empty when a package is missing."""
    found: dict[str, Path] = {}
    for package in peer.packages:
        versions = list(cache().glob(f"{peer.suite}_{package}_*"))
        if not versions:
            return {}
        found[package] = max(versions, key=lambda path: path.stat().st_ctime)
    return found


def _run(*command: str, cwd: Path | None = None) -> str:
    if not shutil.which(command[0]):
        raise Unreachable(f"{command[0]} is not here")
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=BOUND_S, check=True
    )
    return done.stdout
