"""The unmodified ``openai`` client against the gateway."""

from typing import Any

import openai
import pytest
from gateway_harness import MESSAGES, Bench


async def test_models_lists_base_alias_and_ready_versions(bench: Bench) -> None:
    version = await bench.deploy()
    bench.register()  # never loaded
    await bench.follow()
    models = {model.id: model.model_dump() async for model in await bench.client.models.list()}
    assert list(models) == ["base", "support", "support@v1"]
    assert models["support"]["parent"] == "base"
    assert models["support"]["version"] == "support@v1"
    assert models["support@v1"]["digest"] == version.digest
    assert models["base"]["parent"] is None
    assert all(m["object"] == "model" and m["created"] > 0 and m["owned_by"] for m in models.values())


async def test_one_model_can_be_asked_for(bench: Bench) -> None:
    await bench.deploy()
    assert (await bench.client.models.retrieve("support@v1")).id == "support@v1"
    with pytest.raises(openai.NotFoundError) as caught:
        await bench.client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


async def test_chat_reaches_the_version_and_is_called_by_its_public_name(bench: Bench) -> None:
    version = await bench.deploy()
    for name in ("support", "support@v1"):
        raw = await bench.client.chat.completions.with_raw_response.create(model=name, messages=MESSAGES)
        answer = raw.parse()
        assert answer.model == "support@v1"
        assert answer.choices[0].message.content == f"{version.engine_name} heard: one two three"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 3
        assert raw.headers["x-tenon-version"] == "support@v1"
    assert bench.engine.stats.by_model == {version.engine_name: 2}


async def test_the_base_answers_under_its_own_name(bench: Bench) -> None:
    answer = await bench.client.completions.create(model="base", prompt="a b")
    assert (answer.model, answer.choices[0].text) == ("base", "base continues: a b")


@pytest.mark.parametrize("asked", [False, True])
async def test_a_stream_is_renamed_and_has_usage_only_when_asked(bench: Bench, asked: bool) -> None:
    version = await bench.deploy()
    options: Any = {"stream_options": {"include_usage": True}} if asked else {}
    stream = await bench.client.chat.completions.create(
        model="support",
        messages=MESSAGES,
        stream=True,
        **options,
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {"support@v1"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == f"{version.engine_name} heard: one two three"
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == asked
    assert len([chunk for chunk in chunks if not chunk.choices]) == asked
    assert bench.engine.bodies[-1]["stream_options"] == {"include_usage": True}


async def test_a_text_stream_ends_cleanly(bench: Bench) -> None:
    stream = await bench.client.completions.create(model="base", prompt="a b", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "base continues: a b"


async def test_raw_stream_ends_with_done_and_nothing_else(bench: Bench) -> None:
    await bench.deploy()
    events = await bench.stream()
    assert events.endswith("\n\ndata: [DONE]\n\n")
    assert all(event.startswith("data: ") for event in events.strip().split("\n\n"))


async def test_what_the_engine_knows_passes_through(bench: Bench) -> None:
    await bench.deploy()
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = await bench.client.chat.completions.create(
        model="support",
        messages=MESSAGES,
        n=2,
        logprobs=True,
        top_logprobs=2,
        stop=["two"],
        tools=tools,
        response_format={"type": "json_object"},
        extra_body={"top_k": 5, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].logprobs
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content.endswith("heard: one ")
    sent = bench.engine.bodies[-1]
    assert sent["tools"] == tools
    assert sent["response_format"] == {"type": "json_object"}
    assert (sent["n"], sent["top_k"], sent["top_logprobs"]) == (2, 5, 2)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


async def test_streaming_two_choices(bench: Bench) -> None:
    await bench.deploy()
    stream = await bench.client.chat.completions.create(model="support", messages=MESSAGES, stream=True, n=2)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts[1] == texts[0] + " (1)"


async def test_a_wrong_model_is_not_found(bench: Bench) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await bench.client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert "'nobody'" in caught.value.message
    assert bench.engine.stats.requests == 0


async def test_engine_names_are_no_public_names(bench: Bench) -> None:
    version = await bench.deploy()
    with pytest.raises(openai.NotFoundError):
        await bench.client.chat.completions.create(model=version.engine_name, messages=MESSAGES)


async def test_a_bad_parameter_is_a_bad_request(bench: Bench) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await bench.client.chat.completions.create(model="base", messages=MESSAGES, temperature=9)
    assert caught.value.param == "temperature"
    assert bench.engine.bodies == []


async def test_the_engines_own_refusal_is_passed_on(bench: Bench) -> None:
    await bench.deploy()
    with pytest.raises(openai.BadRequestError) as caught:
        await bench.client.chat.completions.create(model="support", messages=MESSAGES, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"
    assert "max_model_len=1024" in caught.value.message
