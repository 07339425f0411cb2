"""Schedules are the same each time, and what is seen of a replay counts from when a request was due."""

import argparse
import asyncio
import json
import math
import time
from collections import Counter
from pathlib import Path

import pytest
from canned_engine import canned

from evalsuite.load import hangups, overhead, slots_engine
from evalsuite.load.connection import Connection, TimedConnection, request_to
from evalsuite.load.replay import Call, Plan, Seen, pace, replay, summarise


def test_schedule_is_zipf_poisson_and_the_same_each_time() -> None:
    plan = Plan(rate=50, seconds=60, tokens=40)
    calls = plan.calls()
    assert calls == plan.calls() != Plan(rate=50, seconds=60, tokens=40, seed=2).calls()
    counts = Counter(call.adapter for call in calls)
    assert counts[0] > 1.5 * counts[1] > 4 * counts[15] > 0
    assert set(counts) == set(range(16))
    assert 2700 < len(calls) < 3300
    assert calls == sorted(calls, key=lambda call: call.at)
    assert all(0 < call.at < 60 and 10 <= call.tokens <= 160 and 1 <= call.sentences <= 4 for call in calls)


def test_without_skew_all_adapters_are_asked_alike() -> None:
    counts = Counter(call.adapter for call in Plan(adapters=4, rate=100, skew=0, seconds=60).calls())
    assert max(counts.values()) < 1.2 * min(counts.values())


async def test_replay_sees_first_and_last_token_of_each_call() -> None:
    calls = [Call(0.02 * number, number, 1, 5) for number in range(5)]
    async with canned(0.02) as url:
        body = {"model": "a", "stream": True, "max_tokens": 5}
        began = time.perf_counter()
        seen = await replay(url, calls, lambda _: request_to(url, body))
        passed = time.perf_counter() - began
    assert [one.call for one in seen] == calls
    assert [one.failure for one in seen] == [""] * 5
    assert all(0 < one.first < one.last < passed for one in seen)
    assert all(one.last - one.first > 0.05 for one in seen)
    assert all(0 <= one.lag < passed for one in seen)


async def test_time_counts_from_when_a_call_was_due() -> None:
    async with canned() as url:

        def late(_: Call) -> bytes:
            sleep = asyncio.get_running_loop().time() + 0.1
            while asyncio.get_running_loop().time() < sleep:
                pass  # a client that is busy with something else
            return request_to(url, {"model": "a", "stream": True, "max_tokens": 1})

        seen = await replay(url, [Call(0.0, 0, 1, 1), Call(0.01, 0, 1, 1)], late)
    assert seen[0].first > 0.1
    assert seen[1].lag > 0.08
    assert seen[1].first > 0.19


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\ndata: {}\n\n",
        b'HTTP/1.1 200 OK\r\ncontent-length: 37\r\n\r\ndata: {"error":{}}\n\ndata: [DONE]\n\n    ',
        b'HTTP/1.1 200 OK\r\ncontent-length: 33\r\n\r\ndata: {"error":{}}\n\ndata: [DONE]\n\n',
        b"",
    ],
    ids=["refused", "not ended", "more after the end", "failed", "cut off"],
)
async def test_what_is_not_whole_has_failed(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        [seen] = await replay(url, [Call(0.0, 0, 1, 1)], lambda _: request_to(url, {}))
    await asyncio.sleep(0.01)
    assert seen.failure
    assert math.isnan(seen.first)


def test_waits_are_of_what_was_answered() -> None:
    busy = [Seen(Call(number / 10, 0, 1, 10), 0.001, 0.1, 0.5) for number in range(99)]
    rare = [Seen(Call(9.9, 1, 1, 10), 0.5, 3.0, 4.0), Seen(Call(10.0, 1, 1, 10), 0.0, failure="HTTP 503")]
    waits = summarise([busy + rare])
    assert (waits.requests, waits.failed, waits.failures) == (101, 1, {"HTTP 503": 1})
    assert (waits.p50, waits.p99) == (0.1, 0.1)
    assert (waits.worst_p50, waits.worst_p99) == (3.0, 3.0)
    assert waits.mean == pytest.approx((99 * 0.1 + 3.0) / 100)
    assert waits.tokens_per_second == pytest.approx(100 * 10 / 13.9)


def test_nothing_answered_is_no_time_at_all() -> None:
    waits = summarise([[Seen(Call(0.0, 0, 1, 1), 0.0, failure="x")]])
    assert (waits.failed, waits.tokens_per_second) == (1, 0.0)
    assert all(math.isnan(number) for number in (waits.mean, waits.p50, waits.p99, waits.worst_p99))
    assert pace([]) == 0.0


async def test_gaps_between_tokens_leave_the_opening_and_the_end_out() -> None:
    async with canned(0.02) as url:
        connection = await TimedConnection.open(url)
        for tokens in (6, 3):
            await connection.ask(request_to(url, {"model": "a", "stream": True, "max_tokens": tokens}))
            assert len(connection.moments) == tokens + 2
            assert len(connection.gaps) == tokens - 1
            assert sum(connection.gaps) > 0.01
        connection.hang_up()
        assert isinstance(connection, Connection)


def options_of(made: argparse.ArgumentParser, fake: str, *words: str) -> argparse.Namespace:
    return made.parse_args(["--engine-command", fake, "--rank", "2", *words])


async def test_slots_are_measured_directly_and_through_the_gateway(
    fake_command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--adapters", "3", "--slots", "2", "--rates", "20", "--seconds", "1", "--rounds", "2"]
    found = await slots_engine.measure(options_of(slots_engine.parser(), fake_command, *words))
    direct, through = found[20, slots_engine.DIRECT], found[20, slots_engine.THROUGH]
    assert direct.requests == through.requests > 10
    assert (direct.failures, through.failures) == ({}, {})
    assert [row["asked"] for row in slots_engine.rows(found)] == [slots_engine.DIRECT, slots_engine.THROUGH]
    json.dumps(slots_engine.rows(found))


async def test_gateway_is_compared_with_its_engine(fake_command: str) -> None:
    words = ["--requests", "6", "--at-once", "3", "--tokens", "8", "--rounds", "2"]
    found = await overhead.measure(options_of(overhead.parser(), fake_command, *words))
    assert [row["asked"] for row in found.rows] == ["gateway", "engine"]
    assert [row["failed"] for row in found.rows] == [0, 0]
    assert all(row["tokens/s"] > 0 for row in found.rows)
    assert found.goals[1].met


async def test_clients_hang_up_on_an_engine_that_is_read_by_its_metrics(fake_command: str) -> None:
    words = ["--requests", "16", "--tokens", "500", "--sentences", "2"]
    slow = f"{fake_command} --seconds-per-token 0.02"  # or answers end before the wave is complete
    found = await hangups.measure(options_of(hangups.parser(), slow, *words))
    assert [row["clients"] for row in found.rows] == [4, 4, 4, 4, 16]
    soon, *counts = found.goals
    assert math.isfinite(soon.measured), found
    assert all(goal.met for goal in counts), found
