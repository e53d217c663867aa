"""What a reload of the tool's file does to what is not a mapping, and what it must not."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only
from tests.integration.relays import eventually, free_port
from tests.integration.test_portproxy_control import (  # noqa: F401
    Run,
    connected,
    echoes,
    fetch,
    mapping,
    refused,
    run,
)
from tests.integration.tool import Tool, echo, says

pytestmark = plain_only


def top(folder: Path, metrics: int, log: str, drain: str) -> str:
    """The settings before the mappings."""
    lines = [f'metrics = "127.0.0.1:{metrics}"', f'access_log = "{folder / log}"']
    return "\n".join([*lines, f'drain = "{drain}"', ""])


def lines_of(log: Path) -> int:
    """How many connections a log names."""
    return log.read_text().count("\n") if log.exists() else 0


BAD = {
    "a mistake": 'publish = "80"\n',
    "a port that is taken": "",
    "a log that cannot be": 'publish = "127.0.0.1:0:127.0.0.1:9"\n',
    "a user": 'publish = "127.0.0.1:0:127.0.0.1:9"\n',
}


@pytest.mark.parametrize("bad", BAD)
def test_of_a_file_that_is_refused_nothing_takes_effect(
    run: Run,  # noqa: F811
    tmp_path: Path,
    bad: str,
) -> None:
    with echo("a") as a:
        port, scraped, other = free_port(), free_port(), free_port()
        tool = run(top(tmp_path, scraped, "before", "0") + mapping(port, a.port))
        head = top(tmp_path, other, "after", "1h")
        if bad == "a log that cannot be":
            head = head.replace("after", "no/such/folder")
        if bad == "a user":
            head += 'user = "daemon"\n'
        table = BAD[bad] or f'publish = "127.0.0.1:{a.port}:127.0.0.1:9"\n'
        file = tmp_path / "ports.toml"
        file.write_text(f"{head}[[mapping]]\n{table}")
        error = tool.ask("reload", code=1)
        if bad == "a user":
            assert error.startswith(f"portproxy: {file}:4: user is what the data plane was started")
        assert error.count("\n") == 1
        # The log, the metrics and the mapping are those of before.
        assert says(("127.0.0.1", port)) == "a"
        eventually(lambda: lines_of(tmp_path / "before") == 1, "the old log is written")
        assert lines_of(tmp_path / "after") == 0
        assert "portproxy_failed_reloads_total 1.0" in fetch(scraped, "/metrics")
        with pytest.raises(urllib.error.URLError):
            fetch(other, "/metrics")
        # So is the time that connections have: none.
        with connected(port) as client:
            assert tool.stop() == (0, "")
            assert client.recv(1) == b""


def test_of_a_file_that_is_right_everything_does(run: Run, tmp_path: Path) -> None:  # noqa: F811
    with echo("a") as a:
        port, scraped, other = free_port(), free_port(), free_port()
        tool = run(top(tmp_path, scraped, "before", "0") + mapping(port, a.port))
        text = top(tmp_path, other, "after", "1h") + 'log_format = "json"\n'
        (tmp_path / "ports.toml").write_text(text + mapping(port, a.port))
        tool.ask("reload")
        assert says(("127.0.0.1", port)) == "a"
        log = tmp_path / "after"
        eventually(lambda: lines_of(log) == 1, "the new log is written")
        assert json.loads(log.read_text())["reason"] == "fin"
        assert lines_of(tmp_path / "before") == 0
        assert "portproxy_reloads_total 1.0" in fetch(other, "/metrics")
        with pytest.raises(urllib.error.URLError):
            fetch(scraped, "/metrics")
        with connected(port) as client:
            tool.process.send_signal(signal.SIGTERM)
            eventually(lambda: refused(port), "nobody listens any more")
            assert echoes(client)
        assert tool.finish() == (0, "")


def test_a_log_may_come_and_go(run: Run, tmp_path: Path) -> None:  # noqa: F811
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port))
        log = tmp_path / "log"
        file = tmp_path / "ports.toml"
        file.write_text(f'access_log = "{log}"\n' + mapping(port, a.port))
        tool.ask("reload")
        assert says(("127.0.0.1", port)) == "a"
        eventually(lambda: lines_of(log) == 1, "it is written")
        file.write_text(mapping(port, a.port))
        tool.ask("reload")
        assert says(("127.0.0.1", port)) == "a"
        eventually(lambda: tool.status()["process"]["links"] == 0, "it has ended")
        assert lines_of(log) == 1


def test_the_command_line_counts_more_than_the_file_that_is_reloaded(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    with echo("a") as a:
        port, scraped, other = free_port(), free_port(), free_port()
        tool = run(mapping(port, a.port), "--metrics", f"127.0.0.1:{scraped}", "--drain", "0")
        (tmp_path / "ports.toml").write_text(
            f'metrics = "127.0.0.1:{other}"\ndrain = "1h"\n' + mapping(port, a.port)
        )
        tool.ask("reload")
        assert "portproxy_reloads_total 1.0" in fetch(scraped, "/metrics")
        with connected(port) as client:
            assert tool.stop() == (0, "")
            assert client.recv(1) == b""


def test_changes_that_come_together_lose_nothing_of_each_other(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    with echo("a") as a:
        tool = run(mapping(0, a.port))
        names = [f"n{at}" for at in range(8)]
        refusals: list[str] = []

        def add(name: str) -> None:
            tool.ask("add", f"127.0.0.1:0:127.0.0.1:{a.port}", "--set", f"name={name}")

        def reload(tool: Tool) -> None:
            refusals.append(tool.ask("reload", code=1))

        # Beside them, a file that is refused once its first mapping has been opened.
        refused_file = mapping(free_port(), a.port) + mapping(a.port, a.port)
        (tmp_path / "ports.toml").write_text(refused_file)
        threads = [threading.Thread(target=add, args=(name,)) for name in names]
        threads += [threading.Thread(target=reload, args=(tool,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refusals) == 2
        titles = [record["title"] for record in tool.status()["mappings"]]
        assert sorted(titles) == sorted([*names, "tcp/127.0.0.1:0"])
