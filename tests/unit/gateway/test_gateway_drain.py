"""A version that nobody wants any more stays on its engine for the requests that were routed to it before."""

import asyncio
from typing import Any

import pytest
from gateway_harness import ENGINE, MESSAGES, Bench, kept, until

from serve.engine.fake import Fault
from serve.engine.limits import GivenLimits
from serve.engine.state import used_file
from serve.engine.supervisor import Supervisor
from serve.engine.use import Use
from serve.gateway.balance.flow import Limits
from serve.registry import Version

SLOW = 1.5  # seconds: four requests, one after the other, take longer than a drain without anybody on it


def ask(bench: Bench, model: str = "support") -> "asyncio.Task[Any]":
    return asyncio.create_task(bench.post({"model": model, "messages": MESSAGES}))


def waiting(bench: Bench) -> int:
    return int(bench.source.engines.pool("base").status()[ENGINE]["waiting"])


def engaged(bench: Bench) -> list[str]:
    return Use.read(used_file(bench.home / "run")).engaged(ENGINE)


async def queue(bench: Bench) -> "tuple[Version, list[asyncio.Task[Any]]]":
    """One request of ``support@v1`` that runs until the engine is released, and three that wait behind it."""
    version = await bench.deploy()
    bench.tell_engine(max_num_seqs=1, max_loras=1)
    await until(lambda: bench.source.table.engine.limits == Limits(1, running=1))
    bench.engine.faults = [Fault("hang")]
    tasks = [ask(bench) for _ in range(4)]
    await until(lambda: waiting(bench) == 3)
    return version, tasks


async def test_who_was_routed_before_is_answered_and_nobody_else_is_routed_there(bench: Bench) -> None:
    version, tasks = await queue(bench)
    after = bench.register()
    bench.set_state(after, "ready")
    bench.registry.set_alias("support", after.ref)
    bench.set_state(version, "draining")
    await bench.follow()
    assert (await bench.post({"model": "support@v1", "messages": MESSAGES}))[0] == 503
    await until(lambda: engaged(bench) == [version.engine_name, after.engine_name])
    bench.engine.released.set()
    answers = [await task for task in tasks]
    assert [(status, answer.get("model")) for status, answer, _ in answers] == [(200, "support@v1")] * 4
    assert (await ask(bench))[1]["model"] == "support@v2"
    await until(lambda: engaged(bench) == [after.engine_name])


async def test_who_waits_for_what_is_gone_is_told_by_its_public_name(bench: Bench) -> None:
    _, tasks = await queue(bench)
    bench.states.clear()
    bench.registry.set_loaded(ENGINE, {})
    await bench.follow()
    bench.engine.released.set()
    answers = [await task for task in tasks]
    assert sorted(status for status, _, _ in answers) == [200, 503, 503, 503]
    texts = [answer["error"]["message"] for status, answer, _ in answers if status == 503]
    assert set(texts) == {"no engine holds support@v1 at this moment; try again shortly"}


def supervisor(bench: Bench, **limits: int) -> Supervisor:
    """A real supervisor beside the gateway, attached to the fake engine."""
    return Supervisor(
        bench.registry,
        bench.base,
        state_file=bench.home / "run" / "engine.json",
        log_file=bench.home / "engine.log",
        engine_url=bench.engine.url,
        limits=GivenLimits(**limits),
        used_file=used_file(bench.home / "run"),
    )


@pytest.mark.timeout(60)
async def test_no_request_fails_when_its_version_is_unloaded_behind_a_queue(bench: Bench) -> None:
    """The whole way: two flips while one request runs and three wait, then the engine gets rid of the version."""
    first, second, third = (bench.register() for _ in range(3))
    bench.registry.set_alias("support", first.ref)
    for version in (second, third):
        bench.registry.want(version.ref)
    async with kept(supervisor(bench, max_loras=1, max_num_seqs=1)):
        for version in (first, second, third):
            await until(lambda version=version: str(version.ref) in bench.source.table.routes, 20)
        bench.engine.faults = [Fault("slow_prefill", model=first.engine_name, seconds=SLOW, times=-1)]
        tasks = [ask(bench) for _ in range(4)]
        await until(lambda: waiting(bench) == 3)
        bench.registry.set_alias("support", second.ref)
        bench.registry.set_alias("support", third.ref)
        answers = [await task for task in tasks]
        assert [(status, answer.get("model")) for status, answer, _ in answers] == [(200, "support@v1")] * 4
        assert (await ask(bench))[0] == 200
        await until(lambda: first.engine_name not in bench.engine.adapters, 20)
        assert bench.engine.stats.unloads == [first.engine_name]
