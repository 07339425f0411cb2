"""Request ids: whose they are, where they are returned, and what the engine gets of them."""

import asyncio
import logging
import re
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from gateway_harness import MESSAGES, Bench

from serve.gateway.asgi import Message, Receive, Scope, Send
from serve.gateway.auth import Caller
from serve.gateway.call import Call, current
from serve.gateway.observe import Observer
from serve.registry import ApiKey, Rights

NEW = re.compile("[0-9a-f]{32}")
CHAT = "/v1/chat/completions"
BODY = {"model": "base", "messages": MESSAGES}


async def id_of(bench: Bench, method: str, path: str, **options: Any) -> str:
    async with bench.http.request(method, path, **options) as reply:
        await reply.read()
        (found,) = reply.headers.getall("x-request-id")
    return str(found)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT, BODY),
        ("POST", CHAT, {**BODY, "stream": True}),
        ("POST", CHAT, {}),
        ("POST", CHAT, {**BODY, "model": "none"}),
        ("GET", CHAT, None),
        ("GET", "/tokenizer_info", None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/none", None),
        ("GET", "/v1/nothing", None),
        ("GET", "/healthz", None),
        ("GET", "/metrics", None),
        ("GET", "/api/status", None),
        ("GET", "/nothing", None),
        ("DELETE", "/healthz", None),
    ],
)
async def test_every_answer_has_the_clients_id_or_a_new_one(
    bench: Bench, method: str, path: str, body: Any
) -> None:
    assert await id_of(bench, method, path, json=body, headers={"x-request-id": "mine-1"}) == "mine-1"
    assert NEW.fullmatch(await id_of(bench, method, path, json=body))


@pytest.mark.parametrize("given", ["", " ", "a b", "a" * 129, "a/b", "ä", "a%0d%0ab", "a,b", "${x}", "a\tb"])
async def test_an_id_that_might_do_harm_is_replaced(bench: Bench, given: str) -> None:
    headers = {"x-request-id": given}
    assert NEW.fullmatch(await id_of(bench, "POST", CHAT, json=BODY, headers=headers))
    assert NEW.fullmatch(await id_of(bench, "GET", "/healthz", headers=headers))


@pytest.mark.parametrize("given", ["a", "a" * 128, "A.b_c-0", "550e8400-e29b-41d4-a716-446655440000"])
async def test_an_ordinary_id_is_taken(bench: Bench, given: str) -> None:
    assert await id_of(bench, "POST", CHAT, json=BODY, headers={"x-request-id": given}) == given


async def test_the_engine_gets_an_id_that_no_other_request_has(bench: Bench) -> None:
    same = {"x-request-id": "same"}
    await asyncio.gather(*(id_of(bench, "POST", CHAT, json=BODY, headers=same) for _ in range(8)))
    sent = [headers["x-request-id"] for headers in bench.engine.headers]
    assert len(set(sent)) == 8
    assert all(re.fullmatch("same-[0-9a-f]{16}", one) for one in sent)


async def test_a_new_id_is_the_engines_too_and_is_found_in_the_answer(bench: Bench) -> None:
    async with bench.http.post(CHAT, json=BODY) as reply:
        answer, request_id = await reply.json(), reply.headers["x-request-id"]
    assert bench.engine.headers[-1]["x-request-id"] == request_id
    assert answer["id"] == f"chatcmpl-{request_id}"


def test_a_second_attempt_gets_another_id() -> None:
    call = Call(scope())
    assert call.engine_id() == call.id
    assert re.fullmatch(f"{call.id}-[0-9a-f]{{16}}", call.engine_id())


async def test_no_header_of_a_client_reaches_the_engine(bench: Bench) -> None:
    headers = {"authorization": "Bearer tn-x", "x-other": "1", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    await id_of(bench, "POST", CHAT, json=BODY, headers=headers)
    seen = {name.lower() for name in bench.engine.headers[-1]}
    assert seen.isdisjoint({"authorization", "x-other", "traceparent"})


@pytest.mark.parametrize(
    "head", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n"]
)
async def test_what_is_no_request_is_answered_under_an_id_that_is_logged(
    bench: Bench, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection(bench.server.host, bench.server.port)
    writer.write(head)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", answer)
    assert re.match(rb"HTTP/1.1 4(00|31) ", answer)
    assert "no request could be read" in caplog.text


def scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], **more}


async def nothing() -> Message:
    return {"type": "http.disconnect"}


async def test_a_mistake_of_ours_is_an_answer_in_openais_shape_and_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[Message] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("never seen")

    async def send(message: Message) -> None:
        sent.append(message)

    await Observer()(app, scope(), nothing, send)
    assert sent[0]["status"] == 500
    assert orjson.loads(sent[1]["body"])["error"]["code"] == "internal_error"
    assert "a request failed" in caplog.text


async def test_a_mistake_after_the_start_is_the_servers_to_end() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    async def send(message: Message) -> None:
        return

    with pytest.raises(LookupError):
        await Observer()(app, scope(), nothing, send)


async def test_the_name_of_the_key_is_told_and_nothing_else_of_it(caplog: pytest.LogCaptureFixture) -> None:
    key = ApiKey(1, "shop", "", "tn-secre", Rights(), datetime.now(UTC), None, "tn-secret's hash")
    caplog.set_level(logging.INFO)

    async def app(asked: Scope, receive: Receive, send: Send) -> None:
        asked["state"]["caller"] = Caller(key)
        assert current() is not None

    async def send(message: Message) -> None:
        return

    await Observer()(app, scope(state={}), nothing, send)
    (record,) = (one for one in caplog.records if one.name == "serve.gateway.access")
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["key"] == "shop"
    assert "tn-secre" not in str(fields)
