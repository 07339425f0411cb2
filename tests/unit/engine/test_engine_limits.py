"""What an attached engine does at once: as the operator says, else as the engine itself does."""

import pytest

from serve.engine.client import EngineClient
from serve.engine.fake import FakeEngine
from serve.engine.interface import AdapterEngine, Engine, Sample
from serve.engine.limits import EngineLimits, GivenLimits, slots_of
from serve.engine.openai import OpenAIClient


@pytest.mark.parametrize(
    ("given", "slots", "limits"),
    [
        (GivenLimits(), None, EngineLimits(4, 16, 256)),
        (GivenLimits(), 1, EngineLimits(1, 1, 256)),
        (GivenLimits(), 8, EngineLimits(8, 8, 256)),
        (GivenLimits(max_cpu_loras=32), 8, EngineLimits(8, 32, 256)),
        (GivenLimits(2, 3, 7), 8, EngineLimits(2, 3, 7)),
        (GivenLimits(32), None, EngineLimits(32, 32, 256)),
        (GivenLimits(4), 1, EngineLimits(4, 1, 256)),
    ],
)
def test_what_is_said_wins_over_what_the_engine_tells_and_that_over_what_is_usual(given, slots, limits):
    assert given.beside(slots) == limits


def test_more_adapters_than_the_engine_computes_is_a_contradiction_and_fewer_are_a_share():
    assert "set to 4, but the engine computes 1 at once" in GivenLimits(4).contradiction(1)
    assert GivenLimits(4).contradiction(4) == GivenLimits(2).contradiction(4) == ""
    assert GivenLimits(4).contradiction(None) == GivenLimits().contradiction(1) == ""


def test_slots_are_in_a_label():
    info = "vllm:lora_requests_info"
    assert slots_of([Sample("other", {"max_lora": "9"}, 1.0), Sample(info, {"max_lora": "2"}, 1.0)]) == 2
    assert slots_of([Sample(info, {"max_lora": "none"}, 1.0), Sample(info, {}, 1.0)]) is None


async def test_an_engine_tells_its_slots_from_its_first_request_on():
    async with FakeEngine(max_loras=3) as fake, EngineClient(fake.url) as client:
        assert slots_of(await client.metrics()) is None
        await client.next_logprobs("base", ["one"])
        assert slots_of(await client.metrics()) == 3
        fake.lacks["/metrics"] = 404
        assert await client.metrics() == []


def test_both_clients_are_engines():
    """The type checker compares them."""
    vllm: AdapterEngine = EngineClient("http://a")
    other: Engine = OpenAIClient("http://b/")
    assert (vllm.url, other.url) == ("http://a", "http://b")
