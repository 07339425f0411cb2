"""What keys may spend: per minute, at once and in a month; what their answers say of it; in memory and in Redis."""

import asyncio
import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_harness import MESSAGES, Bench, hang_up, running_bench, until
from support.ports import free_port
from support.redis import RedisServer
from test_gateway_errors import check_shape

from serve.config import Settings
from serve.engine.fake import Fault
from serve.errors import ConfigError
from serve.gateway.counters import WINDOW, Counters, LocalCounts
from serve.gateway.limits import duration
from serve.registry import Rights, UsageSum

BODY: Mapping[str, Any] = {"model": "support", "messages": MESSAGES}
DURATION = re.compile(r"\d+(\.\d{1,3})?s")


async def key_of(bench: Bench, name: str = "shop", **rights: Any) -> str:
    secret = bench.registry.create_key(name, Rights(**rights)).secret
    await bench.follow()
    return secret


async def ask(
    bench: Bench, secret: str, path: str = "/v1/chat/completions", **fields: Any
) -> tuple[int, Any, Mapping[str, str]]:
    headers = {"authorization": f"Bearer {secret}"}
    async with bench.http.post(path, json={**BODY, **fields}, headers=headers) as reply:
        text = await reply.text()
        return reply.status, text if fields.get("stream") else await reply.json(), reply.headers


def left(headers: Mapping[str, str], what: str) -> int:
    return int(headers[f"x-ratelimit-remaining-{what}"])


async def test_requests_per_minute(bench: Bench) -> None:
    await bench.deploy()
    secret, free = await key_of(bench, requests_per_minute=3), await key_of(bench, "free")
    for remaining in (2, 1, 0):
        status, _, headers = await ask(bench, secret)
        assert (status, left(headers, "requests")) == (200, remaining)
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert DURATION.fullmatch(headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in headers
    before = bench.engine.stats.requests
    for _ in range(2):
        status, answer, headers = await ask(bench, secret)
        assert (status, check_shape(answer)) == (429, "rate_limit_exceeded")
        assert answer["error"]["type"] == "requests"
        assert left(headers, "requests") == 0
        assert 1 <= int(headers["retry-after"]) <= 60
    assert bench.engine.stats.requests == before
    status, _, headers = await ask(bench, free)
    assert status == 200
    assert not [name for name in headers if name.startswith("x-ratelimit")]


async def test_every_answer_says_what_is_left(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, requests_per_minute=100, tokens_per_minute=100_000)
    names = {f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "tokens")}
    for status, fields in ((200, {}), (200, {"stream": True}), (400, {"n": 0}), (404, {"model": "x"})):
        got, _, headers = await ask(bench, secret, **fields)
        assert got == status
        assert names <= {name.lower() for name in headers}
    bench.engine.faults = [Fault("error")]
    got, _, headers = await ask(bench, secret)
    assert got == 502
    assert left(headers, "requests") == 95
    async with bench.http.get("/v1/models", headers={"authorization": f"Bearer {secret}"}) as reply:
        assert names <= {name.lower() for name in reply.headers}
        assert left(reply.headers, "requests") == 94


async def test_tokens_are_charged_by_estimate_and_corrected(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, tokens_per_minute=1000)
    status, answer, headers = await ask(bench, secret, max_tokens=500)
    assert status == 200
    assert left(headers, "tokens") < 500, "the answer may have had 500"
    used = answer["usage"]["total_tokens"]
    status, _, headers = await ask(bench, secret, max_tokens=1, stream=True)
    assert 1000 - used - 100 < left(headers, "tokens") < 1000 - used
    # An engine that fails costs nothing, and nor does what is refused.
    bench.engine.faults = [Fault("error")]
    before = left((await ask(bench, secret, max_tokens=300))[2], "tokens")
    assert (await ask(bench, secret, temperature=9))[0] == 400
    after = left((await ask(bench, secret, max_tokens=300))[2], "tokens")
    assert after == before


async def test_too_many_tokens(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, tokens_per_minute=1000)
    bench.engine.seconds_per_token = 0.05
    running = asyncio.create_task(ask(bench, secret, max_tokens=800, stream=True))
    await until(lambda: bench.engine.stats.running == 1)
    status, answer, headers = await ask(bench, secret, max_tokens=800)
    assert (status, check_shape(answer), answer["error"]["type"]) == (429, "rate_limit_exceeded", "tokens")
    assert 0 < left(headers, "tokens") < 200
    assert int(headers["retry-after"]) >= 1
    assert (await ask(bench, secret, max_tokens=5))[0] == 200, "a small one still fits"
    assert (await running)[0] == 200
    assert (await ask(bench, secret, max_tokens=800))[0] == 200
    # More than a whole minute's has to wait for an empty one.
    assert (await ask(bench, secret, max_tokens=900, n=4))[0] == 429
    other = await key_of(bench, "other", tokens_per_minute=1000)
    assert (await ask(bench, other, max_tokens=900, n=4))[0] == 200


async def test_who_hangs_up_gets_nothing_back(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, tokens_per_minute=1000)
    bench.engine.faults = [Fault("slow_prefill", seconds=5)]
    await hang_up(bench.engine, ask(bench, secret, max_tokens=600))
    _, _, headers = await ask(bench, secret, max_tokens=1)
    assert left(headers, "tokens") < 400


async def test_requests_at_once_and_no_place_is_lost(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, max_concurrent=2)
    bench.engine.seconds_per_token = 0.02
    first = await asyncio.gather(*(ask(bench, secret, stream=n % 2 == 0) for n in range(6)))
    assert sorted(status for status, _, _ in first) == [200, 200, 429, 429, 429, 429]
    refused = next(answer for status, answer, _ in first if status == 429 and isinstance(answer, dict))
    assert check_shape(refused) == "rate_limit_exceeded"

    for round_ in range(20):
        bench.engine.faults = [Fault("slow_prefill", seconds=5)] if round_ % 2 else []
        asking = [asyncio.create_task(ask(bench, secret, stream=n == 0, max_tokens=500)) for n in range(2)]
        await asyncio.sleep(0.03)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    bench.engine.faults = []
    at_once = bench.gateway._limiter.at_once
    await until(lambda: not at_once)
    done = await asyncio.gather(ask(bench, secret), ask(bench, secret, n=0))
    assert [status for status, _, _ in done] == [200, 400]
    assert not at_once


async def test_the_months_budget(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, monthly_tokens=20)
    statuses = [(await ask(bench, secret))[0] for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429], "8 tokens each; what began within the budget is finished"
    status, answer, headers = await ask(bench, secret, stream=True)
    assert status == 429
    assert "insufficient_quota" in answer
    assert headers["x-should-retry"] == "false"
    now = datetime.now(UTC)
    assert 0 < int(headers["retry-after"]) <= 31 * 86400
    assert (now.timestamp() + int(headers["retry-after"])) % 86400 < 5, "it ends at midnight"
    # Another gateway, or this one after a restart, knows it from the registry.
    bench.gateway.books.ledger.write()
    ledger = type(bench.gateway.books.ledger)(bench.registry)
    ledger.read()
    assert ledger.month_tokens(1) == bench.gateway.books.ledger.month_tokens(1) == 24
    bench.registry.update_key("shop", Rights(monthly_tokens=1000))
    await bench.follow()
    assert (await ask(bench, secret))[0] == 200


async def test_the_openai_client_understands(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, requests_per_minute=1)
    client = bench.client.with_options(api_key=secret)
    answer = await client.chat.completions.with_raw_response.create(model="support", messages=MESSAGES)
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="support", messages=MESSAGES)
    assert caught.value.code == "rate_limit_exceeded"


async def test_limits_that_change_hold_at_once(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, requests_per_minute=1)
    assert [(await ask(bench, secret))[0] for _ in range(2)] == [200, 429]
    bench.registry.update_key("shop", Rights(requests_per_minute=3))
    await bench.follow()
    assert [(await ask(bench, secret))[0] for _ in range(3)] == [200, 200, 429]


async def test_a_minute_ends() -> None:
    counts = LocalCounts()
    window = await counts.add("a", "requests", 5)
    assert window.used == 5
    storage = counts._owners["a"]
    storage.expirations["requests"] -= WINDOW + 1
    assert (await counts.look("a", "requests")).used == 0
    assert (await counts.add("a", "requests", 1)).used == 1
    assert (await counts.look("b", "requests")).used == 0


async def test_owners_of_the_past_are_forgotten() -> None:
    counts = LocalCounts()
    for number in range(2000):
        await counts.add(f"k{number}", "requests", 1)
        counts._owners[f"k{number}"].expirations["requests"] -= WINDOW + 1
    assert len(counts._owners) <= 512


def test_durations_are_written_as_openai_does() -> None:
    assert [duration(seconds) for seconds in (0, 1, 59.25, 0.0171)] == ["0s", "1s", "59.25s", "0.017s"]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.stop()


async def test_two_gateways_count_together_in_redis(redis: RedisServer) -> None:
    one, two = Counters(redis.url, timeout=10), Counters(redis.url, timeout=10)
    try:
        assert (await one.add("k", "tokens", 10)).used == 10
        window = await two.add("k", "tokens", 5)
        assert window.used == 15
        assert 0 < window.ends - datetime.now(UTC).timestamp() <= WINDOW + 1
        await one.correct("k", "tokens", -12)
        await asyncio.gather(*one._tasks)
        assert (await two.look("k", "tokens")).used == 3
        assert (await two.look("another", "tokens")).used == 0
        counted = await asyncio.gather(*((one, two)[n % 2].add("many", "requests", 1) for n in range(20)))
        assert sorted(window.used for window in counted) == list(range(1, 21))
    finally:
        await one.close()
        await two.close()


async def test_a_gateway_with_redis(tmp_path: Path, redis: RedisServer) -> None:
    async with running_bench(tmp_path / "home", Counters(redis.url, timeout=10)) as bench:
        await bench.deploy()
        secret = await key_of(bench, requests_per_minute=3, tokens_per_minute=1000)
        statuses = [(await ask(bench, secret, max_tokens=9))[0] for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        await until(lambda: not bench.gateway._limiter.counters._tasks)
        _, _, headers = await ask(bench, secret)
        assert 1000 - 3 * 20 < left(headers, "tokens") < 1000


async def test_without_redis_each_gateway_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer()
    url = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    async with running_bench(tmp_path / "home", Counters(url)) as bench:
        await bench.deploy()
        secret = await key_of(bench, requests_per_minute=2)
        assert [(await ask(bench, secret))[0] for _ in range(3)] == [200, 200, 429]
    assert caplog.text.count("Redis fails") == 1
    assert "s3cret" not in caplog.text
    # It comes back, and goes.
    counters = Counters(server.url, timeout=10)
    assert (await counters.add("k", "requests", 1)).used == 1
    assert counters._down
    server.start()
    counters._retry_at = 0.0
    assert (await counters.add("k", "requests", 1)).used == 1
    assert not counters._down
    server.stop()
    assert (await counters.add("k", "requests", 1)).used == 2
    assert counters._down
    await counters.close()


async def test_a_redis_that_hangs_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    counters = Counters(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0")
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(100):
        assert (await counters.add("k", "requests", 1)).used == number + 1
    assert loop.time() - began < 15, "each must not have waited for it"
    await counters.close()
    listener.close()


def test_redis_urls() -> None:
    for wrong in ("http://x", "redis://", "redis://:s3cret@[::1", "memcached://x:1"):
        with pytest.raises(ConfigError) as caught:
            Settings.read(redis_url=wrong)
        assert "s3cret" not in caught.value.message
    settings = Settings.read(redis_url="rediss://:s3cret@host:6379/1")
    assert "s3cret" not in repr(settings)
    assert Settings.stored(settings.model_dump(mode="json")) == settings
    assert Settings.read(redis_url="").redis_url is None
    assert math.isfinite(WINDOW)


async def test_limits_are_exact_under_many_requests_at_once(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench, requests_per_minute=10)
    answers = await asyncio.gather(*(ask(bench, secret, stream=n % 2 == 0) for n in range(40)))
    assert sorted(status for status, _, _ in answers) == [200] * 10 + [429] * 30
    tokens = await key_of(bench, "tokens", tokens_per_minute=1000)
    bench.engine.seconds_per_token = 0.05
    answers = await asyncio.gather(*(ask(bench, tokens, max_tokens=180, stream=True) for _ in range(20)))
    assert [status for status, _, _ in answers].count(200) == 4, "each may take 180 and its prompt"
    bench.engine.seconds_per_token = 0.0
    _, _, headers = await ask(bench, tokens, max_tokens=1)
    used = sum(one.prompt_tokens + one.completion_tokens for one in usage_of(bench) if one.key_id == 2)
    last = 1 + 1000 - used - left(headers, "tokens")
    assert 0 <= last < 60, "all that was charged too much came back, but for the last request's"


def usage_of(bench: Bench) -> list[UsageSum]:
    bench.gateway.books.ledger.write()
    return bench.registry.usage(by=("key_id",))
