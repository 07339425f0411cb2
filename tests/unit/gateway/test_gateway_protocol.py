"""How answers are written, and how a hang-up is heard, on real connections."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from gateway_harness import until
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve.gateway.asgi import ClientGone, HangUp, Message, Receive, Scope, Send, push_of, read_body
from serve.gateway.ends import Incoming, Outgoing
from serve.gateway.protocol import GuardedProtocol
from serve.net import listen

App = Callable[[Scope, Receive, Send], Awaitable[None]]
HEAD: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
BODY: Message = {"type": "http.response.body", "body": b"body"}
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server of that app and a connection to it."""
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=GuardedProtocol, ws="none", lifespan="off", log_config=None)
    )
    task = asyncio.create_task(server.serve(sockets=[sock]))
    await until(lambda: server.started)
    reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


async def test_head_and_body_come_in_one_piece() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(HEAD)
        await send(BODY)

    async with serving(app) as (reader, writer):
        for _ in range(3):
            writer.write(GET)
            answer = await reader.read(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nbody")


async def test_a_head_whose_body_takes_its_time_comes_before_it() -> None:
    go_on = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(HEAD)
        await go_on.wait()
        await send({**BODY, "body": b"bo", "more_body": True})
        await send({**BODY, "body": b"dy"})

    async with serving(app) as (reader, writer):
        writer.write(GET)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        go_on.set()
        assert await reader.readexactly(4) == b"body"


async def test_a_client_that_waits_to_be_told_to_go_on_is_told() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"body"
        await send(HEAD)
        await send(BODY)

    async with serving(app) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pieces", [1, 2, 5])
async def test_a_body_is_read_whole_however_it_comes(pieces: int) -> None:
    text = b'{"model":"a","text":"0123456789"}'
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(text)
    read: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.append(bytes(await read_body(scope, receive)))
        await send(HEAD)
        await send(BODY)

    async with serving(app) as (reader, writer):
        for _ in range(3):
            step = -(-len(text) // pieces)
            for start in range(0, len(text), step):
                writer.write((head if not start else b"") + text[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.02)
            await reader.readuntil(b"body")
    assert read == [text] * 3


async def test_a_body_that_came_whole_is_given_once() -> None:
    seen: list[Any] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        incoming: Any = receive
        seen.extend([incoming.whole(), incoming.whole()])
        with pytest.raises(ClientGone), HangUp(receive):
            await asyncio.Event().wait()
        seen.append((await receive())["type"])

    async with serving(app) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
        await until(lambda: len(seen) == 2)
        writer.transport.abort()
        await until(lambda: len(seen) == 3)
    assert seen == [b"body", None, "http.disconnect"]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("size", [0, 200_000])
async def test_a_hang_up_ends_what_waits(ours: bool, before: bool, size: int) -> None:
    """Also when it came before anybody asked, when the body was large, and with another server's receive."""
    ends: list[str] = []
    waiting = asyncio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        waiting.set()
        if before:
            await asyncio.sleep(0.2)

        async def others() -> Any:
            return await receive()

        try:
            with HangUp(receive if ours else others):
                await asyncio.Event().wait()
        except ClientGone:
            await asyncio.sleep(0)  # which the cancellation would end, had it not been taken back
            ends.append("gone")

    async with serving(app) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        await asyncio.wait_for(waiting.wait(), 5)
        writer.transport.abort()
        await until(lambda: ends == ["gone"])


async def test_pipelined_requests_are_answered_in_order_and_their_hang_up_is_heard() -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with HangUp(receive):
                await asyncio.sleep(0.05 if scope["path"] == "/1" else 60)
        except ClientGone:
            ends.append(scope["path"])
            return
        await send(HEAD)
        await send(BODY)

    async with serving(app) as (reader, writer):
        writer.write(GET.replace(b"/ ", b"/1 ") + GET.replace(b"/ ", b"/2 "))
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await until(lambda: ends == ["/2"])


async def test_parts_can_be_pushed_between_head_and_end_until_the_client_reads_too_slowly() -> None:
    part, told = b"x" * 65536, list[Any]()
    read = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        push = push_of(scope)
        assert push is not None
        told.append(push(b"too early"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        count = 0
        while push(part):
            count += 1
        told.append(count)
        read.set()
        await send(
            {"type": "http.response.body", "body": b"sent", "more_body": True}
        )  # when the client reads again
        told.append(push(b"pushed"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        told.append(push(b"too late"))

    async with serving(app) as (reader, writer):
        writer.write(GET)
        await asyncio.wait_for(read.wait(), 10)
        await reader.readuntil(b"\r\n\r\n")
        got = b""
        while size := int((await reader.readline()), 16):
            got += (await reader.readexactly(size + 2))[:-2]
    early, count, later, late = told
    assert (early, later, late) == (False, True, False)
    assert 0 < count < 1000
    assert got == part * count + b"sent" + b"pushed"


async def test_a_body_of_a_known_length_is_not_pushed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        push = push_of(scope)
        assert push is not None
        await send(HEAD)
        assert not push(b"body")
        await send(BODY)

    async with serving(app) as (reader, writer):
        writer.write(GET)
        assert (await reader.readuntil(b"body")).count(b"body") == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answered_request_leaves_nothing_for_the_collector_of_cycles(streamed: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if not streamed:
            await send(HEAD)
            await send(BODY)
            return
        push = push_of(scope)
        assert push is not None
        await send({**HEAD, "headers": []})
        await send({**BODY, "more_body": True})
        assert push(b"more")
        await send({**BODY, "body": b""})

    def alive() -> int:
        # By type: to ask whether it is an instance runs code of some things that other tests have left here.
        return sum(type(thing) in (RequestResponseCycle, Incoming, Outgoing) for thing in gc.get_objects())

    async with serving(app) as (reader, writer):
        gc.collect()
        before = alive()
        gc.disable()
        try:
            for _ in range(20):
                writer.write(GET)
                await reader.readuntil(b"0\r\n\r\n" if streamed else b"\r\n\r\nbody")
            await asyncio.sleep(0.05)
            assert alive() - before <= 3  # the last request's, which the connection remembers
        finally:
            gc.enable()
