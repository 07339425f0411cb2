"""Ids and log lines of a gateway that runs as a process: what is told of each request, and what never is."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from gateway_harness import hang_up
from test_gateway_process import running, start

from serve.engine.fake import FakeEngine, Fault
from serve.engine.state import EngineState
from serve.records import write_json

SECRET = "Xyzzy-4711"
CHAT = "/v1/chat/completions"
PROMPT = [{"role": "user", "content": f"{SECRET} one two three"}]
NEW_ID = re.compile("[0-9a-f]{32}")


@dataclass
class Place:
    """A gateway process in front of a fake engine; ``lines`` are its log once it has ended."""

    home: Path
    engine: FakeEngine
    url: str = ""
    log: bytes = b""
    http: Any = None
    ids: list[str] = field(default_factory=list)

    def engine_is(self, url: str, base_name: str = "base") -> None:
        state = EngineState("ready", url=url, base_name=base_name)
        write_json(self.home / "run" / "engine.json", state.to_json())

    async def serves(self, model: str) -> bool:
        async with self.http.get("/v1/models") as reply:
            return model in {card["id"] for card in (await reply.json())["data"]}

    async def ask(self, body: Any, path: str = CHAT, **headers: str) -> tuple[int, bytes]:
        """Post a body with the secret in every place where it must not be told."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer tn-{SECRET}", **headers}
        async with self.http.post(f"{path}?api_key={SECRET}", data=data, headers=headers) as reply:
            text = await reply.read()
            self.ids.append(reply.headers["x-request-id"])
            return reply.status, text

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.log.decode().removesuffix("\n").split("\n")]

    def of(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("request_id") == request_id]

    def access(self, request_id: str) -> dict[str, Any]:
        (line,) = [line for line in self.of(request_id) if line["logger"] == "serve.gateway.access"]
        return line


@asynccontextmanager
async def gateway(home: Path, form: str = "json", **variables: str) -> AsyncIterator[Place]:
    """The place while the block runs; its log is complete after it."""
    async with FakeEngine() as engine:
        place = Place(home, engine)
        place.engine_is(engine.url)
        async with running(home, TENON_LOG_FORMAT=form, **variables) as (process, record):
            place.url = record["url"]
            async with aiohttp.ClientSession(place.url) as place.http:
                yield place
            process.terminate()
            _, place.log = await asyncio.wait_for(process.communicate(), 20)


async def raw(place: Place, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*place.url.removeprefix("http://").split(":"))
    writer.write(head)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@asynccontextmanager
async def garbage(answers: list[bytes]) -> AsyncIterator[str]:
    """An engine that answers each request with the next of these, HTTP or not."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


def said(status: str, body: str, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


VLLM_ERROR = json.dumps(
    {"error": {"message": f"bad {SECRET}\r\n", "type": "InternalServerError", "code": 500}}
)
GARBAGE = {
    "no HTTP": f"{SECRET}\r\n\r\n".encode(),
    "a bad status line": f"HTTP/1.1 {SECRET} OK\r\n\r\n".encode(),
    "a header of its own": f"HTTP/1.1 200 OK\r\nx-{SECRET}: {SECRET}\r\ncontent-length: -1\r\n\r\n".encode(),
    "no JSON": said("200 OK", f"{SECRET}\r\n{SECRET}"),
    "other JSON": said("200 OK", json.dumps({"x": SECRET})),
    "an error": said("500 Oh", VLLM_ERROR),
    "an error without a form": said("500 Oh", SECRET),
    "an error of a strange type": said("500 Oh", json.dumps({"error": {"type": f"{SECRET}\r\n"}})),
    "an event that is an error": said("200 OK", f"data: {VLLM_ERROR}\n\n", "text/event-stream"),
    "an event that is no JSON": said("200 OK", f'data: {{"usage" {SECRET}\n\n', "text/event-stream"),
    "half a stream": said("200 OK", f'data: {{"choices":[{{"x":"{SECRET}"}}]}}\n\n', "text/event-stream"),
}


async def provoke(place: Place) -> None:
    """Every way to fail that a client or an engine knows, with the secret in each."""
    chat = {"model": "base", "messages": PROMPT}
    for body in (
        chat,
        {**chat, "stream": True},
        f'{{"model": "base", "{SECRET}'.encode(),
        b"\xff\xfe",
        {**chat, "model": SECRET},
        {**chat, SECRET: 1},
        {**chat, "n": SECRET},
        {**chat, "temperature": 99},
        {**chat, "max_tokens": 10**6},
    ):
        await place.ask(body)
    await place.ask(chat, **{"content-type": f"text/{SECRET}"})
    await place.ask({"model": "base", "prompt": SECRET}, "/v1/completions")
    await place.ask({"model": "base", "input": SECRET, "stream": True}, "/v1/responses")
    await place.ask({}, "/api/status")
    place.engine.faults = [Fault("error", status=500, message=f"boom {SECRET}\r\nINFO forged")]
    await place.ask(chat)
    place.engine.faults = [Fault("die_mid_stream", after=2)]
    await place.ask({**chat, "stream": True})
    for line in (
        f"x-request-id: a\r\n {SECRET}",
        f"x-{SECRET}: b\rc",
        f"x: \x0b{SECRET}\n{SECRET}",
        f"{SECRET}\x01: 1",
    ):
        await raw(
            place,
            f"GET /healthz?{SECRET} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{line}\r\n\r\n".encode(),
        )
    await raw(place, f"NONSENSE {SECRET}\r\n\r\n".encode())
    await raw(place, f"GET / HTTP/1.1\r\nx: {SECRET * 10_000}\r\nconnection: close\r\n\r\n".encode())
    place.engine.faults = [Fault("hang")]
    await hang_up(place.engine, place.ask(chat))
    answers = [answer for answer in GARBAGE.values() for _ in range(2)]
    async with garbage(answers) as url:
        place.engine_is(url, "other")
        chat["model"] = "other"
        while not await place.serves("other"):  # noqa: ASYNC110 - by another process
            await asyncio.sleep(0.05)
        for number in range(len(answers)):
            await place.ask({**chat, "stream": number % 2 == 1})
        assert answers == []
    await place.ask(chat)  # nobody listens there any more


@pytest.mark.parametrize("form", ["json", "text"])
async def test_nothing_of_a_request_is_in_any_line_and_each_is_one(tmp_path: Path, form: str) -> None:
    async with gateway(tmp_path, form, TENON_LOG_LEVEL="debug") as place:
        await provoke(place)
    text = place.log.decode()
    assert SECRET not in text
    assert not re.search("[^\x20-\x7e\n]", text)
    shape = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) \S+ .")
    for line in text.removesuffix("\n").split("\n"):
        assert shape.match(line) if form == "text" else isinstance(orjson.loads(line), dict), line
    for request_id in place.ids:
        assert request_id in text
    assert len(set(place.ids)) == len(place.ids) > 30


async def test_one_line_tells_how_a_request_ended(tmp_path: Path) -> None:
    chat = {"model": "base", "messages": PROMPT}
    async with gateway(tmp_path) as place:
        for path in ("/healthz", "/metrics", "/readyz"):  # probes that succeed are told at debug only
            async with place.http.get(path) as reply:
                assert NEW_ID.fullmatch(reply.headers["x-request-id"])
        async with place.http.get("/nothing") as reply:
            assert reply.status == 404
        await place.ask(chat, **{"x-request-id": "order-66.a_B"})
        await place.ask({**chat, "stream": True})
        await place.ask({**chat, "model": "nobody's"})
        place.engine.faults = [Fault("die_mid_stream", after=2)]
        await place.ask({**chat, "stream": True})
        place.engine.faults = [Fault("error", status=500)]
        await place.ask(chat)
        place.engine.faults = [Fault("hang")]
        await hang_up(place.engine, place.ask(chat, **{"x-request-id": "gone"}))
        await place.engine.stop()
        await place.ask(chat)
    whole, stream, unknown, broken, failed, down = (place.access(request_id) for request_id in place.ids)
    gone = place.access("gone")
    assert place.ids[0] == "order-66.a_B"
    port = place.engine.port
    assert whole | {"time": "", "seconds": 0} == {
        "time": "",
        "level": "info",
        "logger": "serve.gateway.access",
        "message": "request",
        "request_id": "order-66.a_B",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "outcome": "ok",
        "model": "base",
        "version": "base",
        "engine_name": "base",
        "engine": f"127.0.0.1:{port}",
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "first_token_seconds": None,
        "seconds": 0,
        "key": None,
    }
    assert 0 < stream["first_token_seconds"] <= stream["seconds"]
    assert (stream["prompt_tokens"], stream["completion_tokens"]) == (4, 6)
    assert (unknown["status"], unknown["outcome"], unknown["model"]) == (404, "rejected", None)
    assert (broken["status"], broken["outcome"], broken["completion_tokens"]) == (200, "failed", 2)
    assert (failed["status"], failed["outcome"]) == (502, "failed")
    assert (down["status"], down["outcome"]) == (503, "unavailable")
    assert (gone["status"], gone["outcome"], gone["engine_name"]) == (None, "disconnected", "base")
    assert [line["message"] for line in place.of(place.ids[4])] == [
        "engine answered 500 for base: InternalServerError in 117 bytes; the engine's log says more",
        "request",
    ]
    others = [
        line["path"]
        for line in place.lines
        if line["logger"] == "serve.gateway.access" and line["path"] != CHAT
    ]
    assert others == ["/nothing"]


@pytest.mark.parametrize("level", ["warning", "error"])
async def test_a_higher_level_tells_of_no_request(tmp_path: Path, level: str) -> None:
    async with gateway(tmp_path, TENON_LOG_LEVEL=level) as place:
        await place.ask({"model": "base", "messages": PROMPT})
    assert b"serve.gateway.access" not in place.log
    assert place.log.count(b"\n") == place.log.count(b"no keys: loopback only"), place.log


async def test_a_port_that_is_taken_is_told_as_json(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await start(tmp_path, "--port", str(port), TENON_LOG_FORMAT="json")
        _, errors = await process.communicate()
    assert process.returncode == 4
    line = orjson.loads(errors)
    assert (line["level"], f"port {port}" in line["message"]) == ("error", True)
