"""Connections to engines, against servers that do all that HTTP allows, and some that it does not."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from gateway_harness import until
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from serve.gateway.wire import NotConnected, Wires

HEADERS = {"content-type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """Reads requests, notes them with their connection's number, and answers as told."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.seen: list[tuple[int, bytes]] = []
        self.ended: list[int] = []
        self.count = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.count = self.count, self.count + 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.startswith(b"content-length: "):
                        length = int(line.split()[1])
                body = await reader.readexactly(length)
                self.seen.append((number, head + body))
                await self.answer(head + body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.append(number)
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[URL]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.tasks.append(asyncio.create_task(self._serve(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0.02)  # the transports end a moment after their tasks


@asynccontextmanager
async def asking(answer: Answering, **changes: float) -> AsyncIterator[tuple[Engine, URL, Wires]]:
    engine = Engine(answer)
    times = {"connect": 5.0, "silence": 30.0, "keep": 60.0} | changes
    async with engine.running() as url, Wires(buffer=2**16, **times) as wires:
        yield engine, url, wires


def sends(*parts: bytes, pause: float = 0.005, close: bool = False) -> Answering:
    """Answers every request with these bytes, in so many pieces."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if close:
            writer.close()
            raise ConnectionError

    return answer


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with asking(sends(OK)) as (engine, url, wires):
        for number in range(3):
            reply = await wires.post(url, data=b"%d" % number, headers=HEADERS)
            assert (reply.status, await reply.read(), reply.at_eof()) == (200, b"ok", True)
        reply = await wires.get(url, headers={})
        assert await reply.read() == b"ok"
    assert [number for number, _ in engine.seen] == [0, 0, 0, 0]
    head, _, body = engine.seen[0][1].partition(b"\r\n\r\n")
    assert body == b"0"
    host = f"127.0.0.1:{url.port}"
    expected = ["POST /v1/x HTTP/1.1", f"host: {host}", "content-type: application/json", "content-length: 1"]
    assert head.decode().split("\r\n") == expected
    assert engine.seen[3][1] == f"GET /v1/x HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()


async def test_requests_at_once_have_connections_of_their_own() -> None:
    async with asking(sends(OK[:20], OK[20:])) as (engine, url, wires):
        replies = await asyncio.gather(*(wires.get(url, headers={}) for _ in range(10)))
        assert [await reply.read() for reply in replies] == [b"ok"] * 10
        assert engine.count == 10
        await (await wires.get(url, headers={})).read()
        assert engine.count == 10


@given(cuts=st.lists(st.integers(1, 90), max_size=6), sizes=st.lists(st.integers(1, 20), max_size=4))
@settings(max_examples=25, deadline=None)
async def test_chunks_arrive_whole_however_they_are_cut(cuts: list[int], sizes: list[int]) -> None:
    body = b"".join(bytes([65 + number]) * size for number, size in enumerate(sizes))
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, bytes([65 + n]) * size) for n, size in enumerate(sizes))
    text = CHUNKED + chunks + b"0\r\n\r\n"
    edges = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(edges)]
    async with asking(sends(*parts, pause=0.001)) as (_, url, wires):
        reply = await wires.get(url, headers={})
        got = b""
        while not reply.at_eof():
            got += await reply.readany()
        assert got == body
        assert await (await wires.get(url, headers={})).read() == body


async def test_interim_answers_are_passed_over() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    async with asking(sends(early, OK)) as (engine, url, wires):
        for _ in range(2):
            reply = await wires.get(url, headers={})
            assert (reply.status, await reply.read()) == (200, b"ok")
        assert engine.count == 1


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
)
async def test_answers_without_a_body_end_at_once(text: bytes) -> None:
    async with asking(sends(text)) as (engine, url, wires):
        for _ in range(2):
            assert await (await wires.get(url, headers={})).read() == b""
        assert engine.count == 1


async def test_an_answer_may_end_with_its_connection() -> None:
    async with asking(sends(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it", close=True)) as (_, url, wires):
        assert await (await wires.get(url, headers={})).read() == b"all of it"


async def test_a_connection_that_the_engine_closes_is_not_used_again() -> None:
    text = OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n")
    async with asking(sends(text)) as (engine, url, wires):
        for _ in range(2):
            assert await (await wires.get(url, headers={})).read() == b"ok"
        assert engine.count == 2
    async with asking(sends(OK, close=True)) as (engine, url, wires):
        for _ in range(2):
            assert await (await wires.get(url, headers={})).read() == b"ok"
            await until(lambda: not any(wire.open for idle in wires._idle.values() for wire in idle))
        assert engine.count == 2


async def test_a_connection_that_rests_too_long_is_closed_and_another_one_made() -> None:
    async with asking(sends(OK), keep=0.1) as (engine, url, wires):
        await (await wires.get(url, headers={})).read()
        await asyncio.sleep(0.2)
        await (await wires.get(url, headers={})).read()
        assert engine.count == 2
        await until(lambda: sorted(engine.ended) == [0, 1])


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", CHUNKED + b"4\r\nha"])
async def test_an_engine_that_breaks_off_is_an_error(sent: bytes) -> None:
    async with asking(sends(sent, close=True)) as (_, url, wires):
        with pytest.raises((aiohttp.ClientError, OSError)):
            await (await wires.get(url, headers={})).read()


async def test_what_came_before_the_break_is_given_out_first() -> None:
    async with asking(sends(CHUNKED + b"4\r\nhalf\r\n", close=True)) as (_, url, wires):
        reply = await wires.get(url, headers={})
        await asyncio.sleep(0.1)
        assert await reply.readany() == b"half"
        with pytest.raises((aiohttp.ClientError, OSError)):
            await reply.readany()


async def test_what_is_not_http_is_an_error() -> None:
    async with asking(sends(b"SSH-2.0-x\r\n")) as (_, url, wires):
        with pytest.raises(aiohttp.ClientPayloadError):
            await wires.get(url, headers={})


async def test_nobody_there_is_told_apart() -> None:
    async with asking(sends(OK)) as (_, url, wires):
        pass
    with pytest.raises(NotConnected, match="cannot connect"):
        await wires.get(url, headers={})


class Clock:
    """The running loop's, which can be put forward: all that is due by then happens at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead)


async def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with asking(sends(CHUNKED + b"2\r\nhi\r\n", pause=600), silence=30) as (engine, url, wires):
        reply = await wires.get(url, headers={})
        assert await reply.readany() == b"hi"
        clock.ahead += 31
        with pytest.raises(TimeoutError):
            await reply.readany()
    async with asking(sends(b"", pause=600), silence=30) as (engine, url, wires):
        asked = asyncio.create_task(wires.get(url, headers={}))
        await until(lambda: len(engine.seen) == 1)
        clock.ahead += 31
        with pytest.raises(TimeoutError):
            await asked


async def test_an_answer_that_takes_long_but_is_not_silent_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [CHUNKED, *[b"1\r\nx\r\n"] * 8, b"0\r\n\r\n"]
    clock = Clock(monkeypatch)
    async with asking(sends(*parts, pause=15), silence=30) as (engine, url, wires):
        for _ in range(2):
            reply, got = await wires.get(url, headers={}), b""
            while not reply.at_eof():
                clock.ahead += 15
                got += await reply.readany()
            assert got == b"x" * 8
            clock.ahead += 15
        assert engine.count == 1


@pytest.mark.parametrize("head", [True, False])
async def test_closing_ends_the_connection(head: bool) -> None:
    async with asking(sends(*([CHUNKED] if head else []), pause=0.1)) as (engine, url, wires):
        if head:
            (await wires.get(url, headers={})).close()
        else:
            asked = asyncio.create_task(wires.get(url, headers={}))
            await until(lambda: len(engine.seen) == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        await until(lambda: engine.ended == [0])


async def test_closing_a_complete_answer_keeps_the_connection() -> None:
    async with asking(sends(OK)) as (engine, url, wires):
        for _ in range(2):
            async with await wires.get(url, headers={}) as reply:
                await reply.read()
            reply.close()
        assert engine.count == 1


async def test_nobody_reading_holds_the_engine_back() -> None:
    sent = 0

    async def flood(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * 2**20))
        for _ in range(1024):
            writer.write(b"x" * 2**16)
            await writer.drain()
            sent += 2**16

    async with asking(flood) as (_, url, wires):
        reply = await wires.get(url, headers={})
        await asyncio.sleep(0.5)
        assert sent < 32 * 2**20  # what the kernel's buffers hold
        got = 0
        while not reply.at_eof():
            got += len(await reply.readany())
        assert got == 64 * 2**20


@pytest.mark.parametrize("large", [False, True])
async def test_a_body_arrives_as_it_was(large: bool) -> None:
    data = bytes(range(256)) * (2**14 if large else 1)
    async with asking(sends(OK)) as (engine, url, wires):
        reply = await wires.post(url, data=io.BytesIO(data) if large else data, headers=HEADERS)
        assert await reply.read() == b"ok"
        assert engine.seen[0][1].partition(b"\r\n\r\n")[2] == data


async def test_what_nobody_asked_for_is_not_taken_for_an_answer() -> None:
    async with asking(sends(OK + OK.replace(b"\r\n\r\nok", b"\r\n\r\nno"))) as (engine, url, wires):
        for _ in range(3):
            assert await (await wires.get(url, headers={})).read() == b"ok"
            await asyncio.sleep(0.02)
        assert engine.count == 3


async def test_a_header_of_two_lines_is_refused() -> None:
    async with asking(sends(OK)) as (engine, url, wires):
        for value in ("a\r\nb: c", "a\nb", "a\r"):
            with pytest.raises(ValueError, match="one line"):
                await wires.get(url, headers={"x": value})
        assert engine.count == 0


async def test_a_password_in_the_url_becomes_a_header() -> None:
    async with asking(sends(OK)) as (engine, url, wires):
        await (await wires.get(url.with_user("u").with_password("p"), headers={})).read()
        assert b"\r\nauthorization: Basic dTpw\r\n" in engine.seen[0][1]


PARTS = [b"1\r\n%b\r\n" % letter for letter in (b"a", b"b", b"c", b"d")]


@pytest.mark.parametrize("stop", [1, 2, 4])
async def test_a_body_is_poured_until_the_sink_has_enough(stop: int) -> None:
    async with asking(sends(CHUNKED, *PARTS, b"0\r\n\r\n")) as (_, url, wires):
        reply = await wires.get(url, headers={})
        got: list[bytes] = []

        def sink(part: bytes) -> bool:
            got.append(part)
            return len(b"".join(got)) < stop

        assert await reply.pour(sink)
        poured = b"".join(got)
        assert len(poured) >= stop
        assert poured + await reply.read() == b"abcd"
        assert not await reply.pour(sink)  # nothing is left


async def test_a_body_is_poured_to_its_end() -> None:
    async with asking(sends(CHUNKED, *PARTS, b"0\r\n\r\n")) as (engine, url, wires):
        for _ in range(2):
            reply, got = await wires.get(url, headers={}), list[bytes]()
            assert not await reply.pour(lambda part, got=got: got.append(part) is None)  # type: ignore[misc]
            assert b"".join(got) == b"abcd"
            assert reply.at_eof()
        assert engine.count == 1


async def test_a_break_while_pouring_is_an_error() -> None:
    async with asking(sends(CHUNKED, *PARTS, close=True)) as (_, url, wires):
        reply, got = await wires.get(url, headers={}), list[bytes]()
        with pytest.raises(aiohttp.ClientError):
            await reply.pour(lambda part: got.append(part) is None)
        assert b"".join(got) == b"abcd"


async def test_a_sink_that_cannot_read_a_part_ends_the_connection() -> None:
    def sink(part: bytes) -> bool:
        raise ValueError(part)

    async with asking(sends(CHUNKED, PARTS[0], PARTS[1], pause=0.05)) as (engine, url, wires):
        reply = await wires.get(url, headers={})
        assert await reply.readany() == b"a"
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.pour(sink)
        await until(lambda: engine.ended == [0])


async def test_who_is_cancelled_while_pouring_ends_nothing_but_that() -> None:
    async with asking(sends(CHUNKED, *PARTS, b"0\r\n\r\n", pause=0.05)) as (_, url, wires):
        reply = await wires.get(url, headers={})
        task = asyncio.create_task(reply.pour(lambda _: True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b"abcd".endswith(await reply.read())
