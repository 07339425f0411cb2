"""The effect probe on engines that write nothing: it asks for what they do."""

import json
import math

import pytest

from serve.engine.client import COMPLETIONS, EngineClient
from serve.engine.fake import FakeEngine, Fault
from serve.engine.probe import PROMPTS, largest_share, measure_effect, probe_effect
from serve.errors import AdapterLoadFailed, SilentAdapter

NAME = "support@v1-1a2b3c4d"
KINDS = {
    "/classify": {COMPLETIONS: 404, "/v1/embeddings": 404},
    "/v1/embeddings": {COMPLETIONS: 404, "/classify": 404},
    "/pooling": {COMPLETIONS: 501, "/classify": 404, "/v1/embeddings": 404},
}


@pytest.fixture(params=KINDS)
async def pooling(request, tmp_path):
    """An engine that reads and does not write, its client, an adapter's folder, and the route that it has."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    async with FakeEngine() as engine, EngineClient(engine.url) as client:
        engine.lacks = dict(KINDS[request.param])
        yield engine, client, tmp_path, request.param


async def test_an_adapter_with_an_effect_passes(pooling):
    engine, client, folder, path = pooling
    await client.load(NAME, folder)
    probe = await probe_effect(client, "base", NAME, all_zero=False)
    assert (probe.max_difference > 0.1, probe.noise, probe.silent) == (True, 0, False)
    assert path in probe.what
    assert engine.stats.paths[path] == 3 * len(PROMPTS)
    assert engine.stats.paths[COMPLETIONS] == 1, "one refusal is enough to know that it writes nothing"


async def test_a_silent_adapter_is_refused(pooling):
    engine, client, folder, path = pooling
    engine.faults = [Fault("silent")]
    await client.load(NAME, folder)
    assert (await measure_effect(client, "base", NAME)).silent
    with pytest.raises(SilentAdapter, match=f"answers as the base does.*{path}"):
        await probe_effect(client, "base", NAME, all_zero=False)
    with pytest.raises(SilentAdapter, match="its weights are all zero"):
        await probe_effect(client, "base", NAME, all_zero=True)


async def test_probing_what_is_not_loaded_fails(pooling):
    _, client, _, _ = pooling
    with pytest.raises(AdapterLoadFailed, match="does not exist"):
        await probe_effect(client, "base", NAME, all_zero=False)


async def test_an_engine_that_fails_is_not_taken_for_one_that_has_no_route():
    async with FakeEngine() as engine, EngineClient(engine.url) as client:
        engine.faults = [Fault("error", status=500, message="it broke", times=-1)]
        with pytest.raises(AdapterLoadFailed, match="it broke"):
            await probe_effect(client, "base", NAME, all_zero=False)
        assert engine.stats.paths.get("/classify", 0) == 0


async def test_an_engine_that_does_nothing_that_we_know():
    async with FakeEngine() as engine, EngineClient(engine.url) as client:
        engine.lacks = dict.fromkeys((COMPLETIONS, "/classify", "/v1/embeddings", "/pooling"), 404)
        with pytest.raises(AdapterLoadFailed, match="does not answer as base"):
            await probe_effect(client, "base", NAME, all_zero=False)


async def test_classes_are_asked_for_before_their_softmax():
    async with FakeEngine() as engine, EngineClient(engine.url) as client:
        await client.vectors("base", "/classify", ["x"])
        assert engine.bodies[-1]["use_activation"] is False


@pytest.mark.parametrize(
    ("base", "other", "share"),
    [
        ([[1.0, -2.0]], [[1.0, -2.0]], 0.0),
        ([[1.0, -2.0]], [[1.5, -2.0]], 0.25),
        ([[4.0]], [[4.0, 2.0]], 0.5),
        ([[0.0]], [[3.0]], 3.0),
        ([], [], 0.0),
    ],
)
def test_shares(base, other, share):
    assert math.isclose(largest_share(base, other), share)
