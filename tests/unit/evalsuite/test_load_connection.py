"""The load client on real sockets, against the canned engine and against servers that misbehave."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from canned_engine import canned

from evalsuite.load.connection import Broken, Connection, Tally, request_to
from evalsuite.load.faults.witness import until
from evalsuite.load.gateway import set_pause
from evalsuite.load.traffic import OpenLoop, ask_once, closed_loop, until_answered

MESSAGES = [{"role": "user", "content": "x"}]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def behaving(behaviour: Behaviour) -> AsyncIterator[str]:
    """A server that reads the head of each connection's first request and then does as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await behaviour(reader, writer)
        writer.close()

    connections: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*connections, return_exceptions=True)
    await asyncio.sleep(0.01)  # the transports end a moment after their tasks


async def test_whole_answers_on_one_connection() -> None:
    async with canned() as url:
        connection = await Connection.open(url)
        for model in ("a", "b@v1"):
            answer = await connection.ask(request_to(url, {"model": model, "messages": MESSAGES}))
            assert (answer.status, json.loads(answer.body)["model"]) == (200, model)
            assert 0 < answer.first <= answer.done
        connection.hang_up()


async def test_a_stream_has_as_many_events_as_were_asked_for() -> None:
    tally = Tally()
    body = {"model": "a", "messages": MESSAGES, "stream": True, "max_tokens": 7}
    body["stream_options"] = {"include_usage": True}
    async with canned(0.001) as url:
        connection = await Connection.open(url, tally)
        answer = await connection.ask(request_to(url, body))
        connection.hang_up()
    events = answer.body.decode().split("\n\n")
    assert events.pop() == ""
    assert answer.events == tally.events == len(events) == 1 + 7 + 1 + 1  # the role, tokens, usage, the end
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == 100
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_the_engine_can_be_told_to_hurry() -> None:
    body = {"model": "a", "messages": MESSAGES, "stream": True, "max_tokens": 7}
    async with canned(pause=3600) as url:
        await set_pause(url, 0.0)
        answer = await ask_once(url, request_to(url, body))
    assert answer.whole


async def test_events_are_counted_however_they_are_cut() -> None:
    text = b"data: 1\n\ndata: 2\n\n"

    async def by_byte(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text))
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.001)

    async with behaving(by_byte) as url:
        answer = await ask_once(url, request_to(url, {}))
    assert answer.body == text
    assert answer.events == 2


async def test_an_answer_that_breaks_off_keeps_what_came() -> None:
    async def die(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await writer.drain()

    async with behaving(die) as url:
        with pytest.raises(Broken) as caught:
            await ask_once(url, request_to(url, {}))
    assert caught.value.answer is not None
    assert (caught.value.answer.status, caught.value.answer.body) == (200, b"half")


async def test_what_is_not_http_is_broken() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")

    async with behaving(babble) as url:
        with pytest.raises(Broken, match="not HTTP"):
            await ask_once(url, request_to(url, {}))


async def test_nobody_there_is_broken() -> None:
    async with canned() as url:
        pass
    with pytest.raises(Broken, match="cannot connect"):
        await ask_once(url, request_to(url, {}))
    with pytest.raises(Broken, match="cannot connect"):
        await until_answered(url, request_to(url, {}), 0.2, lambda: True)


async def test_hanging_up_ends_the_wait() -> None:
    async with canned(60.0) as url:
        connection = await Connection.open(url)
        waiting = connection.ask(request_to(url, {"stream": True}))
        await connection.first_event()
        connection.hang_up(hard=True)
        with pytest.raises(Broken):
            await asyncio.wait_for(waiting, 5)


async def test_a_closed_loop_keeps_asking() -> None:
    async with canned() as url, closed_loop(url, request_to(url, {"model": "a"}), 4) as tally:
        assert await until(lambda: tally.answers >= 100, 10)
    assert tally.failures == 0


async def test_a_closed_loop_makes_new_connections_and_counts_those_that_broke() -> None:
    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    async with behaving(once) as url, closed_loop(url, request_to(url, {}), 1) as tally:
        assert await until(lambda: tally.answers >= 3, 10)


def arrivals(rate: float, seconds: float, seed: int) -> int:
    """How many requests of an open loop are due in its time."""
    drawn = random.Random(seed)
    due = itertools.accumulate(drawn.expovariate(rate) for _ in range(int(2 * rate)))
    return sum(moment < seconds for moment in due)


async def test_an_open_loop_sends_at_its_rate_and_measures() -> None:
    async with canned() as url:
        load = OpenLoop(url, lambda _: request_to(url, {"model": "a"}), rate=400.0, seconds=0.5, seed=3)
        began = time.perf_counter()
        await load.run()
        passed = time.perf_counter() - began
    assert load.failures == []
    assert len(load.latencies) == len(load.lags) == arrivals(400.0, 0.5, seed=3) > 130
    assert all(0 < latency < passed for latency in load.latencies)


async def test_an_open_loop_that_is_late_sends_what_was_due_and_no_more() -> None:
    async with canned() as url:

        def late(number: int) -> bytes:
            if number == 0:
                time.sleep(0.2)
            return request_to(url, {"model": "a"})

        load = OpenLoop(url, late, rate=400.0, seconds=0.1, seed=3)
        await load.run()
    assert load.failures == []
    assert len(load.latencies) == arrivals(400.0, 0.1, seed=3)


async def test_an_open_loop_does_not_wait_for_answers_and_says_what_failed() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbusy")

    async with behaving(refuse) as url:
        load = OpenLoop(url, lambda _: request_to(url, {}), rate=200.0, seconds=0.25)
        await load.run()
    assert load.latencies == []
    assert len(load.failures) > 20
    assert set(load.failures) == {"HTTP 503: busy"}
