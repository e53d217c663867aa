"""What goes wrong, told in one line, for both commands that people type."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PROBLEM = 1


class Problem(Exception):
    """What was being done, to what, and what to try; its text is one line."""


def run(command: click.Command, name: str) -> NoReturn:
    """Runs ``command`` with the process's arguments and ends the process.

    What click would print in several lines becomes ``name: what is wrong; what to do``.
    """
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        sys.exit(EXIT_USAGE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        problem = error.format_message().rstrip(".").replace("\n", " ")
        click.echo(f"{name}: {problem}; see {path} --help", err=True)
        sys.exit(EXIT_USAGE)
    except Problem as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(EXIT_PROBLEM)
    except click.Abort:
        click.echo(f"{name}: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
