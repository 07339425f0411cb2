"""Names follow the registry; a request that runs does not."""

import asyncio
from typing import Any

import openai
from gateway_harness import MESSAGES, Bench, until

from serve.engine.fake import Fault


async def test_alias_flips_under_concurrent_streams(bench: Bench) -> None:
    """20 flips between two versions under 8 streams: nothing fails, and no answer mixes versions."""
    versions = [await bench.deploy(), await bench.deploy()]
    bench.engine.seconds_per_token = 0.002
    voices = {version.engine_name: str(version.ref) for version in versions}
    answers: list[tuple[str, str]] = []
    stop = asyncio.Event()

    async def talk(client: openai.AsyncOpenAI) -> None:
        while not stop.is_set():
            stream = await client.chat.completions.create(model="support", messages=MESSAGES, stream=True)
            chunks = [chunk async for chunk in stream]
            (model,) = {chunk.model for chunk in chunks}
            answers.append((model, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)))

    streams = [asyncio.create_task(talk(bench.client)) for _ in range(8)]
    for flip in range(20):
        bench.registry.set_alias("support", versions[flip % 2].ref)
        await bench.follow()
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*streams)
    assert {model for model, _ in answers} == {"support@v1", "support@v2"}
    for model, text in answers:
        voice, _, rest = text.partition(" ")
        assert (voices[voice], rest) == (model, "heard: one two three")


async def test_a_running_stream_keeps_its_version(bench: Bench) -> None:
    first = await bench.deploy()
    bench.engine.faults = [Fault("slow_prefill", model=first.engine_name, seconds=0.5)]
    running = asyncio.create_task(bench.stream())
    await until(lambda: bench.engine.stats.running)
    await bench.deploy()
    later = await bench.stream()
    assert "support@v2" in later
    assert "support@v1" not in later
    events = await running
    assert "support@v1" in events
    assert "support@v2" not in events


async def test_an_alias_may_be_called_otherwise_than_its_version(bench: Bench) -> None:
    version = await bench.deploy()
    bench.registry.set_alias("helpdesk", version.ref)
    await bench.follow()
    status, answer, headers = await bench.post({"model": "helpdesk", "messages": MESSAGES})
    assert (status, answer["model"], headers["x-tenon-version"]) == (200, "support@v1", "support@v1")


async def test_the_base_wins_over_an_alias_of_its_name(bench: Bench) -> None:
    version = await bench.deploy()
    bench.registry.set_alias("qwen", version.ref)
    bench.engine.base_name = "qwen"  # an attached engine may call its base so
    bench.tell_engine()
    await until(lambda: "qwen" in bench.source.table.models and "base" not in bench.source.table.models)
    _, answer, _ = await bench.post({"model": "qwen", "messages": MESSAGES})
    assert answer["model"] == "qwen"
    assert answer["choices"][0]["message"]["content"].startswith("qwen heard")


async def test_sampling_defaults_fill_what_the_request_leaves_open(bench: Bench) -> None:
    await bench.deploy(sampling={"temperature": 0.3, "max_tokens": 4, "stop": ["three"], "seed": 7})

    async def sent(**body: Any) -> dict[str, Any]:
        status, _, _ = await bench.post({"messages": MESSAGES, **body})
        assert status == 200
        got = bench.engine.bodies[-1]
        names = ("temperature", "max_tokens", "stop", "seed", "max_completion_tokens")
        return {name: got[name] for name in names if name in got}

    assert await sent(model="support") == {"temperature": 0.3, "max_tokens": 4, "stop": ["three"], "seed": 7}
    assert await sent(model="support", temperature=0, seed=None, stop="x", max_completion_tokens=9) == {
        "temperature": 0,
        "max_completion_tokens": 9,
        "stop": "x",
        "seed": 7,
    }
    assert await sent(model="support@v1") == {}
    assert await sent(model="base") == {}


async def test_changed_defaults_hold_at_once(bench: Bench) -> None:
    version = await bench.deploy(sampling={"temperature": 0.3})
    bench.registry.set_alias("support", version.ref, sampling={"top_p": 0.5})
    await bench.follow()
    await bench.post({"model": "support", "messages": MESSAGES})
    assert bench.engine.bodies[-1]["top_p"] == 0.5
    assert "temperature" not in bench.engine.bodies[-1]


async def test_a_lost_registry_does_not_stop_answers(bench: Bench) -> None:
    await bench.deploy()
    bench.registry.close()
    for path in bench.home.glob("registry.db*"):
        path.write_bytes(b"garbage" * 1000)
    await asyncio.sleep(0.3)
    status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES})
    assert (status, answer["model"]) == (200, "support@v1")


async def test_the_control_plane_describes_its_routes(bench: Bench) -> None:
    async with bench.http.get("/openapi.json") as reply:
        assert reply.status == 200
        assert {"/healthz", "/readyz", "/metrics", "/api/status"} == set((await reply.json())["paths"])
