"""`pyshim install` and `pyshim uninstall`: what is to be changed on this host, and its changes.

All is worked out, and refused where it cannot be, before anything is changed.  No daemon is ever
restarted: what is left to do is said.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

from pyshim.cli import changes, containerd_config, daemons, docker_config
from pyshim.cli.changes import Change
from pyshim.cli.containerd_config import ConfigError, Edit
from pyshim.cli.errors import Problem

PROGRAM = "containerd-shim-pyshim-v2"
RUNC_PROGRAM = "containerd-shim-runc-v2"
NOTE = "/etc/pyshim/interpreter"
# Every version of our launcher names it, and nobody else's.
MARK = NOTE.encode()
NEWEST_DOCKER = docker_config.FIRST_WITH_RUNTIME_TYPE
FIRST_CONTAINERD_WITH_NEW_NAMES = 2


@dataclass(frozen=True)
class Choice:
    """What the command line says; None for a configuration that is to be left alone."""

    bin_dir: Path
    note: Path
    containerd_config: Path | None
    docker_config: Path | None
    containerd_address: str = daemons.CONTAINERD_SOCKET
    default_runtime: bool = False
    replace_runc_shim: bool = False


@dataclass
class Plan:
    """What to change, what to say of it, and what is left to do."""

    changes: list[Change] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    left_to_do: list[str] = field(default_factory=list)

    def change(self, changes: list[Change], left_to_do: str = "") -> None:
        """Adds changes, and what is to be done when there are any."""
        self.changes += changes
        if changes and left_to_do:
            self.left_to_do.append(left_to_do)


def install(choice: Choice, *, dry_run: bool) -> None:
    """Makes or shows the changes.  Raises Problem."""
    plan = _planned(choice, _add_launcher, _add_configs)
    _carry_out(plan, dry_run=dry_run)


def uninstall(choice: Choice, *, dry_run: bool) -> None:
    """Undoes what ``install`` has done.  Raises Problem."""
    plan = _planned(choice, _remove_configs, _remove_launcher)
    _carry_out(plan, dry_run=dry_run)
    if not dry_run and choice.note.parent.is_dir() and not any(choice.note.parent.iterdir()):
        choice.note.parent.rmdir()


def _planned(choice: Choice, *steps: Callable[[Plan, Choice], None]) -> Plan:
    """The plan that all steps add to; raises Problem, also for what we may not even look at."""
    plan = Plan()
    try:
        for step in steps:
            step(plan, choice)
    except OSError as error:
        hint = changes.hint(error)
        raise Problem(f"cannot read {error.filename}: {error.strerror}; {hint}") from None
    return plan


def _carry_out(plan: Plan, *, dry_run: bool) -> None:
    for remark in plan.remarks:
        click.echo(remark)
    if not plan.changes:
        click.echo("nothing to do")
        return
    for change in plan.changes:
        for line in changes.shown(change).splitlines():
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            click.echo(click.style(line, fg=colour))
    if dry_run:
        click.echo("nothing has been changed: this was a dry run")
        return
    changes.make(plan.changes)
    for line in plan.left_to_do:
        click.echo(f"left to do: {line}")


# --- The launcher --------------------------------------------------------------------------------


def _add_launcher(plan: Plan, choice: Choice) -> None:
    """Puts the launcher where containerd finds it, and notes which interpreter it belongs to."""
    source = launcher()
    _check_search_path(plan, choice)
    names = [PROGRAM, RUNC_PROGRAM] if choice.replace_runc_shim else [PROGRAM]
    data = changes.content(source)
    for name in names:
        path = choice.bin_dir / name
        if path.exists() and path.samefile(source):
            continue  # this environment's scripts lie there
        found = changes.content(path)
        if found is not None and MARK not in found:
            if name == PROGRAM:
                raise Problem(f"{path} is no launcher of pyshim; move it away first")
            plan.change(changes.replaced(path, found, data))
        elif found != data:
            plan.change([Change(path, found, data, mode=changes.MODE_OF_PROGRAM)])
        note = f"{interpreter()}\n".encode()
        if not any(change.path == choice.note for change in plan.changes):
            plan.change(changes.replaced(choice.note, changes.content(choice.note), note))


def launcher() -> Path:
    """The launcher of this environment.  Raises Problem."""
    beside = Path(sys.executable).parent / PROGRAM
    found = beside if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise Problem(f"{PROGRAM} is neither at {beside} nor on PATH; reinstall pyshim")
    return Path(found)


def interpreter() -> Path:
    """This interpreter, by the name that the launcher beside it would take."""
    usual = Path(sys.executable).with_name("python3")
    return usual if usual.exists() else Path(sys.executable)


def _check_search_path(plan: Plan, choice: Choice) -> None:
    """Sees to it that containerd, as it runs or would by systemd, looks into our folder."""
    if not choice.bin_dir.is_dir():
        raise Problem(f"{choice.bin_dir} is no folder; make it, or choose another with --bin-dir")
    daemon = daemons.running(choice.containerd_address)
    path = daemon.path if daemon else daemons.SERVICE_PATH
    folders = [Path(name).resolve() for name in path.split(os.pathsep) if name]
    ours = choice.bin_dir.resolve()
    if ours not in folders:
        if daemon:
            raise Problem(
                f"{ours} is not on the PATH of containerd (pid {daemon.pid}); choose one of {path}"
                " with --bin-dir"
            )
        plan.remarks.append(f"{ours} must be on containerd's PATH; services have {path}")
        return
    if choice.replace_runc_shim:
        for folder in folders[: folders.index(ours)]:
            if (folder / RUNC_PROGRAM).exists():
                raise Problem(
                    f"{folder / RUNC_PROGRAM} stands earlier on containerd's PATH than {ours};"
                    " choose an earlier folder with --bin-dir"
                )


def _remove_launcher(plan: Plan, choice: Choice) -> None:
    for name in (PROGRAM, RUNC_PROGRAM):
        path = choice.bin_dir / name
        found = changes.content(path)
        if found is None or MARK not in found or path.samefile(launcher()):
            continue
        plan.change(changes.restored(path, found, changes.content(changes.kept(path))))
    note = changes.content(choice.note)
    if note is not None and (plan.changes or note == f"{interpreter()}\n".encode()):
        plan.change(changes.restored(choice.note, note, changes.content(changes.kept(choice.note))))


# --- The configurations --------------------------------------------------------------------------


def _add_configs(plan: Plan, choice: Choice) -> None:
    if choice.containerd_config is not None:
        version = daemons.version_of(daemons.installed("containerd"))
        made = containerd_config.OLDEST_VERSION
        if version and version.major >= FIRST_CONTAINERD_WITH_NEW_NAMES:
            made = containerd_config.FIRST_WITH_NEW_NAMES
        edit = _editor(plan, choice.containerd_config, RESTART_CONTAINERD)
        edit(lambda text: containerd_config.install(text, made))
    if choice.docker_config is not None:
        version = daemons.version_of(daemons.installed("dockerd"))
        if version is None and not choice.docker_config.exists():
            plan.remarks.append("Docker is not here")
            return
        major = version.major if version else NEWEST_DOCKER
        edit = _editor(plan, choice.docker_config, RELOAD_DOCKER)
        edit(lambda text: docker_config.install(text, major, default=choice.default_runtime))


def _remove_configs(plan: Plan, choice: Choice) -> None:
    if choice.containerd_config is not None and choice.containerd_config.exists():
        edit = _editor(plan, choice.containerd_config, RESTART_CONTAINERD, back=True)
        edit(lambda text: containerd_config.uninstall(text or ""))
    if choice.docker_config is not None and choice.docker_config.exists():
        before = changes.content(changes.kept(choice.docker_config.resolve()))
        old = before.decode() if before is not None else None
        edit = _editor(plan, choice.docker_config, RELOAD_DOCKER, back=True)
        edit(lambda text: docker_config.uninstall(text or "", old))


RESTART_CONTAINERD = "systemctl restart containerd    (containers run on)"
RELOAD_DOCKER = "systemctl reload docker"


def _editor(
    plan: Plan, path: Path, left_to_do: str, *, back: bool = False
) -> Callable[[Callable[[str | None], Edit]], None]:
    """What takes an edit of a text and plans it for the file ``path``; raises Problem."""
    target = path.resolve()  # who has made it a link wants it to stay one
    data = changes.content(target)

    def edit(how: Callable[[str | None], Edit]) -> None:
        try:
            text = data.decode() if data is not None else None
            wanted = how(text)
        except UnicodeDecodeError:
            raise Problem(f"{path}: it is no UTF-8; correct it first") from None
        except ConfigError as error:
            raise Problem(f"{path}: {error}") from None
        if wanted.said:
            plan.remarks.append(f"{path}: {wanted.said}")
        after = wanted.text.encode() if wanted.text is not None else None
        change = changes.restored if back else changes.replaced
        plan.change(change(target, data, after), left_to_do)

    return edit
