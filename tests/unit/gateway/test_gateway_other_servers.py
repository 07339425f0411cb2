"""A server that speaks OpenAI's routes alone, watched and asked under the names that it lists."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from gateway_harness import MESSAGES, Bench, kept, until

from deploy.serving import engines_up
from deploy.status import engine_part
from serve.config import Settings
from serve.engine import watcher
from serve.engine.fake import FakeEngine, Fault
from serve.engine.openai import OpenAIClient, served_names
from serve.engine.watcher import Watcher
from serve.errors import AdapterLoadFailed, EngineUnavailable

OURS = ("/health", "/metrics", "/version", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize")


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeEngine]:
    """A model and two adapters, started with it, and none of vLLM's own routes."""
    monkeypatch.setattr(watcher, "PAUSE", 0.05)
    async with FakeEngine(["lora-a", "support"], base_name="org/Big-70B") as engine:
        engine.lacks = dict.fromkeys(OURS, 404)
        yield engine


def watched(
    bench: Bench, server: FakeEngine, names: Mapping[str, str]
) -> AbstractAsyncContextManager[Watcher]:
    path = bench.home / "run" / "engines" / "big.json"
    return kept(Watcher("big", server.url, names, state_file=path, engine_id="big", max_num_seqs=2))


def known(bench: Bench, state: str) -> bool:
    view = bench.source.table.engines.get("big")
    return view is not None and view.state == state


async def ask(bench: Bench, model: str) -> tuple[int, str]:
    status, answer, _ = await bench.post({"model": model, "messages": MESSAGES})
    return status, answer["model"] if status == 200 else answer["error"]["code"]


async def test_it_is_asked_under_the_names_that_it_lists(bench: Bench, server: FakeEngine) -> None:
    await bench.deploy()  # an alias of ours is called as one of its models is: ours stays what it was
    async with watched(bench, server, {"big": "org/Big-70B", "reviewer": "lora-a", "support": "support"}):
        await until(lambda: known(bench, "ready"))
        assert await ask(bench, "big") == (200, "big")
        assert await ask(bench, "reviewer") == (200, "reviewer")
        assert [body["model"] for body in server.bodies] == ["org/Big-70B", "lora-a"]
        assert not any("cache_salt" in body for body in server.bodies), "which is vLLM's own"
        assert await ask(bench, "support") == (200, "support@v1")
        assert len(server.bodies) == 2
        cards = bench.source.table.models
        assert {name: card["parent"] for name, card in cards.items()} == {
            "base": None,
            "big": None,
            "support": "base",
            "support@v1": "base",
            "reviewer": "big",
        }
        assert '"model":"reviewer"' in await bench.stream(model="reviewer")
        status, answer, _ = await bench.post({"model": "big", "prompt": "one"}, "/tokenize")
        assert (status, answer["error"]["code"]) == (404, "route_not_supported")
        assert server.stats.loads == server.stats.unloads == []
        assert set(server.stats.paths) <= {
            "/health",
            "/v1/models",
            "/v1/chat/completions",
            "/tokenize",
        }
        samples = await bench.metrics()
        assert samples['tenon_requests_total{adapter="reviewer",outcome="ok",version="reviewer"}'] == 2


async def test_nothing_of_ours_is_expected_there(bench: Bench, server: FakeEngine) -> None:
    version = await bench.deploy()
    async with watched(bench, server, {}) as watching:
        await until(lambda: watching.state.error)  # it is called otherwise than its base is here
        assert "lists org/Big-70B, lora-a, support, but not big" in watching.state.error
        server.base_name = "big"
        await until(lambda: known(bench, "ready"))
        assert watching.state.served == {"big": "big", "lora-a": "lora-a", "support": "support"}
        assert await ask(bench, "lora-a") == (200, "lora-a")
        part = await asyncio.to_thread(engine_part, bench.home / "run" / "engines" / "big.json")
        assert part.running
        settings = Settings.read(home=bench.home)
        assert "big" not in engines_up(settings, version.base_digest)[1]
        async with bench.http.get("/readyz") as reply:
            assert reply.status == 200


async def test_it_goes_and_comes_back(bench: Bench, server: FakeEngine) -> None:
    async with watched(bench, server, {"big": "org/Big-70B"}):
        await until(lambda: known(bench, "ready"))
        server.lacks["/v1/models"] = 503
        await until(lambda: known(bench, "down"))
        assert await ask(bench, "big") == (503, "engine_unavailable")
        del server.lacks["/v1/models"]
        await until(lambda: known(bench, "ready"))
        assert await ask(bench, "big") == (200, "big")
    await until(lambda: known(bench, "down"))


async def test_an_ejected_one_returns_by_its_own_kind_of_probe(bench: Bench, server: FakeEngine) -> None:
    async with watched(bench, server, {"big": "org/Big-70B"}):
        await until(lambda: known(bench, "ready"))
        assert await bench.source.engines._probe("big")


async def test_health_is_that_of_the_server_where_it_has_one(server: FakeEngine) -> None:
    async with OpenAIClient(server.url) as client:
        assert await client.health()
        server.lacks.pop("/health")
        server.faults = [Fault("unhealthy")]
        assert not await client.health()
        with pytest.raises(AdapterLoadFailed, match="loads no adapters"):
            await client.load("a", Path("/a"))
        with pytest.raises(AdapterLoadFailed, match="unloads no adapters"):
            await client.unload("a")


def test_names_of_the_server_that_could_do_harm_are_left_out() -> None:
    listed = ["big", "a b", "x\r\nset-cookie: y", "ft:big:support", "ok/Name:1", "z" * 200]
    assert served_names("big", {}, listed) == {"big": "big", "ok/Name:1": "ok/Name:1"}
    with pytest.raises(EngineUnavailable, match="lists no model, but not Huge"):
        served_names("big", {"big": "Huge"}, [])
