"""The ``pyshim`` command for people; nothing that containerd waits for imports it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pyshim import __version__

F = TypeVar("F", bound=Callable[..., Any])


def no_nan(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuses what compares with no bound, and so is within all.  Raises BadParameter."""
    if math.isnan(value):
        raise click.BadParameter(f"{value} is no number", ctx, param)
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="pyshim %(version)s")
def group() -> None:
    """Container process supervisor: a containerd shim, an init and a port proxy."""


@group.command()
def demo() -> None:
    """Run a container through containerd, pyshim, pyinit and portproxy, and check each step."""
    from pyshim.cli.demo import run
    from pyshim.cli.stage import Failed, Interrupted

    try:
        run()
    except (Failed, OSError) as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except Interrupted as interrupt:
        click.echo("demo: interrupted; everything has been removed", err=True)
        sys.exit(128 + interrupt.number)


def where(command: F) -> F:
    """The options of whatever changes this host."""
    folder = click.Path(path_type=Path)
    options = [
        click.option("--dry-run", is_flag=True, help="Show all changes, and make none."),
        click.option(
            "--bin-dir",
            type=folder,
            default="/usr/local/bin",
            show_default=True,
            help="The folder on containerd's PATH for the shim.",
        ),
        click.option(
            "--note",
            type=folder,
            default="/etc/pyshim/interpreter",
            show_default=True,
            help="Where the shim reads which Python has pyshim.",
        ),
        click.option(
            "--containerd-config",
            type=folder,
            default="/etc/containerd/config.toml",
            show_default=True,
            help="containerd's configuration.",
        ),
        click.option("--no-containerd", is_flag=True, help="Leave containerd's configuration."),
        click.option(
            "--docker-config",
            type=folder,
            default="/etc/docker/daemon.json",
            show_default=True,
            help="Docker's configuration.",
        ),
        click.option("--no-docker", is_flag=True, help="Leave Docker's configuration."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@group.command()
@where
@click.option(
    "--containerd-address",
    default="/run/containerd/containerd.sock",
    show_default=True,
    help="The socket of the containerd whose PATH is looked at.",
)
@click.option("--default-runtime", is_flag=True, help="Make it Docker's default runtime (23+).")
@click.option(
    "--replace-runc-shim",
    is_flag=True,
    help="Also give it the name of containerd's own shim: for Docker 20.10, and whatever else"
    " cannot be told to use another.",
)
def install(
    no_containerd: bool, no_docker: bool, dry_run: bool, **given: Path | str | bool
) -> None:
    """Put the shim where containerd finds it, and tell containerd and Docker of it.

    What was there before is kept in files that end in .before-pyshim. A second run changes nothing,
    `pyshim uninstall` undoes it, and no daemon is restarted.
    """
    from pyshim.cli import installation

    choice = installation.Choice(**_without(given, no_containerd, no_docker))
    installation.install(choice, dry_run=dry_run)


@group.command()
@where
def uninstall(
    no_containerd: bool, no_docker: bool, dry_run: bool, **given: Path | str | bool
) -> None:
    """Undo what `pyshim install` has done; edits that others have made since then stay."""
    from pyshim.cli import installation

    choice = installation.Choice(**_without(given, no_containerd, no_docker))
    installation.uninstall(choice, dry_run=dry_run)


def _without(
    given: dict[str, Path | str | bool], no_containerd: bool, no_docker: bool
) -> dict[str, Any]:
    """``given`` without the configurations that are to be left alone."""
    left = {"containerd_config": no_containerd, "docker_config": no_docker}
    return {name: None if left.get(name) else value for name, value in given.items()}


@group.command()
@click.option(
    "--containerd-address",
    default="/run/containerd/containerd.sock",
    show_default=True,
    help="containerd's socket.",
)
@click.option(
    "--docker-socket", default="/run/docker.sock", show_default=True, help="Docker's socket."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def doctor(containerd_address: str, docker_socket: str, as_json: bool) -> None:
    """Check whether this host can run containers under pyshim, and say what is missing.

    Exits with 1 when something essential is missing.
    """
    from pyshim.cli.doctor import run

    sys.exit(run(containerd_address, docker_socket, as_json=as_json))


@group.command()
@click.argument("which", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Only say what would be upgraded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=86400),
    callback=no_nan,
    default=120,
    show_default=True,
    help="Seconds for each container or pod; what is not upgraded by then goes on as it was.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many are upgraded at once.",
)
def upgrade(
    which: tuple[str, ...], dry_run: bool, as_json: bool, timeout: float, jobs: int
) -> None:
    """Have this version take over all containers that run under another one.

    The containers are not touched: their processes, streams and connections go on. One that the new
    version cannot take over stays with the old one. Exits with 1 when there is such a one.

    WHICH are patterns for namespace/id or a bundle's path, such as 'k8s.io/*'; without one, all.
    """
    from pyshim.cli.upgrade import run

    sys.exit(run(which, dry_run=dry_run, as_json=as_json, timeout_s=timeout, jobs=jobs))


def main() -> None:
    """The console script."""
    from pyshim.cli import errors

    errors.run(group, "pyshim")
