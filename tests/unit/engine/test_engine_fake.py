"""The fake engine must behave as vLLM does where a client can tell; these shapes were taken from vLLM 0.32."""

import asyncio
import json

import aiohttp
import openai
import pytest

from serve.engine.fake import FakeEngine, Fault

ADAPTER = "support@v1-1a2b3c4d"
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture
async def engine():
    async with FakeEngine(adapters=[ADAPTER]) as running:
        yield running


@pytest.fixture
async def client(engine):
    async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as running:
        yield running


@pytest.fixture
async def http(engine):
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


async def test_an_answer_names_the_model_and_the_request(client):
    answer = await client.chat.completions.create(model=ADAPTER, messages=HELLO)
    assert answer.choices[0].message.content == f"{ADAPTER} heard: hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4


async def test_a_stream_has_a_role_tokens_an_end_and_the_usage(client):
    stream = await client.chat.completions.create(
        model="base", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == "base heard: hello there"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4


async def test_limits_stops_and_several_choices_are_kept(client):
    answer = await client.chat.completions.create(model="base", messages=HELLO, max_tokens=2, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    answer = await client.chat.completions.create(model="base", messages=HELLO, stop=["hello"])
    assert answer.choices[0].message.content == "base heard: "


async def test_log_probabilities_differ_by_adapter(client):
    async def ask(model):
        answer = await client.completions.create(model=model, prompt="one two", logprobs=5, max_tokens=1)
        return answer.choices[0].logprobs.top_logprobs[0]

    assert await ask("base") == await ask("base") != await ask(ADAPTER)


async def test_an_unknown_model_is_refused_as_vllm_does(http):
    async with http.post("/v1/chat/completions", json={"model": "nope", "messages": HELLO}) as response:
        assert response.status == 404
        message = f"The model `nope` does not exist. Valid aliases: base, {ADAPTER}."
        error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
        assert await response.json() == {"error": error}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"temperature": -1}, "temperature must be non-negative, got -1.0."),
        ({"max_tokens": 5000}, "max_tokens=5000 cannot be greater than max_model_len=1024."),
        ({"n": 0, "max_tokens": 1}, "n must be at least 1"),
    ],
)
async def test_bad_parameters_are_400(client, body, text):
    with pytest.raises(openai.BadRequestError, match=text):
        await client.chat.completions.create(model="base", messages=HELLO, **body)


async def test_loading_as_vllm_does(http, tmp_path):
    async def load(name, path):
        async with http.post(
            "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)}
        ) as response:
            return response.status, await response.text()

    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    assert await load("a", tmp_path) == (200, "Success: LoRA adapter 'a' added successfully.")
    status, text = await load("a", tmp_path)
    assert (status, "has already been loaded" in text) == (400, True)
    assert (await load("b", tmp_path / "missing"))[0] == 404
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 128}))
    status, text = await load("b", tmp_path)
    assert (status, "LoRA rank 128 is greater than max_lora_rank 64." in text) == (500, True)
    async with http.post("/v1/unload_lora_adapter", json={"lora_name": "zzz"}) as response:
        assert response.status == 404


async def test_a_scripted_death_cuts_the_stream(engine, client, http):
    await http.post("/_fake/faults", json={"faults": [{"kind": "die_mid_stream", "after": 2}]})
    stream = await client.chat.completions.create(model="base", messages=HELLO, stream=True)
    seen = []

    async def read():
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIConnectionError):
        await read()
    assert "".join(seen) == "base heard:"
    assert engine.stats.aborted == 0


async def test_a_client_that_hangs_up_is_counted(engine, http):
    engine.faults = [Fault("hang")]
    asking = asyncio.ensure_future(
        http.post("/v1/chat/completions", json={"model": "base", "messages": HELLO})
    )
    async with asyncio.timeout(10):
        while engine.stats.running != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asking.cancel()
        while engine.stats.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with http.get("/_fake/stats") as response:
        assert (await response.json())["aborted"] == 1


async def test_faults_end_after_their_times(engine, client):
    engine.faults = [Fault("error", times=1, status=500, message="scripted")]
    with pytest.raises(openai.InternalServerError, match="scripted"):
        await client.chat.completions.create(model="base", messages=HELLO)
    assert await client.chat.completions.create(model="base", messages=HELLO)


async def test_a_fault_for_one_model_spares_the_others(engine, client):
    engine.faults = [Fault("error", model=ADAPTER, times=-1)]
    assert await client.chat.completions.create(model="base", messages=HELLO)
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model=ADAPTER, messages=HELLO)


async def test_an_unknown_fault_is_refused(http):
    async with http.post("/_fake/faults", json={"faults": [{"kind": "sulk"}]}) as response:
        assert response.status == 400
        assert "unknown fault 'sulk'" in (await response.json())["error"]["message"]


async def test_a_restart_forgets_the_adapters_and_keeps_the_port(engine, http):
    port = engine.port
    await engine.stop()
    await engine.start()
    assert engine.port == port
    async with http.get("/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["base"]
