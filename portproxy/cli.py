"""The ``portproxy`` command: forwards ports, and asks a portproxy that does.

No byte of a connection passes through Python.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from portproxy.api import DEFAULT_PATH, ApiError, ask
from portproxy.mapping import MappingError
from portproxy.settings import SettingError, milliseconds
from pyshim.cli import errors

EXIT_FAILED = 1
EXIT_USAGE = 2
Json = dict[str, Any]

control_option = click.option(
    "--control",
    "path",
    default=DEFAULT_PATH,
    show_default=True,
    metavar="PATH",
    help="The socket of the portproxy to ask.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
set_option = click.option(
    "--set", "options", multiple=True, metavar="NAME=VALUE", help="A setting of the mapping."
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-p",
    "--publish",
    "texts",
    multiple=True,
    metavar="[BIND:]PORT[-PORT]:HOST:PORT[-PORT][/tcp|udp|sctp|both]",
    help="Forward PORT of this machine to PORT of HOST. IPv6 addresses go in brackets; port 0 "
    "lets the system choose; unix:PATH stands on both sides, fd:NAME for a socket of systemd's, "
    "netns:NAME! before a host. Can be given more than once.",
)
@set_option
@click.option("--config", "config_path", metavar="FILE.toml", help="Forward what a file names.")
@click.option("--control", "path", metavar="PATH", help="Where to listen for status, add, rm …")
@click.option("--container-pid", metavar="PID[:IFACE]", help="Forward to this process's address.")
@click.option("--mode", type=click.Choice(["user", "auto", "nft"]), help="Who forwards.")
@click.option("--loopback", is_flag=True, help="The kernel forwards 127.0.0.0/8, too (see --mode).")
@click.option("--user", metavar="USER", help="As whom the data plane runs (nobody).")
@click.option("--workers", metavar="N", help="How many processes the data plane is.")
@click.option("--metrics", metavar="ADDRESS:PORT", help="Where Prometheus finds the counters.")
@click.option("--access-log", metavar="FILE", help="One line for each connection; - is stdout.")
@click.option("--drain", metavar="TIME", help="How long connections may outlive SIGTERM.")
@click.option("--exit-on-idle", metavar="TIME", help="End when nobody has been there so long.")
@click.option("--no-seccomp", is_flag=True, help="Do not filter the data plane's system calls.")
@click.version_option(package_name="pyshim", message="portproxy %(version)s")
@click.pass_context
def command(context: click.Context, /, texts: tuple[str, ...], **options: object) -> None:
    """Forward ports of this machine to other addresses, until SIGTERM or Ctrl-C."""
    if context.invoked_subcommand is not None:
        if texts or any(value for name, value in options.items() if name != "path"):
            raise click.UsageError(f"{context.invoked_subcommand} takes its options behind it")
        return
    _serve(texts, options)


def _serve(texts: tuple[str, ...], options: Json) -> None:
    """Runs the service."""
    from portproxy.config import Config, ConfigError, is_endpoint, load
    from portproxy.service import Service, ServiceError
    from portproxy.spec import make

    each: Json = _settings(options["options"])
    each |= {n: options[n] for n in ("mode", "loopback", "container_pid") if options[n]}
    config_path = options["config_path"] or ""
    try:
        config = load(config_path) if config_path else Config(drain_ms=0)
        specs = [spec for text in texts for spec in make(text, each, "-p")]
        given = {name: options[name] for name in ("user", "metrics", "access_log")}
        given = {name: value for name, value in given.items() if value}
        if "metrics" in given and not is_endpoint(given["metrics"]):
            _leave(f"--metrics {given['metrics']}: give ADDRESS:PORT or a path", EXIT_USAGE)
        if options["workers"]:
            given["workers"] = _workers(options["workers"])
        for option, name in (("drain", "drain_ms"), ("exit_on_idle", "exit_idle_ms")):
            if options[option]:
                given[name] = milliseconds(options[option])
    except (ConfigError, MappingError, SettingError) as error:
        _leave(str(error), EXIT_USAGE)
    if not specs and not config_path:
        _leave("nothing to forward; name a port, as in -p 8080:10.0.0.2:80", EXIT_USAGE)
    if options["no_seccomp"]:
        given["seccomp"] = False
    config = replace(config, **given)
    path = options["path"] or (DEFAULT_PATH if config_path else "")
    if path:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = Service(
        config, path, config_path, lambda line: click.echo(f"listening on {line}"), specs, given
    )
    try:
        _run(service.run())
    except ServiceError as error:
        _leave(str(error), EXIT_FAILED)


def _workers(text: str) -> int:
    """How many there are to be."""
    from portproxy.config import MOST_WORKERS, is_workers

    if not text.isdecimal() or not is_workers(int(text)):
        _leave(f"--workers {text}: give a number from 1 to {MOST_WORKERS}", EXIT_USAGE)
    return int(text)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Runs the loop: uvloop's."""
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _settings(words: tuple[str, ...]) -> Json:
    """``NAME=VALUE`` words as settings."""
    found: Json = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(f"--set {word}: give NAME=VALUE")
        found[name] = {"true": True, "false": False}.get(value, value)
    return found


def main() -> None:
    """The console script."""
    errors.run(command, "portproxy")


def _leave(message: str, code: int) -> NoReturn:
    click.echo(f"portproxy: {message}", err=True)
    sys.stderr.flush()
    sys.exit(code)


def _ask(path: str, request: Json) -> Json:
    try:
        return ask(path, request)
    except ApiError as error:
        _leave(str(error), EXIT_FAILED)


@command.command()
@control_option
@json_option
def status(path: str, as_json: bool) -> None:
    """Show every mapping and its counters; exits with 1 when the service is not ready."""
    answer = _ask(path, {"do": "status"})
    if as_json:
        click.echo(json.dumps(answer))
    else:
        from portproxy import tables

        tables.status(answer)
    if answer["ready"] != "yes":
        sys.exit(EXIT_FAILED)


@command.command()
@control_option
@json_option
def ps(path: str, as_json: bool) -> None:
    """Show every connection."""
    answer = _ask(path, {"do": "ps"})
    if as_json:
        click.echo(json.dumps(answer["connections"]))
    else:
        from portproxy import tables

        tables.connections(answer["connections"])


@command.command()
@control_option
@click.option("--interval", default="2s", show_default=True, metavar="TIME")
@click.option("--once", is_flag=True, help="Show it once and end.")
def top(path: str, interval: str, once: bool) -> None:
    """Show what the connections carry, again and again, until Ctrl-C."""
    from portproxy import tables

    try:
        wait_s = milliseconds(interval) / 1000
    except SettingError as error:
        raise click.UsageError(f"--interval: {error}") from error
    tables.top(lambda: _ask(path, {"do": "ps"})["connections"], wait_s, once)


@command.command()
@click.argument("publish")
@set_option
@control_option
@json_option
def add(publish: str, options: tuple[str, ...], path: str, as_json: bool) -> None:
    """Forward one more port (PUBLISH is what -p takes)."""
    answer = _ask(path, {"do": "add", "publish": publish, "options": _settings(options)})
    if as_json:
        click.echo(json.dumps(answer))
        return
    for line in answer["added"]:
        click.echo(f"listening on {line}")
    for title, port, reason in answer["failed"]:
        click.echo(f"{title}: port {port} is left out: {reason}", err=True)


@command.command()
@click.argument("publish")
@control_option
@json_option
def rm(publish: str, path: str, as_json: bool) -> None:
    """Stop forwarding: PUBLISH is a name or a listener; its connections are closed."""
    _removed(_ask(path, {"do": "rm", "publish": publish}), as_json)


@command.command()
@click.argument("publish")
@control_option
@json_option
def drain(publish: str, path: str, as_json: bool) -> None:
    """Stop listening: the connections that are there go on until they end."""
    _removed(_ask(path, {"do": "drain", "publish": publish}), as_json)


def _removed(answer: Json, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
        return
    for key in answer["removed"]:
        click.echo(f"no longer listening on {key}")


@command.command()
@control_option
@json_option
def reload(path: str, as_json: bool) -> None:
    """Read the file again; with a mistake in it nothing changes."""
    answer = _ask(path, {"do": "reload"})
    if as_json:
        click.echo(json.dumps(answer))
        return
    counts = [f"{len(answer[what])} {what}" for what in ("added", "changed", "removed")]
    click.echo(f"reloaded: {', '.join(counts)}")


@command.command()
@click.argument("serial", metavar="ID")
@control_option
def kill(serial: str, path: str) -> None:
    """Reset one connection, by the ID that ps shows."""
    _ask(path, {"do": "kill", "serial": int(serial) if serial.isdecimal() else serial})


@command.command("nft-dump")
@click.option("--config", "config_path", required=True, metavar="FILE.toml")
def nft_dump(config_path: str) -> None:
    """Print, in nft's language, what the kernel would get for a file."""
    from portproxy.config import ConfigError, load
    from portproxy.localnet import Links, ways_to
    from portproxy.nft import forwards, obstacle, ruleset

    try:
        config = load(config_path)
    except ConfigError as error:
        _leave(str(error), EXIT_USAGE)
    specs = [spec.resolved(spec.mapping.host) for spec in config.specs if spec.mode != "user"]
    # Where nothing is looked up, a host with a name is left out.
    specs = [spec for spec in specs if not re.search("[g-z]", spec.address)]
    wanted = [each for spec in specs if not obstacle(spec) for each in forwards(spec)]
    ways = ways_to({each.address for each in wanted if each.loopback})
    links = Links(tuple(sorted({way.interface for way in ways.values()} - {""})))
    click.echo(ruleset(f"portproxy_{os.getpid()}", wanted, links))
