"""What clients see when the engine fails, and what the engine sees when clients hang up."""

import asyncio

import openai
import pytest
from gateway_harness import MESSAGES, Bench, until

from serve.engine.fake import Fault


async def test_death_mid_stream_is_an_error_and_never_a_clean_end(bench: Bench) -> None:
    await bench.deploy()
    bench.engine.faults = [Fault("die_mid_stream", after=2)]
    stream = await bench.client.chat.completions.create(model="support", messages=MESSAGES, stream=True)
    seen = [await anext(stream) for _ in range(3)]  # the role and two tokens
    with pytest.raises(openai.APIError, match="engine") as caught:
        await anext(stream)
    assert caught.value.code == "engine_unavailable"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in seen).endswith(" heard:")
    samples = await bench.metrics()
    assert samples['tenon_requests_total{adapter="support",outcome="failed",version="support@v1"}'] == 1
    assert samples['tenon_completion_tokens_total{adapter="support"}'] == 2


async def test_raw_events_of_a_broken_stream(bench: Bench) -> None:
    await bench.deploy()
    bench.engine.faults = [Fault("die_mid_stream", after=2)]
    events = (await bench.stream()).strip().split("\n\n")
    assert events[-1].startswith('data: {"error":{"message":')
    assert not any("[DONE]" in event for event in events)


async def test_death_before_the_first_event_is_unavailable(bench: Bench) -> None:
    bench.engine.faults = [Fault("die_mid_stream")]
    with pytest.raises(openai.InternalServerError) as caught:
        await bench.client.completions.create(model="base", prompt="x", stream=True)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_death_before_a_whole_answer_is_unavailable(bench: Bench) -> None:
    bench.engine.faults = [Fault("die_mid_stream", after=1)]
    with pytest.raises(openai.InternalServerError) as caught:
        await bench.client.completions.create(model="base", prompt="x")
    assert (caught.value.status_code, caught.value.code) == (503, "engine_unavailable")


async def test_an_engine_that_is_down_is_not_asked(bench: Bench) -> None:
    bench.tell_engine(state="down")
    await until(lambda: bench.source.table.engine.state == "down")
    status, answer, headers = await bench.post({"model": "base", "messages": MESSAGES})
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    assert "the engine is down" in answer["error"]["message"]
    assert int(headers["retry-after"]) > 0
    assert bench.engine.bodies == []


async def test_an_engine_that_is_gone_is_unavailable_and_seen_as_down(bench: Bench) -> None:
    assert (await bench.metrics())["tenon_engine_up"] == 1
    await bench.engine.stop()
    status, answer, headers = await bench.post({"model": "base", "messages": MESSAGES})
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    assert int(headers["retry-after"]) > 0
    assert (await bench.metrics())["tenon_engine_up"] == 0
    async with bench.http.get("/readyz") as reply:
        assert reply.status == 503
        assert (await reply.json())["error"]["code"] == "engine_unavailable"


async def test_the_engines_internal_error_hides_its_words(bench: Bench) -> None:
    bench.engine.faults = [Fault("error", status=500, message="secret path /home/x")]
    status, answer, headers = await bench.post({"model": "base", "messages": MESSAGES})
    assert (status, answer["error"]["code"]) == (502, "engine_failed")
    assert "secret" not in answer["error"]["message"]
    assert int(headers["retry-after"]) > 0


async def test_engine_names_in_refusals_become_public_names(bench: Bench) -> None:
    version = await bench.deploy()
    message = f"{version.engine_name} cannot do this"
    bench.engine.faults = [Fault("error", status=400, message=message)]
    status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES})
    assert status == 400
    assert answer["error"] == {
        "message": "support@v1 cannot do this",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }


async def test_an_engine_that_forgot_the_adapter_is_not_the_clients_fault(bench: Bench) -> None:
    version = await bench.deploy()
    del bench.engine.adapters[version.engine_name]
    status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES})
    assert (status, answer["error"]["code"]) == (503, "adapter_not_ready")
    assert version.engine_name not in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["slow_prefill", "slow_tokens"])
async def test_a_client_that_hangs_up_ends_the_engines_work(bench: Bench, stream: bool, fault: str) -> None:
    await bench.deploy()
    bench.engine.faults = [Fault(fault, seconds=30 if fault == "slow_prefill" else 2, times=-1)]
    body = {"model": "support", "messages": MESSAGES, "stream": stream}
    clients = [asyncio.create_task(bench.post(body)) for _ in range(8)]
    await until(lambda: bench.engine.stats.running == 8)
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)
    await until(lambda: bench.engine.stats.running == 0)
    assert bench.engine.stats.aborted == 8
    await until(lambda: bench.source.metrics.meters("support", "support@v1").in_flight._value.get() == 0)
    samples = await bench.metrics()
    assert samples['tenon_requests_total{adapter="support",outcome="disconnected",version="support@v1"}'] == 8


async def test_a_client_that_reads_slowly_gets_all_of_a_long_stream(bench: Bench) -> None:
    await bench.deploy()
    words = 30_000
    body = {"model": "support", "stream": True, "messages": [{"role": "user", "content": "word " * words}]}
    async with bench.http.post("/v1/chat/completions", json=body) as reply:
        assert await reply.content.readline()
        await asyncio.sleep(0.5)
        text = await reply.text()
    assert text.count('"content":"') >= words
    assert text.endswith("data: [DONE]\n\n")
    assert '"model":"support@v1-' not in text


async def test_the_client_library_closing_a_stream_ends_the_engines_work(bench: Bench) -> None:
    bench.engine.seconds_per_token = 0.1
    stream = await bench.client.completions.create(model="base", prompt="x " * 200, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: bench.engine.stats.aborted == 1)


async def test_a_finished_stream_counts_as_ok_though_the_client_closes_at_once(bench: Bench) -> None:
    for _ in range(20):
        stream = await bench.client.completions.create(model="base", prompt="x", stream=True)
        async for _ in stream:
            pass
        await stream.close()
    samples = await bench.metrics()
    assert samples['tenon_requests_total{adapter="base",outcome="ok",version="base"}'] == 20
    assert samples['tenon_requests_total{adapter="base",outcome="disconnected",version="base"}'] == 0


async def test_the_gateway_follows_an_engine_that_moves(bench: Bench) -> None:
    old = bench.engine.port
    await bench.engine.stop()
    bench.engine.port = 0
    await bench.engine.start()
    assert bench.engine.port != old
    bench.tell_engine()
    await until(
        lambda: bench.source.table.engine is not None and bench.source.table.engine.url == bench.engine.url
    )
    status, _, _ = await bench.post({"model": "base", "messages": MESSAGES})
    assert status == 200
