import contextlib
import json

import pytest
from aiohttp import web

from serve.engine.client import EngineClient, error_text
from serve.engine.fake import FakeEngine, Fault
from serve.engine.probe import largest_difference, measure_effect, probe_effect
from serve.errors import AdapterLoadFailed, EngineUnavailable, SilentAdapter

NAME = "support@v1-1a2b3c4d"


@pytest.fixture
async def engine():
    async with FakeEngine() as running:
        yield running


@pytest.fixture
async def client(engine):
    async with EngineClient(engine.url) as running:
        yield running


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    return tmp_path


async def test_load_list_unload(client, adapter):
    assert await client.load(NAME, adapter) >= 0
    assert await client.models() == ["base", NAME]
    card = (await client.list())[1]
    assert (card.name, card.root, card.parent) == (NAME, str(adapter), "base")
    await client.unload(NAME)
    assert await client.models() == ["base"]


async def test_unloading_what_is_not_loaded_is_fine(client):
    await client.unload(NAME)


async def test_a_refusal_carries_the_engines_own_words(client, adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 128}))
    with pytest.raises(AdapterLoadFailed, match="LoRA rank 128 is greater than max_lora_rank 64"):
        await client.load(NAME, adapter)
    with pytest.raises(AdapterLoadFailed, match="No adapter found"):
        await client.load(NAME, adapter / "missing")


async def test_health(engine, client):
    assert await client.health()
    engine.faults = [Fault("unhealthy")]
    assert not await client.health()


async def test_an_engine_that_is_gone(engine, client):
    await engine.stop()
    assert not await client.health()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await client.models()


async def test_an_engine_that_hangs(engine):
    engine.faults = [Fault("hang", times=-1)]
    async with EngineClient(engine.url, timeout=0.1) as client:
        with pytest.raises(EngineUnavailable):
            await client.next_logprobs("base", ["hello"])


@contextlib.asynccontextmanager
async def server_that_says(text):
    """A client of a server that answers the same whatever it is asked."""

    async def answer(_):
        return web.Response(text=text)

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with EngineClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            yield client
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("text", ["hello", "[]", "{}", '{"data": null}', '{"data": ["x"]}', '{"data": [{}]}'])
async def test_a_server_that_is_no_engine(text):
    async with server_that_says(text) as client:
        with pytest.raises(EngineUnavailable, match="answered 200: ") as caught:
            await client.models()
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[]",
        '{"choices": []}',
        '{"choices": [{"logprobs": null}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{"a": null}]}}]}',
    ],
)
async def test_an_answer_without_log_probabilities(text):
    async with server_that_says(text) as client:
        with pytest.raises(AdapterLoadFailed, match="without log-probabilities"):
            await client.next_logprobs("base", ["hello"])


async def test_an_adapter_with_an_effect_passes_the_probe(client, adapter):
    await client.load(NAME, adapter)
    probe = await probe_effect(client, "base", NAME, all_zero=False)
    assert probe.max_difference > 0.1
    assert probe.noise == 0
    assert not probe.silent


async def test_a_silent_adapter_is_refused(engine, client, adapter):
    engine.faults = [Fault("silent")]
    await client.load(NAME, adapter)
    assert (await measure_effect(client, "base", NAME)).silent
    with pytest.raises(SilentAdapter, match="answers as the base does"):
        await probe_effect(client, "base", NAME, all_zero=False)
    with pytest.raises(SilentAdapter, match="its weights are all zero"):
        await probe_effect(client, "base", NAME, all_zero=True)


async def test_probing_what_is_not_loaded_fails(client):
    with pytest.raises(AdapterLoadFailed, match="does not exist"):
        await probe_effect(client, "base", NAME, all_zero=False)


@pytest.mark.parametrize(
    ("left", "right", "difference"),
    [
        ([{"a": -1.0}], [{"a": -1.0}], 0.0),
        ([{"a": -1.0, "b": -2.0}], [{"a": -1.5, "b": -2.1}], 0.5),
        ([{"a": -0.5, "b": -2.0}], [{"c": -0.25, "b": -2.0}], 1.75),
        ([], [], 0.0),
    ],
)
def test_differences(left, right, difference):
    assert largest_difference(left, right) == pytest.approx(difference)
    assert largest_difference(right, left) == pytest.approx(difference)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"detail": "Not Found"}', "{'detail': 'Not Found'}"),
        (b"plain", "plain"),
        (b"", "no reason given"),
        (b"[1]", "[1]"),
    ],
)
def test_error_texts(body, text):
    assert error_text(body) == text
