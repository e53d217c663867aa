"""The control socket against those who ask badly, slowly, at length or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portproxy import api
from portproxy.api import ApiError, Server

Json = dict[str, Any]
BOUND_S = 20
LARGE = "x" * 3_000_000


async def handle(request: Json) -> Json:
    """What a service would do."""
    if request["do"] == "large":
        return {"text": LARGE}
    if request["do"] == "refuse":
        raise ApiError("no")
    if request["do"] == "fail":
        raise RuntimeError("oh")
    return {"did": request["do"]}


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    """One that serves."""
    with TemporaryDirectory() as folder:
        made = Server(handle)
        await made.listen(f"{folder}/control")
        try:
            yield made
        finally:
            made.close()


async def talk(path: str, data: bytes) -> list[Json]:
    """All answers to what is sent at once; the connection must have ended then."""
    reader, writer = await asyncio.open_unix_connection(path, limit=2 * len(LARGE))
    writer.write(data)
    writer.write_eof()
    raw = await asyncio.wait_for(reader.read(), BOUND_S)
    writer.close()
    return [json.loads(line) for line in raw.splitlines()]


def within(work: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
    """Runs a test beside a server."""

    async def main() -> None:
        async with server() as made:
            await work(made)
            # Whatever has happened, the next one is answered.
            assert await talk(made.path, b'{"do": "status"}\n') == [{"did": "status"}]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n", "not JSON"),
        (b"status\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", "a request is an object"),
        (b'{"do": 1}\n', "a request is an object"),
        (b'{"do": "refuse"}\n', "no"),
        (b'{"do": "fail"}\n', "RuntimeError: oh"),
        (b'{"do": "half', "not JSON"),
    ],
)
def test_a_bad_request_is_answered_with_the_reason(data: bytes, reason: str) -> None:
    async def work(made: Server) -> None:
        (answer,) = await talk(made.path, data)
        assert reason in answer["error"]

    within(work)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"do":', b'"a"}', b"\n"]), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_answered_line_by_line(parts: list[bytes]) -> None:
    data = b"".join(parts)

    async def work(made: Server) -> None:
        answers = await talk(made.path, data)
        assert len(answers) == data.count(b"\n") + (data != b"" and not data.endswith(b"\n"))
        assert all(answer.keys() in ({"error"}, {"did"}) for answer in answers)

    within(work)


def test_a_request_that_does_not_end_is_refused() -> None:
    async def work(made: Server) -> None:
        reader, writer = await asyncio.open_unix_connection(made.path)
        writer.write(b"x" * (3 * api.MOST_BYTES))
        answer = json.loads(await asyncio.wait_for(reader.readline(), BOUND_S))
        assert answer == {"error": f"a request has at most {api.MOST_BYTES} bytes"}
        writer.close()

    within(work)


def test_one_who_is_slow_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PEER_BOUND_S", 0.2)

    async def work(made: Server) -> None:
        reader, writer = await asyncio.open_unix_connection(made.path)
        writer.write(b'{"do": ')
        assert await talk(made.path, b'{"do": "status"}\n') == [{"did": "status"}]
        assert await asyncio.wait_for(reader.read(), BOUND_S) == b""
        writer.close()

    within(work)


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PEER_BOUND_S", 0.2)

    async def work(made: Server) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(made.path)
            silent.sendall(b'{"do": "large"}\n')
            assert await talk(made.path, b'{"do": "status"}\n') == [{"did": "status"}]
            silent.settimeout(BOUND_S)

            def all_that_came() -> int:
                size = 0
                while part := silent.recv(65536):
                    size += len(part)
                return size

            while made.peers:  # it reads nothing for as long as it is waited for
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(all_that_came) < len(LARGE)

    within(work)


def test_a_large_answer_arrives_though_the_asker_has_nothing_more_to_say() -> None:
    async def work(made: Server) -> None:
        assert await talk(made.path, b'{"do": "large"}\n') == [{"text": LARGE}]

    within(work)


def test_there_is_a_limit_of_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_PEERS", 1)

    async def work(made: Server) -> None:
        _, writer = await asyncio.open_unix_connection(made.path)
        writer.write(b'{"do": "status"}\n')
        (answer,) = await talk(made.path, b'{"do": "status"}\n')
        assert answer == {"error": "1 others ask already"}
        writer.close()
        while (await talk(made.path, b'{"do": "status"}\n'))[0].get("error"):
            pass  # until it is seen that the first has gone

    within(work)


def test_a_second_server_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = Server(handle), Server(handle)
        await first.listen(str(tmp_path / "control"))
        with pytest.raises(ApiError, match="another portproxy serves"):
            await second.listen(str(tmp_path / "control"))
        first.close()

    asyncio.run(main())
