"""The tool while it runs: asked, changed, reloaded, drained, killed and started again."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import plain_only
from tests.integration.relays import BOUND_S, eventually, free_port
from tests.integration.test_portproxy import gone
from tests.integration.tool import Tool, echo, says

Run = Callable[..., Tool]
# The relay's side of it is tried with sanitizers in test_portproxy_relay.py.
pytestmark = plain_only


@pytest.fixture(params=["1", "3"])
def run(programs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """Starts a tool that can be asked, with the text of its file, and waits until it serves.

    It has one worker, and once more several.
    """
    started: list[Tool] = []

    def start(text: str = "", *options: str, wait: bool = True) -> Tool:
        file = tmp_path / "ports.toml"
        if text:
            file.write_text(text)
        words = ["--config", str(file)] if file.exists() else []
        words += ["--workers", request.param]
        tool = Tool(programs, *words, *options, control=tmp_path / "control")
        started.append(tool)
        if wait:
            tool.line()
        return tool

    yield start
    for tool in started:
        tool.end()


def mapping(port: int, to: int, *more: str) -> str:
    """One ``[[mapping]]``."""
    return "\n".join(["[[mapping]]", f'publish = "127.0.0.1:{port}:127.0.0.1:{to}"', *more, ""])


def connected(port: int) -> socket.socket:
    """A client whose backend has said its name."""
    client = socket.create_connection(("127.0.0.1", port), BOUND_S)
    assert client.recv(1) != b""
    return client


def echoes(client: socket.socket) -> bool:
    """Whether a connection still carries bytes both ways."""
    client.sendall(b"?")
    return client.recv(1) == b"?"


def refused(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_add_and_rm(run: Run) -> None:
    with echo("a") as a, echo("b") as b:
        tool = run(mapping(0, a.port))
        said = tool.ask("add", f"127.0.0.1:0:127.0.0.1:{b.port}", "--set", "name=second")
        port = int(said.partition(" -> ")[0].rpartition(":")[2])
        with connected(port) as client:
            assert echoes(client)
            assert {m["title"] for m in tool.status()["mappings"]} >= {"second"}
            assert "no longer listening" in tool.ask("rm", "second")
            assert client.recv(1) == b""
        assert refused(port)
        assert "nothing is forwarded from 'second'" in tool.ask("rm", "second", code=1)


def test_what_cannot_be_added_changes_nothing(run: Run) -> None:
    with echo("a") as a:
        tool = run(mapping(0, a.port))
        before = tool.status()["mappings"]
        for publish, reason in (
            (f"127.0.0.1:{a.port}:127.0.0.1:1", "address already in use"),
            ("nonsense", "parts"),
            ("1:netns:nowhere!127.0.0.1:1", "there is no namespace"),
        ):
            error = tool.ask("add", publish, code=1)
            assert reason in error
            assert error.count("\n") == 1
        assert tool.status()["mappings"] == before


def test_a_drained_mapping_keeps_its_connections(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port))
        with connected(port) as client:
            tool.ask("drain", f"127.0.0.1:{port}")
            assert refused(port)
            assert echoes(client)
            assert [m["state"] for m in tool.status()["mappings"]] == ["draining"]
        eventually(lambda: tool.status()["mappings"] == [], "the last connection ends it")


def test_connections_are_shown_and_killed(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port))
        with connected(port) as client:
            assert echoes(client)
            (found,) = json.loads(tool.ask("ps", "--json"))
            assert (found["client"], found["client_port"]) == client.getsockname()
            assert (found["backend"], found["phase"]) == (f"127.0.0.1:{a.port}", "open")
            assert (found["up"], found["down"]) == (1, 2)
            assert found["rtt_us"] > 0
            assert f"127.0.0.1:{client.getsockname()[1]}" in tool.ask("ps")
            assert str(a.port) in tool.ask("top", "--once", "--interval", "10ms")
            tool.ask("kill", str(found["serial"]))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert "no such connection" in tool.ask("kill", "999", code=1)


def test_a_reload_follows_the_file(run: Run, tmp_path: Path) -> None:
    with echo("a") as a, echo("b") as b:
        stays, changes, goes, comes = (free_port() for _ in range(4))
        common = mapping(stays, a.port) + mapping(changes, a.port)
        tool = run(common + mapping(goes, a.port))
        with connected(stays) as kept, connected(changes) as old, connected(goes) as leaving:
            (tmp_path / "ports.toml").write_text(
                mapping(stays, a.port)
                + mapping(changes, b.port, 'idle_timeout = "1h"')
                + mapping(comes, b.port)
            )
            assert tool.ask("reload") == "reloaded: 1 added, 1 changed, 1 removed\n"
            assert [says(("127.0.0.1", p)) for p in (stays, changes, comes)] == ["a", "b", "b"]
            assert refused(goes)
            assert echoes(kept)
            assert echoes(old)
            assert echoes(leaving)


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_reload_that_fails_changes_nothing_and_names_the_line(
    run: Run, tmp_path: Path, by_signal: bool
) -> None:
    with echo("a") as a:
        stays, comes = free_port(), free_port()
        tool = run(mapping(stays, a.port))
        before = tool.status()["mappings"]
        file = tmp_path / "ports.toml"
        # The first of the new mappings could be had; the second has a port that is taken.
        file.write_text(mapping(comes, a.port) + mapping(a.port, a.port))
        if by_signal:
            tool.process.send_signal(signal.SIGHUP)
            eventually(lambda: tool.status()["failed_reloads"] == 1, "it has tried")
        else:
            error = tool.ask("reload", code=1)
            assert error.startswith(f"portproxy: {file}:3: cannot listen on 127.0.0.1:{a.port}: ")
        assert refused(comes)
        assert says(("127.0.0.1", stays)) == "a"
        after = tool.status()["mappings"]
        assert [m["serial"] for m in after] == [m["serial"] for m in before]
        file.write_text(mapping(stays, a.port, 'nodelay = "perhaps"'))
        assert tool.ask("reload", code=1).startswith(f"portproxy: {file}:3: nodelay")


def test_reloads_under_load_lose_no_connection(run: Run, tmp_path: Path) -> None:
    with echo("a") as a, echo("b") as b:
        port = free_port()
        tool = run(mapping(port, a.port))
        stop = threading.Event()
        broken: list[BaseException] = []

        def talk() -> None:
            try:
                with connected(port) as client:
                    while not stop.is_set():
                        assert echoes(client)
            except BaseException as error:
                broken.append(error)

        threads = [threading.Thread(target=talk) for _ in range(20)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(4):
                to = b.port if turn % 2 == 0 else a.port
                more = mapping(0, to) if turn % 2 == 0 else ""
                (tmp_path / "ports.toml").write_text(mapping(port, to) + more)
                tool.ask("reload")
                assert says(("127.0.0.1", port)) == ("b" if turn % 2 == 0 else "a")
        finally:
            stop.set()
            for thread in threads:
                thread.join(BOUND_S)
        assert broken == []


def test_what_needs_a_capability_that_was_given_up_is_refused(run: Run) -> None:
    with echo("a") as a:
        tool = run(mapping(0, a.port))
        error = tool.ask("add", f"127.0.0.1:0:127.0.0.1:{a.port}", "--set", "mark=7", code=1)
        assert "needs CAP_NET_ADMIN" in error
        tool.stop()
        port = free_port()
        run(mapping(port, a.port, "mark = 7"))
        assert says(("127.0.0.1", port)) == "a"


def test_sighup_reloads(run: Run, tmp_path: Path) -> None:
    with echo("a") as a:
        stays, comes = free_port(), free_port()
        tool = run(mapping(stays, a.port))
        with (tmp_path / "ports.toml").open("a") as file:
            file.write(mapping(comes, a.port))
        tool.process.send_signal(signal.SIGHUP)
        eventually(lambda: not refused(comes), "the new mapping is served")
        assert says(("127.0.0.1", comes)) == "a"


def test_a_killed_control_plane_loses_no_connection(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port))
        relay = tool.status()["relay"]
        with connected(port) as client:
            tool.process.kill()
            tool.process.wait(BOUND_S)
            assert echoes(client)
            assert says(("127.0.0.1", port)) == "a"
            assert "its data plane still serves" in tool.ask("status", code=1)
            again = run()
            status = again.status()
            assert status["relay"] == relay
            assert [m["connections"] for m in status["mappings"]] == [1]
            assert echoes(client)
        assert again.stop()[0] == 0
        eventually(lambda: gone([relay]), "the relay ends with the service")


def test_sigterm_lets_connections_end(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port))
        with connected(port) as client:
            tool.process.send_signal(signal.SIGTERM)
            eventually(lambda: refused(port), "nobody listens any more")
            assert echoes(client)
            assert tool.process.poll() is None
        assert tool.finish() == (0, "")


def test_sigterm_does_not_wait_for_ever(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run('drain = "200ms"\n' + mapping(port, a.port))
        with connected(port) as client:
            assert tool.stop() == (0, "")
            assert client.recv(1) == b""


def test_a_second_service_is_refused(run: Run) -> None:
    with echo("a") as a:
        tool = run(mapping(free_port(), a.port))
        code, error = run(wait=False).finish()
        assert (code, "another portproxy serves" in error) == (1, True)
        assert tool.status()["ready"] == "yes"


def test_metrics_are_what_prometheus_reads(run: Run) -> None:
    with echo("a") as a:
        port, scraped = free_port(), free_port()
        run(f'metrics = "127.0.0.1:{scraped}"\n' + mapping(port, a.port, 'name = "web"'))
        assert says(("127.0.0.1", port)) == "a"
        with connected(port):
            text = fetch(scraped, "/metrics")
        samples = {
            (sample.name, sample.labels.get("le", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("mapping", "web") == "web"
        }
        assert samples["portproxy_accepted_total", ""] == 2
        assert samples["portproxy_connections", ""] == 1
        assert samples["portproxy_up_total", ""] == len("|ping")
        assert samples["portproxy_down_total", ""] == len("a|ping")
        assert samples["portproxy_dial_seconds_count", ""] == 2
        assert samples["portproxy_dial_seconds_bucket", "+Inf"] == 2
        assert samples["portproxy_process_links", ""] == 1
        assert fetch(scraped, "/live") == "live\n"
        assert fetch(scraped, "/ready") == "ready\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(scraped, "/other")


def fetch(port: int, path: str) -> str:
    """What a GET gets."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=BOUND_S) as answer:
        return str(answer.read().decode())


def test_a_backend_that_is_down_is_not_tried_and_not_ready(run: Run) -> None:
    with echo("b") as b:
        port, scraped, dead = free_port(), free_port(), free_port()
        tool = run(
            f'ready = true\nmetrics = "127.0.0.1:{scraped}"\n'
            + mapping(port, dead, 'check = "100ms"', f'backends = "127.0.0.1:{b.port}"')
        )
        eventually(
            lambda: tool.status()["mappings"][0]["up_backends"] == [False, True], "it is noticed"
        )
        failed = tool.status()["mappings"][0]["failed"]
        assert says(("127.0.0.1", port)) == "b"
        assert tool.status()["mappings"][0]["failed"] == failed
        assert fetch(scraped, "/ready") == "ready\n"
        b.end()

        def is_unready() -> bool:
            with contextlib.suppress(urllib.error.HTTPError):
                fetch(scraped, "/ready")
                return False
            return True

        eventually(is_unready, "no backend is up")
        assert "no backend is up" in tool.status()["ready"]
        tool.ask("status", code=1)


def test_the_access_log_has_a_line_for_each_connection(run: Run, tmp_path: Path) -> None:
    with echo("a") as a:
        port = free_port()
        log = tmp_path / "access.log"
        tool = run(f'access_log = "{log}"\nlog_format = "json"\n' + mapping(port, a.port))
        assert says(("127.0.0.1", port)) == "a"
        eventually(lambda: log.read_text().endswith("}\n"), "the line is there")
        (record,) = [json.loads(line) for line in log.read_text().splitlines()]
        assert (record["up"], record["down"], record["reason"]) == (5, 6, "fin")
        assert record["backend"] == f"127.0.0.1:{a.port}"
        assert record["local"] == f"127.0.0.1:{port}"
        assert 0 <= record["dial_ms"] <= record["ms"]
        assert 0 <= record["first_byte_ms"] <= record["ms"]
        # It may be moved away: SIGHUP opens it anew.
        log.rename(tmp_path / "old.log")
        tool.process.send_signal(signal.SIGHUP)
        eventually(log.exists, "the new file is there")
        assert says(("127.0.0.1", port)) == "a"
        eventually(lambda: log.read_text().count("\n") == 1, "it has the next line")


def test_systemd_is_told(programs: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, echo("a") as a:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(BOUND_S)
        file = tmp_path / "ports.toml"
        file.write_text(mapping(free_port(), a.port))
        tool = Tool(
            programs,
            *("--config", str(file)),
            control=tmp_path / "control",
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
        )
        try:
            heard: list[str] = []

            def hears(wanted: str) -> bool:
                while wanted not in heard:
                    heard.extend(manager.recv(4096).decode().splitlines())
                return True

            assert hears("READY=1")
            assert hears("WATCHDOG=1")
            tool.process.send_signal(signal.SIGHUP)
            assert hears("RELOADING=1")
            heard.clear()
            assert hears("READY=1")
            tool.process.send_signal(signal.SIGTERM)
            assert hears("STOPPING=1")
            assert tool.finish()[0] == 0
        finally:
            tool.end()
