"""One tool with several workers: what they do together, and what becomes of one that dies."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.relays import BOUND_S, eventually, free_port
from tests.integration.test_portproxy import gone
from tests.integration.test_portproxy_control import connected, echoes, fetch, mapping, refused
from tests.integration.tool import Tool, echo, says

Run = Callable[..., Tool]
Json = dict[str, Any]
MOST_CLIENTS = 2000


@pytest.fixture
def run(programs: Path, tmp_path: Path) -> Iterator[Run]:
    """Starts a tool for a file's text, with so many workers, and waits until it serves."""
    with contextlib.ExitStack() as stack:

        def start(text: str, workers: int, *options: str) -> Tool:
            file = tmp_path / "ports.toml"
            file.write_text(text)
            words = ["--config", str(file), "--workers", str(workers), *options]
            tool = Tool(programs, *words, control=tmp_path / "control")
            stack.callback(tool.end)
            tool.line()
            tool.children()
            return tool

        yield start


class Clients:
    """Connections that stay, to one port of a tool; ``by_worker`` says whose they are."""

    def __init__(self, tool: Tool, port: int) -> None:
        self.tool = tool
        self.port = port
        self.stack = contextlib.ExitStack()
        self.sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self) -> socket.socket:
        """One more."""
        client = self.stack.enter_context(connected(self.port))
        self.sockets[client.getsockname()[1]] = client
        return client

    def by_worker(self) -> dict[int, list[socket.socket]]:
        """Those that the tool knows of."""
        found: dict[int, list[socket.socket]] = {}
        for each in ps(self.tool):
            if each["client_port"] in self.sockets:
                worker = int(each["serial"].partition(".")[0])
                found.setdefault(worker, []).append(self.sockets[each["client_port"]])
        return found

    def fill(self, workers: set[int]) -> dict[int, list[socket.socket]]:
        """Adds some until each of these workers has two."""
        for _ in range(MOST_CLIENTS // 20):
            for _ in range(20):
                self.add()
            found = self.by_worker()
            if all(len(found.get(worker, [])) >= 2 for worker in workers):
                assert found.keys() == workers
                return found
        pytest.fail(f"not all of {workers} have clients: {Counter(found.keys())}")


def free_ports(count: int, kind: int = socket.SOCK_STREAM) -> list[int]:
    """So many that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(type=kind)) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def ps(tool: Tool) -> list[Json]:
    """All connections."""
    found: list[Json] = json.loads(tool.ask("ps", "--json"))
    return found


def served(tool: Tool) -> dict[str, Json]:
    """The mappings by their titles, those that are draining left out."""
    mappings = tool.status()["mappings"]
    return {each["title"]: each for each in mappings if each["state"] != "draining"}


def pids(tool: Tool) -> dict[int, int]:
    """The pid of each worker."""
    return {int(number): pid for number, pid in tool.status()["workers"].items()}


def killed(tool: Tool, worker: int) -> None:
    """Kills one; the tool knows it then."""
    pid = pids(tool)[worker]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pids(tool).get(worker) != pid, "it has gone")


def replaced(tool: Tool, worker: int) -> None:
    """Waits until one that has ended has a successor, which serves what all do."""

    def is_there() -> bool:
        return worker in pids(tool) and worker in served(tool)["web"]["workers"]

    eventually(is_there, "it has a successor")
    tool.children()  # the test ends it, too


def inherited(pid: int) -> list[str]:
    """The descriptors that a program which it executed would have, but the standard ones."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            fields = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text().split()
            flags = int(fields[fields.index("flags:") + 1], 8)
            if int(path.name) > 2 and not flags & os.O_CLOEXEC:
                found.append(f"{pid}: {path.name} -> {path.readlink()}")
    return found


def ended(client: socket.socket) -> bool:
    """Whether the other side has ended the connection, in whatever manner."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_clients_are_shared_and_counted_together(run: Run) -> None:
    with echo("a") as a:
        port, scraped = free_ports(2)
        text = f'metrics = "127.0.0.1:{scraped}"\n' + mapping(port, a.port, 'name = "web"')
        tool = run(text, 3)
        with Clients(tool, port) as clients:
            found = clients.fill({1, 2, 3})
            count = len(clients.sockets)
            assert sum(len(some) for some in found.values()) == count
            assert all(echoes(client) for client in clients.sockets.values())
            shown = ps(tool)
            assert (sum(each["up"] for each in shown), sum(each["down"] for each in shown)) == (
                count,
                2 * count,
            )
            assert len({each["serial"] for each in shown}) == len(shown) == count
            web, status = served(tool)["web"], tool.status()
            assert {each["mapping"] for each in shown} == {web["serial"]}
            assert web["workers"] == [1, 2, 3]
            assert (web["connections"], web["accepted"]) == (count, count)
            assert (web["open"], web["ports"]) == (1, 1)
            assert sum(web["dials"]) == count
            assert status["process"]["links"] == count
            samples = {
                sample.name: sample.value
                for family in text_string_to_metric_families(fetch(scraped, "/metrics"))
                for sample in family.samples
            }
            assert samples["portproxy_connections"] == count
            assert samples["portproxy_accepted_total"] == count
            assert samples["portproxy_dial_seconds_count"] == count
            assert samples["portproxy_process_links"] == count
            assert str(pids(tool)[3]) in tool.ask("status")
            assert " 3." in tool.ask("top", "--once", "--interval", "10ms").replace("\n", " ")
        eventually(lambda: served(tool)["web"]["connections"] == 0, "all have ended")
        web = served(tool)["web"]
        assert (web["up"], web["down"]) == (count, 2 * count)


def test_one_connection_of_one_worker_is_killed(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port), 2)
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
            shown = {each["serial"]: each["client_port"] for each in ps(tool)}
            assert {"1.1", "2.1"} <= shown.keys()  # each counts its own
            tool.ask("kill", "2.1")
            victim = clients.sockets.pop(shown["2.1"])
            with pytest.raises(ConnectionResetError):
                victim.recv(1)
            assert all(echoes(client) for client in clients.sockets.values())
        for wrong in ("2.999999", "9.1", "1", "x", "1.x"):
            assert "no such connection" in tool.ask("kill", wrong, code=1)


def test_what_is_counted_has_one_worker_and_is_exact(run: Run) -> None:
    with echo("a") as a:
        other, *ports = free_ports(5)
        limited = [
            mapping(port, a.port, "max_connections = 5", f'name = "l{port}"') for port in ports
        ]
        shared = mapping(other, a.port, 'name = "shared"')
        tool = run(shared + "".join(limited), 2)
        mappings = served(tool)
        assert mappings.pop("shared")["workers"] == [1, 2]
        where = Counter(worker for each in mappings.values() for worker in each["workers"])
        assert where == {1: 2, 2: 2}
        for port in ports:
            with contextlib.ExitStack() as stack:
                there = [stack.enter_context(connected(port)) for _ in range(5)]
                for _ in range(10):
                    late = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    assert ended(late)
                assert all(echoes(client) for client in there)
        assert {each["limited"] for each in served(tool).values()} == {0, 10}


def test_datagrams_keep_their_flows(run: Run) -> None:
    with contextlib.ExitStack() as stack:

        def datagrams() -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.bind(("127.0.0.1", 0))
            made.settimeout(BOUND_S)
            return made

        backend, clients = datagrams(), [datagrams() for _ in range(20)]
        ports = free_ports(2, socket.SOCK_DGRAM)
        publish = "".join(
            f'[[mapping]]\npublish = "127.0.0.1:{port}:127.0.0.1:{backend.getsockname()[1]}/udp"\n'
            for port in ports
        )
        tool = run(publish, 2)
        assert sorted(each["workers"] for each in served(tool).values()) == [[1], [2]]
        seen: dict[tuple[int, int], set[Any]] = {}
        for turn in range(4):
            for at, client in enumerate(clients):
                for port in ports:
                    client.sendto(b"%d" % turn, ("127.0.0.1", port))
                    data, peer = backend.recvfrom(100)
                    seen.setdefault((at, port), set()).add(peer)
                    backend.sendto(data, peer)
                    assert client.recvfrom(100) == (b"%d" % turn, ("127.0.0.1", port))
        assert {len(some) for some in seen.values()} == {1}
        assert len({peer for some in seen.values() for peer in some}) == len(clients) * len(ports)
        assert {each["sessions"] for each in served(tool).values()} == {len(clients)}
        assert tool.status()["process"]["sessions"] == len(clients) * len(ports)


def test_a_reload_reaches_all_workers(run: Run, tmp_path: Path) -> None:
    with echo("a") as a, echo("b") as b:
        port, comes, never = free_ports(3)
        tool = run(mapping(port, a.port, 'name = "web"'), 2)
        file = tmp_path / "ports.toml"
        with Clients(tool, port) as clients:
            clients.fill({1, 2})

            def reload(text: str) -> None:
                file.write_text(text)
                tool.ask("reload")
                assert all(echoes(client) for client in clients.sockets.values())

            reload(mapping(port, b.port, 'name = "web"'))
            assert {says(("127.0.0.1", port)) for _ in range(20)} == {"b"}
            # A limit is one worker's; what the other has goes on there.
            reload(mapping(port, b.port, 'name = "web"', "max_connections = 10000"))
            assert len(served(tool)["web"]["workers"]) == 1
            count = len(clients.sockets)
            eventually(lambda: served(tool)["web"]["connections"] == count, "all are counted")
            assert {says(("127.0.0.1", port)) for _ in range(20)} == {"b"}
            reload(mapping(port, a.port, 'name = "web"') + mapping(comes, a.port))
            assert served(tool)["web"]["workers"] == [1, 2]
            assert {says(("127.0.0.1", port)) for _ in range(20)} == {"a"}
            clients.fill({1, 2})
            # What cannot be had changes nothing, in no worker.
            before = tool.status()["mappings"]
            bad = mapping(port, b.port, 'name = "web"') + mapping(never, 9)
            file.write_text(bad + mapping(a.port, 9))
            assert "address already in use" in tool.ask("reload", code=1)
            after = tool.status()["mappings"]
            assert [each["line"] for each in after] == [each["line"] for each in before]
            assert [each["workers"] for each in after] == [each["workers"] for each in before]
            assert {says(("127.0.0.1", port)) for _ in range(20)} == {"a"}
            assert all(echoes(client) for client in clients.sockets.values())


@pytest.mark.parametrize("what", ["rm", "drain"])
def test_a_mapping_goes_from_all_workers(run: Run, what: str) -> None:
    with echo("a") as a:
        port, stays = free_ports(2)
        tool = run(mapping(port, a.port) + mapping(stays, a.port), 2)
        with Clients(tool, port) as clients, Clients(tool, stays) as others:
            clients.fill({1, 2})
            others.fill({1, 2})
            tool.ask(what, f"127.0.0.1:{port}")
            assert refused(port)
            if what == "rm":
                assert all(ended(client) for client in clients.sockets.values())
            else:
                assert all(echoes(client) for client in clients.sockets.values())
                (left,) = [m for m in tool.status()["mappings"] if m["state"] == "draining"]
                assert (left["workers"], left["connections"]) == ([1, 2], len(clients.sockets))
            assert all(echoes(client) for client in others.sockets.values())
        eventually(lambda: len(tool.status()["mappings"]) == 1, "nothing is left of it")


def test_sigterm_waits_for_the_connections_of_all(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        tool = run(mapping(port, a.port), 2)
        workers = pids(tool)
        with Clients(tool, port) as clients:
            found = clients.fill({1, 2})
            tool.process.send_signal(signal.SIGTERM)
            eventually(lambda: refused(port), "nobody listens any more")
            for client in found[1]:
                client.close()
            eventually(lambda: gone([workers[1]]), "one has nothing more to do")
            assert all(echoes(client) for client in found[2])
            assert tool.process.poll() is None
        assert tool.finish() == (0, "")
        assert gone(list(workers.values()))


@pytest.mark.parametrize("again", [1, 2, 4])
def test_what_a_killed_control_plane_has_left_is_taken_over(
    run: Run, tmp_path: Path, again: int
) -> None:
    with echo("a") as a:
        port, limited = free_ports(2)
        text = mapping(port, a.port, 'name = "web"')
        text += mapping(limited, a.port, "max_connections = 100", 'name = "limited"')
        tool = run(text, 2)
        before = pids(tool)
        with Clients(tool, port) as clients, Clients(tool, limited) as others:
            clients.fill({1, 2})
            others.add()
            tool.children()
            tool.process.kill()
            tool.process.wait(BOUND_S)
            assert all(echoes(client) for client in clients.sockets.values())
            tool = clients.tool = run(text, again)
            after = pids(tool)
            assert {number: after[number] for number in (1, 2)} == before
            assert len(after) == max(again, 2)
            mappings = served(tool)
            assert mappings["web"]["workers"] == sorted(after)
            assert mappings["web"]["connections"] == len(clients.sockets)
            assert (mappings["limited"]["workers"], mappings["limited"]["connections"]) == ([1], 1)
            clients.fill(set(after))
            for each in (*clients.sockets.values(), *others.sockets.values()):
                assert echoes(each)
        assert tool.stop()[0] == 0
        eventually(lambda: gone(list(after.values())), "all end with the service")
        assert not list(tmp_path.glob("control*"))


def is_served(port: int) -> bool:
    """Whether the Echo "a" is reached; who dies may take along what it has not accepted yet."""
    with contextlib.suppress(ConnectionError):
        return says(("127.0.0.1", port)) == "a"
    return False


@pytest.mark.parametrize("victim", [1, 2])
def test_one_that_dies_takes_nothing_of_the_others_along(run: Run, victim: int) -> None:
    with echo("a") as a:
        port, *limits = free_ports(3)
        text = mapping(port, a.port, 'name = "web"')
        for at, limited in enumerate(limits):
            text += mapping(limited, a.port, "max_connections = 100", f'name = "limited{at}"')
        tool = run(text, 2)
        before = pids(tool)
        with Clients(tool, port) as clients:
            found = clients.fill({1, 2})
            os.kill(before[victim], signal.SIGKILL)
            assert all(ended(client) for client in found[victim])
            rest = found[3 - victim]
            assert all(echoes(client) for client in rest)
            # The other serves what it had, alone, until there is another one.
            for where in (port, *limits):
                eventually(lambda where=where: is_served(where), "it is served again")
            replaced(tool, victim)
            after = pids(tool)
            assert after[3 - victim] == before[3 - victim]
            assert after[victim] != before[victim]
            clients.fill({1, 2})
            assert all(echoes(client) for client in rest)
        assert {tuple(served(tool)[f"limited{at}"]["workers"]) for at in range(2)} <= {(1,), (2,)}
        assert tool.status()["ready"] == "yes"
        tool.children()
        code, error = tool.stop()
        assert code == 0
        line = (
            f"portproxy: worker {victim} of the data plane has ended by signal 9; the others go on"
        )
        assert error == f"{line}\n"


def test_who_has_no_descriptors_left_leaves_clients_to_the_others(run: Run) -> None:
    with echo("a") as a:
        port = free_port()
        # Of our own user, so that its limit may be changed.
        user = f"{os.geteuid()}:{os.getegid()}"
        tool = run(mapping(port, a.port, 'name = "web"'), 2, "--user", user)
        pid = pids(tool)[1]
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
            few = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, few))
            for _ in range(30):
                assert echoes(clients.add())
            assert sum(len(some) for some in clients.by_worker().values()) == len(clients.sockets)
            assert served(tool)["web"]["pauses"] > 0
            assert served(tool)["web"]["shed"] == 0


def test_every_descriptor_is_closed_on_exec(run: Run) -> None:
    with echo("a") as a:
        port, datagrams = free_ports(2)
        text = mapping(port, a.port, 'name = "web"') + mapping(datagrams, f"{a.port}/udp")
        tool = run(text, 2)
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
            assert all(echoes(client) for client in clients.sockets.values())
            processes = [tool.process.pid, *tool.children()]
            assert len(processes) >= 3
            assert [left for pid in processes for left in inherited(pid)] == []


def test_the_service_ends_with_its_last_worker(run: Run) -> None:
    with echo("a") as a:
        tool = run(mapping(free_port(), a.port), 2)
        workers = pids(tool)
        tool.process.send_signal(signal.SIGSTOP)  # so that it hears of both at once
        for pid in workers.values():
            os.kill(pid, signal.SIGKILL)
        tool.process.send_signal(signal.SIGCONT)
        code, error = tool.finish()
        assert code == 1
        assert error.splitlines()[-1] == "portproxy: the data plane has ended by signal 9"


def test_all_are_told_of_a_backend_that_is_down(run: Run) -> None:
    with echo("b") as b:
        port, dead = free_ports(2)
        more = f'backends = "127.0.0.1:{b.port}"'
        tool = run(mapping(port, dead, 'name = "web"', 'check = "100ms"', more), 2)
        eventually(lambda: served(tool)["web"]["up_backends"] == [False, True], "it is noticed")
        # The checks go on, and say nothing new: all know of it by then.
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
            failed = served(tool)["web"]["failed"]
            clients.fill({1, 2})
            for _ in range(20):
                assert says(("127.0.0.1", port)) == "b"
            assert served(tool)["web"]["failed"] == failed
        killed(tool, 2)
        replaced(tool, 2)
        # Who comes later is told what the others know.
        eventually(lambda: served(tool)["web"]["up_backends"] == [False, True], "it knows, too")
        failed = served(tool)["web"]["failed"]
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
        assert served(tool)["web"]["failed"] == failed


def test_the_access_log_has_the_connections_of_all(run: Run, tmp_path: Path) -> None:
    with echo("a") as a:
        port, log = free_port(), tmp_path / "access.log"
        text = f'access_log = "{log}"\nlog_format = "json"\n' + mapping(port, a.port)
        tool = run(text, 2)
        with Clients(tool, port) as clients:
            clients.fill({1, 2})
        count = len(clients.sockets)
        eventually(lambda: log.read_text().count("\n") == count, "there is a line for each")
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert {int(each["client"].rpartition(":")[2]) for each in records} == set(clients.sockets)


def test_the_port_of_several_workers_is_busy(run: Run, programs: Path) -> None:
    """For another instance of the same user, too, which SO_REUSEPORT would let in."""
    with echo("a") as a:
        port = free_port()
        run(mapping(port, a.port), 2)
        publish = f"127.0.0.1:{port}:127.0.0.1:{a.port}"
        other = Tool(programs, "-p", publish, "--workers", "2")
        try:
            code, error = other.finish()
        finally:
            other.end()
        assert (code, "address already in use" in error) == (1, True)
        assert says(("127.0.0.1", port)) == "a"


def test_a_unix_socket_has_all_workers(run: Run, tmp_path: Path) -> None:
    with echo("a") as a:
        front = str(tmp_path / "front")
        publish = f'[[mapping]]\nname = "web"\npublish = "unix:{front}:127.0.0.1:{a.port}"\n'
        tool = run(publish, 2)
        assert served(tool)["web"]["workers"] == [1, 2]
        for _ in range(10):
            assert says(front, socket.AF_UNIX) == "a"
        killed(tool, 1)
        assert says(front, socket.AF_UNIX) == "a"
        replaced(tool, 1)
        assert says(front, socket.AF_UNIX) == "a"
        tool.children()
        assert tool.stop()[0] == 0
        assert not Path(front).exists()


def test_ports_that_the_system_chooses(run: Run) -> None:
    with echo("a") as a, echo("b") as b:
        text = mapping(0, a.port, 'name = "first"') + mapping(0, b.port, 'name = "second"')
        tool = run(text, 2)
        before = {title: each["port"] for title, each in served(tool).items()}
        tool.children()
        tool.process.kill()
        tool.process.wait(BOUND_S)
        tool = run(text, 2)
        after = served(tool)
        assert {title: each["port"] for title, each in after.items()} == before
        assert len(tool.status()["mappings"]) == 2
        for _ in range(10):
            assert says(("127.0.0.1", before["first"])) == "a"
            assert says(("127.0.0.1", before["second"])) == "b"


@pytest.mark.parametrize("count", ["0", "65", "-1", "2.5", "many"])
def test_a_number_that_cannot_be(programs: Path, count: str) -> None:
    tool = Tool(programs, "-p", "127.0.0.1:0:127.0.0.1:9", "--workers", count)
    try:
        code, error = tool.finish()
    finally:
        tool.end()
    assert (code, error) == (
        2,
        f"portproxy: --workers {count}: give a number from 1 to 64\n",
    )


def test_another_number_takes_a_restart(programs: Path, tmp_path: Path) -> None:
    file = tmp_path / "ports.toml"
    with echo("a") as a:
        port = free_port()
        file.write_text("workers = 2\n" + mapping(port, a.port))
        tool = Tool(programs, "--config", str(file), control=tmp_path / "control")
        try:
            tool.line()
            assert len(pids(tool)) == 2
            file.write_text("\nworkers = 3\n" + mapping(port, a.port))
            error = tool.ask("reload", code=1)
            assert error.startswith(f"portproxy: {file}:2: workers is what the data plane was")
            assert (len(pids(tool)), says(("127.0.0.1", port))) == (2, "a")
        finally:
            tool.end()
