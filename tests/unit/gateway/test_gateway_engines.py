"""Several engines and several bases behind one gateway: choice, retries, places, readiness."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from gateway_harness import MESSAGES, Bench, until

from serve.engine.fake import FakeEngine, Fault
from serve.engine.state import EngineState, used_file
from serve.engine.use import Use
from serve.gateway import source
from serve.gateway.balance.member import EngineInfo
from serve.gateway.balance.slots import Limits
from serve.records import write_json
from serve.registry import Version


@dataclass
class Other:
    """A second engine, named ``other``."""

    bench: Bench
    engine: FakeEngine
    states: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def tell(self, state: str = "ready", **changes: Any) -> None:
        """Write its record and wait until the gateway knows it."""
        record = EngineState(url=self.engine.url, base_name=self.engine.base_name)
        record = record.but(state=state, **changes)
        write_json(self.bench.home / "run" / "engines" / "other.json", record.to_json())
        await until(lambda: self.known == record.to_json())

    @property
    def known(self) -> object:
        view = self.bench.source.table.engines.get("other")
        return view.record if view is not None else None

    async def hold(self, version: Version) -> None:
        """Have it hold a version, and wait until the gateway knows."""
        self.states[str(version.ref)] = ("ready", "")
        self.engine.adapters[version.engine_name] = str(version.path)
        self.bench.registry.set_loaded("other", self.states)
        await self.bench.follow()


@pytest.fixture
async def other(bench: Bench) -> AsyncIterator[Other]:
    async with FakeEngine() as engine:
        second = Other(bench, engine)
        await second.tell()
        yield second


async def chat(bench: Bench, text: str = "one two three", model: str = "support") -> tuple[int, Any]:
    status, answer, _ = await bench.post({"model": model, "messages": [{"role": "user", "content": text}]})
    return status, answer


def counts(bench: Bench, other: Other) -> tuple[int, int]:
    return len(bench.engine.bodies), len(other.engine.bodies)


async def test_conversations_spread_and_each_keeps_its_engine(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    for number in range(40):
        assert (await chat(bench, f"talk {number}"))[0] == 200
    spread = counts(bench, other)
    assert min(spread) >= 5
    for _ in range(10):
        assert (await chat(bench, "talk 1"))[0] == 200
    assert 0 in [now - then for now, then in zip(counts(bench, other), spread, strict=True)]


async def test_an_adapter_is_asked_where_it_is_ready(bench: Bench, other: Other) -> None:
    version = await bench.deploy()
    await other.hold(version)
    bench.set_state(version, "pending")
    await bench.follow()
    for number in range(10):
        assert (await chat(bench, f"talk {number}"))[0] == 200
    assert counts(bench, other) == (0, 10)
    async with bench.http.get("/api/status") as reply:
        (row,) = (await reply.json())["versions"]
    assert row["state"] == "ready"
    assert {engine: states["state"] for engine, states in row["engines"].items()} == {
        "engine": "pending",
        "other": "ready",
    }


async def test_no_request_fails_when_one_of_two_engines_dies(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    await other.engine.stop()
    for number in range(30):
        assert (await chat(bench, f"talk {number}"))[0] == 200
    samples = await bench.metrics()
    assert 1 <= samples['tenon_retries_total{engine="other"}'] <= 5
    assert samples['tenon_requests_total{adapter="support",outcome="ok",version="support@v1"}'] == 30
    assert samples["tenon_engine_up"] == 1
    if samples['tenon_retries_total{engine="other"}'] == 5:
        assert samples['tenon_engine_ejections_total{engine="other"}'] == 1


async def test_an_engine_that_fails_again_and_again_is_left_alone(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    other.engine.faults = [Fault("error", status=503, times=-1)]
    statuses = [(await chat(bench, f"talk {number}"))[0] for number in range(60)]
    assert set(statuses) == {200}
    assert len(other.engine.bodies) == 5
    samples = await bench.metrics()
    assert samples['tenon_engine_ejections_total{engine="other"}'] == 1
    async with bench.http.get("/api/status") as reply:
        pools = (await reply.json())["pools"]
    assert (pools["base"]["other"]["ejected"], pools["base"]["engine"]["ejected"]) == (True, False)


async def test_an_engine_that_lost_the_adapter_is_not_the_last_word(bench: Bench, other: Other) -> None:
    version = await bench.deploy()
    await other.hold(version)
    del other.engine.adapters[version.engine_name]
    assert {(await chat(bench, f"talk {number}"))[0] for number in range(20)} == {200}
    assert (await bench.metrics())['tenon_engine_ejections_total{engine="other"}'] == 0


async def test_a_request_that_ends_every_engine_is_not_sent_to_all(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    for engine in (bench.engine, other.engine):
        engine.faults = [Fault("die_mid_stream", times=-1)]
    assert (await chat(bench))[0] == 503
    assert counts(bench, other) == (1, 1)


async def test_what_an_engine_began_to_answer_is_not_asked_again(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    for engine in (bench.engine, other.engine):
        engine.faults = [Fault("die_mid_stream", after=2)]
    assert '{"error":{"message":' in await bench.stream()
    assert sum(counts(bench, other)) == 1


def squeeze(bench: Bench, **limits: int) -> None:
    """Let the engine have one place, whatever its record says, and few that wait for it."""
    info = EngineInfo("engine", frozenset(), Limits(1, running=1, **limits))
    bench.source.engines.pool("base").update([info])


async def test_who_finds_no_place_is_told_when_to_come_back(bench: Bench) -> None:
    squeeze(bench, waiting=1)
    bench.engine.faults = [Fault("slow_prefill", seconds=1.0)]
    running = asyncio.create_task(bench.post({"model": "base", "messages": MESSAGES}))
    await until(lambda: bench.engine.stats.running)
    waits = asyncio.create_task(bench.post({"model": "base", "messages": MESSAGES}))
    waiting = 'tenon_requests_waiting{adapter="base"}'
    async with asyncio.timeout(5):
        while (await bench.metrics())[waiting] != 1:
            pass
    status, answer, headers = await bench.post({"model": "base", "messages": MESSAGES})
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
    assert {(await running)[0], (await waits)[0]} == {200}
    samples = await bench.metrics()
    assert samples[waiting] == 0
    assert samples['tenon_wait_seconds_sum{engine="engine"}'] > 0.3
    assert samples['tenon_wait_seconds_count{engine="engine"}'] == 2
    assert samples['tenon_requests_total{adapter="base",outcome="unavailable",version="base"}'] == 1


async def test_who_hangs_up_while_waiting_leaves_the_queue_and_no_engine_hears_of_it(bench: Bench) -> None:
    squeeze(bench)
    bench.engine.faults = [Fault("slow_prefill", seconds=30.0)]
    pool = bench.source.engines.pool("base")
    tasks = [
        asyncio.create_task(bench.post({"model": "base", "messages": MESSAGES, "stream": stream}))
        for stream in (False, True, False, True)
    ]
    await until(lambda: pool.status()["engine"]["waiting"] == 3)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await until(lambda: (pool.status()["engine"]["waiting"], pool.status()["engine"]["running"]) == (0, 0))
    assert len(bench.engine.bodies) == 1
    await until(lambda: bench.engine.stats.running == 0)


async def test_the_tokenizer_needs_no_place(bench: Bench) -> None:
    squeeze(bench, waiting=1)
    bench.engine.faults = [Fault("slow_prefill", seconds=30.0)]
    task = asyncio.create_task(bench.post({"model": "base", "messages": MESSAGES}))
    await until(lambda: bench.engine.stats.running)
    status, answer, _ = await bench.post({"prompt": "one two"}, "/tokenize")
    assert (status, "tokens" in answer) == (200, True)
    task.cancel()
    await asyncio.wait([task])


async def test_limits_are_those_of_the_engines_record(bench: Bench) -> None:
    bench.tell_engine(max_loras=2, max_num_seqs=3)
    await until(lambda: bench.source.table.engine.limits == Limits(2, running=3))
    bench.engine.faults = [Fault("slow_prefill", seconds=0.3, times=-1)]
    tasks = [asyncio.create_task(bench.post({"model": "base", "messages": MESSAGES})) for _ in range(9)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, bench.engine.stats.running)
        await asyncio.sleep(0.01)
    assert most == 3
    assert {(await task)[0] for task in tasks} == {200}


async def test_two_bases_have_engines_and_adapters_of_their_own(bench: Bench, other: Other) -> None:
    version = await bench.deploy()
    other.engine.base_name = "second"
    await other.tell()
    ticket = bench.register("ticket")
    bench.registry.set_alias("ticket", ticket.ref)
    await other.hold(ticket)
    for model, engine in (("base", bench.engine), ("second", other.engine)):
        status, answer = await chat(bench, model=model)
        assert (status, answer["model"], engine.bodies[-1]["model"]) == (200, model, model)
    for model, engine, held in (("support", bench.engine, version), ("ticket", other.engine, ticket)):
        status, answer = await chat(bench, model=model)
        assert (status, answer["model"]) == (200, str(held.ref))
        assert engine.bodies[-1]["model"] == held.engine_name
    assert list(bench.source.table.models)[:2] == ["base", "second"]


async def test_readiness_needs_an_engine_for_each_base(bench: Bench, other: Other) -> None:
    async def ready() -> int:
        async with bench.http.get("/readyz") as reply:
            return reply.status

    bench.tell_engine(state="starting")
    await until(lambda: bench.source.table.engine.state == "starting")
    assert await ready() == 200, "the other one answers for the base"
    assert (await chat(bench, model="base"))[0] == 200
    bench.tell_engine()
    other.engine.base_name = "second"
    await other.tell("down")
    assert await ready() == 503
    status, answer = await chat(bench, model="second")
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    assert (await chat(bench, model="base"))[0] == 200
    await other.tell()
    assert await ready() == 200


async def test_an_engine_whose_record_goes_is_not_asked_any_more(bench: Bench, other: Other) -> None:
    await other.hold(await bench.deploy())
    (bench.home / "run" / "engines" / "other.json").unlink()
    await until(lambda: other.known is None)
    assert {(await chat(bench, f"talk {number}"))[0] for number in range(10)} == {200}
    assert other.engine.bodies == []


async def test_patience_follows_the_usual_time_of_an_answer(bench: Bench) -> None:
    for _ in range(5):
        await chat(bench, model="base")
    status = bench.source.engines.status()["base"]["engine"]
    assert isinstance(status, dict)
    assert 2.3 < status["patience"] < 2.5  # from 3 s, a twentieth of the way to nothing with each answer


async def test_the_controller_is_told_what_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TELL_SECONDS", 0.0)
    versions = [await bench.deploy(name) for name in ("aaa", "bbb", "ccc")]
    await chat(bench, model="aaa")
    a, b, c = (version.engine_name for version in versions)
    path = used_file(bench.home / "run")
    await until(lambda: Use.read(path) == Use({"engine": [b, c, a]}, alive=True))
    await chat(bench, model="bbb")
    await until(lambda: Use.read(path).order("engine") == [c, a, b])


async def test_engines_of_other_machines_are_asked_where_the_registry_is_shared(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(source, "FRESH_SECONDS", 60.0)
    version = await bench.deploy()
    bench.set_state(version, "pending")
    async with FakeEngine(adapters=[version.engine_name]) as far:
        bench.registry.set_loaded("far", {str(version.ref): ("ready", "")})
        bench.registry.see_engine("far", far.url, "base", "ready")
        bench.registry.see_engine("twin", bench.engine.url, "base", "ready")
        bench.registry.see_engine("sick", "http://nowhere", "base", "down")
        await bench.follow()
        assert (await chat(bench))[0] == 503
        bench.source.shared = True
        await until(lambda: list(bench.source.table.engines) == ["engine", "far"])
        assert (await chat(bench))[0] == 200
        assert len(far.bodies) == 1
        monkeypatch.setattr(source, "FRESH_SECONDS", 0.0)  # nobody has seen it for so long
        await until(lambda: list(bench.source.table.engines) == ["engine"])
        assert (await chat(bench))[0] == 503


async def test_the_parent_of_a_card_is_the_id_of_its_base_under_whatever_name_it_is_served(
    bench: Bench,
) -> None:
    """An attached engine may serve our base by its hub id, also while a version is not loaded yet."""
    bench.engine.base_name = hub = "Qwen/Qwen3-0.6B"
    bench.tell_engine(base_digest=bench.base.digest)
    await until(lambda: bench.source.table.engine.base_name == hub)
    await bench.deploy()
    late = bench.register("late")
    bench.registry.set_alias("late", late.ref)
    await bench.follow()
    cards = bench.source.table.models
    assert {name: card["parent"] for name, card in cards.items()} == {
        hub: None,
        "support": hub,
        "support@v1": hub,
        "late": hub,
    }
    status, answer = await chat(bench, model=f"ft:{hub}:support")
    assert (status, answer["model"]) == (200, "support@v1")
