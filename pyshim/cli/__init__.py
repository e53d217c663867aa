"""The ``pyshim`` command for people; nothing that containerd waits for imports it."""

from __future__ import annotations

import sys

import click

from pyshim import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


def main() -> None:
    """The console script."""
    from pyshim.cli import errors

    errors.run(group, "pyshim")
