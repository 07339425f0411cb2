"""Use: counted once for each request, whatever became of it, and never lost while the registry cannot be written."""

import asyncio
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import MESSAGES, Bench, hang_up, until

from serve.engine.fake import Fault
from serve.errors import StorageError
from serve.gateway.balance.flow import Limits
from serve.gateway.balance.member import EngineInfo
from serve.gateway.ledger import Ledger, Row, Use
from serve.gateway.metrics import MAX_KEYS, Metrics
from serve.prices import Price, Prices
from serve.registry import Registry, Rights, UsageSum
from serve.registry.usage import today

BODY: Mapping[str, Any] = {"model": "support", "messages": MESSAGES}


async def ask(bench: Bench, secret: str, path: str = "/v1/chat/completions", **fields: Any) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    async with bench.http.post(path, json={**BODY, **fields}, headers=headers) as reply:
        await reply.read()
        return reply.status


def counted(bench: Bench) -> dict[tuple[int, str], UsageSum]:
    bench.gateway.books.ledger.write()
    sums = bench.registry.usage(by=("key_id", "version"))
    return {(int(one.key_id or 0), str(one.version)): one for one in sums}


async def key_of(bench: Bench, name: str = "shop", **rights: Any) -> str:
    secret = bench.registry.create_key(name, Rights(**rights)).secret
    await bench.follow()
    return secret


async def test_many_requests_at_once_are_counted_once_each(bench: Bench) -> None:
    await bench.deploy()
    secrets = [await key_of(bench, name) for name in ("a", "b")]
    bench.engine.seconds_per_token = 0.001

    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await asyncio.to_thread(bench.gateway.books.ledger.write)

    writing = asyncio.create_task(write())
    asked = [ask(bench, secrets[n % 2], stream=n % 3 == 0, n=1 + n % 2) for n in range(120)]
    assert set(await asyncio.gather(*asked)) == {200}
    await ask(bench, secrets[0], model="base")
    done.set()
    await writing
    found = counted(bench)
    assert {place: one.requests for place, one in found.items()} == {
        (1, "support@v1"): 60,
        (2, "support@v1"): 60,
        (1, "base"): 1,
    }
    assert found[1, "support@v1"].prompt_tokens == 60 * 3
    assert found[1, "support@v1"].completion_tokens < found[2, "support@v1"].completion_tokens
    samples = await metrics(bench, secrets)
    total = sum(one.completion_tokens for one in found.values() if one.version != "base")
    assert samples['tenon_completion_tokens_total{adapter="support"}'] == total


async def metrics(bench: Bench, _: object) -> dict[str, float]:
    bench.source.keys.open_metrics = True
    return await bench.metrics()


async def test_engine_time_is_shared_by_those_who_ran(bench: Bench) -> None:
    await bench.deploy()
    secrets = [await key_of(bench, name) for name in ("a", "b")]
    bench.engine.seconds_per_token = 0.05
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(ask(bench, secret, stream=True) for secret in secrets))
    passed = loop.time() - began
    found = counted(bench)
    shares = [found[key, "support@v1"].engine_seconds for key in (1, 2)]
    assert 0.2 < sum(shares) <= passed
    assert shares[0] == pytest.approx(shares[1], rel=0.5)


async def test_streams_that_break_and_clients_that_leave_are_counted(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench)
    bench.engine.faults = [Fault("die_mid_stream", after=3)]
    await ask(bench, secret, stream=True)
    found = counted(bench)[1, "support@v1"]
    assert (found.requests, found.completion_tokens) == (1, 3)
    assert found.prompt_tokens > 0

    bench.engine.seconds_per_token = 0.05
    headers = {"authorization": f"Bearer {secret}"}
    body = {**BODY, "messages": [{"role": "user", "content": "x " * 200}], "stream": True}
    async with bench.http.post("/v1/chat/completions", json=body, headers=headers) as reply:
        await reply.content.readany()
        reply.close()
    await until(lambda: bench.engine.stats.running == 0)
    await until(lambda: counted(bench)[1, "support@v1"].requests == 2)
    assert counted(bench)[1, "support@v1"].engine_seconds > 0
    before = counted(bench)[1, "support@v1"]

    bench.engine.faults = [Fault("slow_prefill", seconds=5)]
    await hang_up(bench.engine, ask(bench, secret), after=0.2)
    await until(lambda: counted(bench)[1, "support@v1"].requests == 3)
    after = counted(bench)[1, "support@v1"]
    assert after.completion_tokens == before.completion_tokens
    assert after.prompt_tokens > before.prompt_tokens  # the engine was reading it
    assert after.engine_seconds > before.engine_seconds + 0.1


async def test_what_was_refused_or_failed_is_not_counted(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench)
    assert await ask(bench, secret, temperature=9) == 400
    assert await ask(bench, secret, model="nobody") == 404
    assert await ask(bench, "wrong") == 401
    bench.engine.faults = [Fault("error")]
    assert await ask(bench, secret) == 502
    assert counted(bench) == {}


async def test_every_endpoint_is_counted(bench: Bench) -> None:
    await bench.deploy()
    secret = await key_of(bench)
    headers = {"authorization": f"Bearer {secret}"}
    bodies = {
        "/v1/responses": {"input": "one two"},
        "/v1/completions": {"prompt": "one two"},
        "/v1/embeddings": {"input": "one two"},
        "/tokenize": {"prompt": "one two"},
    }
    for number, (path, fields) in enumerate(bodies.items(), 1):
        async with bench.http.post(path, json={"model": "support", **fields}, headers=headers) as reply:
            assert reply.status == 200, path
        found = counted(bench)[1, "support@v1"]
        assert found.requests == number
        assert found.prompt_tokens == 2 * min(number, 3), path


async def test_without_keys_use_is_counted_as_nobodys(bench: Bench) -> None:
    await bench.deploy()
    await bench.post(BODY)
    assert counted(bench)[0, "support@v1"].requests == 1


async def test_money(bench: Bench) -> None:
    bench.gateway.books._prices = Prices(
        default=Price(prompt=1e6), adapters={"support": Price(prompt=2e6, completion=1e6)}
    )
    await bench.deploy()
    await bench.post(BODY)
    await bench.post({**BODY, "model": "base"})
    samples = await bench.metrics()
    answer = samples['tenon_completion_tokens_total{adapter="support"}']
    assert samples['tenon_cost_total{adapter="support"}'] == 3 * 2 + answer
    assert samples['tenon_cost_total{adapter="base"}'] == 3


class Unreliable:
    """A registry that fails while ``broken``, before or after nothing was written."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.broken = True

    def add_usage(self, deltas: Any) -> None:
        if self.broken:
            raise StorageError("the disk is full")
        self.registry.add_usage(deltas)

    def usage(self, **options: Any) -> list[UsageSum]:
        if self.broken:
            raise StorageError("the disk is gone")
        return self.registry.usage(**options)


async def test_who_waited_in_vain_took_nothing(bench: Bench) -> None:
    info = EngineInfo("engine", frozenset(), Limits(1, running=1))
    bench.source.engines.pool("base").update([info])
    secret = await key_of(bench, tokens_per_minute=1000)
    bench.source.engines.pool("base").update([info])
    bench.engine.faults = [Fault("slow_prefill", seconds=30)]
    asking = [asyncio.create_task(ask(bench, secret, model="base", max_tokens=400)) for _ in range(2)]
    pool = bench.source.engines.pool("base")
    await until(lambda: pool.status()["engine"]["running"] == 1 and pool.status()["engine"]["waiting"] >= 1)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await until(lambda: pool.status()["engine"]["running"] == pool.status()["engine"]["waiting"] == 0)
    await until(lambda: not bench.gateway._limiter.at_once)
    assert sum(one.requests for one in counted(bench).values()) == len(bench.engine.bodies) == 1
    bench.engine.faults = []
    headers = {"authorization": f"Bearer {secret}"}
    async with bench.http.get("/v1/models", headers=headers) as reply:
        assert 500 < int(reply.headers["x-ratelimit-remaining-tokens"]) < 600, "one of two gave its 400 back"


async def test_tokens_by_key_and_the_end_of_a_series(bench: Bench) -> None:
    await bench.deploy()
    await bench.post(BODY)
    secrets = [await key_of(bench, name) for name in ("a", "b")]
    for secret in secrets:
        await ask(bench, secret)
    samples = await metrics(bench, secrets)
    tokens = samples['tenon_key_tokens_total{key="a"}']
    assert (
        tokens
        == samples['tenon_key_tokens_total{key="b"}']
        == samples['tenon_key_tokens_total{key="(none)"}']
    )
    assert tokens == 3 + 5
    bench.registry.revoke_key("a")
    await bench.follow()
    samples = await bench.metrics()
    assert 'tenon_key_tokens_total{key="a"}' not in samples
    assert 'tenon_key_tokens_total{key="b"}' in samples


def test_too_many_keys_are_folded() -> None:
    found = Metrics(lambda: True)
    for number in range(2 * MAX_KEYS):
        found.key(f"k{number}").inc()
    text = found.text().decode()
    assert text.count("\ntenon_key_tokens_total{") == MAX_KEYS + 1
    assert 'tenon_key_tokens_total{key="(other)"} 100.0' in text


def test_what_cannot_be_written_is_kept(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        unreliable = Unreliable(registry)
        ledger = Ledger(unreliable)  # type: ignore[arg-type]
        for _ in range(3):
            ledger.add(1, "support", "support@v1", Use(1, 10, 5, 0.5))
            with pytest.raises(StorageError):
                ledger.write()
            with pytest.raises(StorageError):
                ledger.read()
        assert ledger.month_tokens(1) == 45
        unreliable.broken = False
        ledger.write()
        ledger.write()
        (found,) = registry.usage()
        assert (found.requests, found.prompt_tokens, found.completion_tokens) == (3, 30, 15)
        assert found.engine_seconds == pytest.approx(1.5)
        assert ledger.month_tokens(1) == 45
        ledger.read()
        assert ledger.month_tokens(1) == 45
        ledger.add(1, "support", "support@v1", Use(1, 1, 0, 0))
        assert ledger.month_tokens(1) == 46
        assert ledger.month_tokens(2) == 0
        Ledger(registry).add(1, "support", "support@v1", Use(1, 1000, 0, 0))  # not ours, and never written


def test_the_memory_of_what_cannot_be_written_is_bounded(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        ledger = Ledger(registry, max_rows=10)
        for number in range(50):
            ledger.add(1, "support", f"support@v{number + 1}", Use(1, 1))
        assert len(ledger._rows) == 11
        ledger.write()
        assert sum(one.requests for one in registry.usage()) == 50


def test_a_new_month_begins_at_nothing(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        ledger = Ledger(registry)
        last_month = today().replace(day=1) - timedelta(days=1)
        ledger._month = date(last_month.year, last_month.month, 1)
        ledger._rows[Row(last_month, 1, "support", "support@v1")] = Use(1, 7)
        ledger._unwritten[1] = 7
        ledger._written[1] = 100
        assert ledger.month_tokens(1) == 0
        ledger.add(1, "support", "support@v1", Use(1, 10))
        assert ledger.month_tokens(1) == 10
        ledger.write()
        assert ledger.month_tokens(1) == 10
        ledger.read()
        assert ledger.month_tokens(1) == 10


async def test_it_is_written_at_the_end(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        ledger = Ledger(registry, interval=0.05)
        async with ledger.running():
            ledger.add(1, "support", "support@v1", Use(1, 10))
            await until(lambda: bool(registry.usage()))
            ledger.add(1, "support", "support@v1", Use(1, 10))
        assert registry.usage()[0].requests == 2
