"""Every endpoint beside chats and completions: reached under public names, checked, and honest about its end."""

from typing import Any

import openai
import pytest
from gateway_harness import MESSAGES, Bench
from test_gateway_errors import check_shape

from serve.engine.fake import Fault
from serve.engine.fake_reading import numbers

# What each path takes at least, and the path of the engine.
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/embeddings": ({"input": "one two"}, "/v1/embeddings"),
    "/v1/responses": ({"input": "one two"}, "/v1/responses"),
    "/v1/classify": ({"input": ["one", "two"]}, "/classify"),
    "/classify": ({"input": [1, 2]}, "/classify"),
    "/v1/score": ({"queries": "one", "documents": ["two"]}, "/score"),
    "/score": ({"text_1": ["one"], "text_2": ["two"]}, "/score"),
    "/v1/rerank": ({"query": "one", "documents": ["two", "three"], "top_n": 1}, "/rerank"),
    "/v2/rerank": ({"query": "one", "documents": ["two"]}, "/rerank"),
    "/rerank": ({"query": "one", "documents": ["two"]}, "/rerank"),
    "/pooling": ({"input": "one", "task": "token_embed"}, "/pooling"),
    "/tokenize": ({"prompt": "one"}, "/tokenize"),
    "/detokenize": ({"tokens": [104, 105]}, "/detokenize"),
}


async def test_each_reaches_the_engine_under_its_name_and_answers_under_ours(bench: Bench) -> None:
    version = await bench.deploy()
    for path, (fields, engine_path) in BODIES.items():
        before = bench.engine.stats.paths.get(engine_path, 0)
        status, answer, headers = await bench.post({"model": "support", **fields}, path)
        assert status == 200, (path, answer)
        assert answer.get("model", "support@v1") == "support@v1", path
        assert version.engine_name not in str(answer) or path == "/v1/responses", path
        assert headers["x-tenon-version"] == "support@v1"
        assert bench.engine.stats.paths[engine_path] == before + 1
        sent = bench.engine.bodies[-1]
        assert sent == {
            "model": version.engine_name,
            **fields,
            **({"store": False} if "responses" in path else {}),
        }


async def test_each_needs_a_name_that_is_served(bench: Bench) -> None:
    for path, (fields, _) in BODIES.items():
        status, answer, _ = await bench.post({"model": "nobody", **fields}, path)
        assert (status, check_shape(answer)) == (404, "model_not_found"), path
        async with bench.http.get(path) as reply:
            assert (reply.status, check_shape(await reply.json())) == (405, "method_not_allowed")
    assert bench.engine.stats.paths == {}


async def test_the_tokenizer_is_asked_without_a_name_too(bench: Bench) -> None:
    status, answer, headers = await bench.post({"prompt": "hi"}, "/tokenize")
    assert (status, answer["tokens"], headers["x-tenon-version"]) == (200, [104, 105], "base")
    status, answer, _ = await bench.post({"tokens": [104, 105]}, "/detokenize")
    assert (status, answer) == (200, {"prompt": "hi"})
    status, answer, _ = await bench.post({"messages": MESSAGES, "add_generation_prompt": True}, "/tokenize")
    assert (status, answer["count"]) == (200, 13)
    for query in ("", "?model=base"):
        async with bench.http.get(f"/tokenizer_info{query}") as reply:
            assert (reply.status, (await reply.json())["tokenizer_class"]) == (200, "FakeTokenizer")
    async with bench.http.get("/tokenizer_info?model=nobody") as reply:
        assert (reply.status, check_shape(await reply.json())) == (404, "model_not_found")


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_engine_without_the_endpoint(bench: Bench, status: int) -> None:
    for path, (fields, engine_path) in BODIES.items():
        bench.engine.lacks = {engine_path: status}
        code, answer, headers = await bench.post({"model": "base", **fields}, path)
        if status == 501:  # vLLM says so of features too; it must name the endpoint
            assert (code, check_shape(answer)) == (501, "not_implemented")
            continue
        assert (code, check_shape(answer)) == (404, "route_not_supported"), path
        assert "retry-after" not in headers
    bench.engine.lacks = {"/tokenizer_info": 404}
    async with bench.http.get("/tokenizer_info") as reply:
        assert (reply.status, check_shape(await reply.json())) == (404, "route_not_supported")


async def test_vllms_own_words_for_an_endpoint_that_a_model_has_not(bench: Bench) -> None:
    words = "The model does not support Embeddings API"
    bench.engine.faults = [Fault("error", status=501, message=words)]
    status, answer, _ = await bench.post({"model": "base", "input": "x"}, "/v1/embeddings")
    assert (status, check_shape(answer)) == (404, "route_not_supported")


async def test_an_adapter_that_the_engine_lost_is_no_missing_endpoint(bench: Bench) -> None:
    await bench.deploy()
    bench.engine.adapters.clear()
    for path, (fields, _) in BODIES.items():
        status, answer, _ = await bench.post({"model": "support", **fields}, path)
        assert (status, check_shape(answer)) == (503, "adapter_not_ready"), path


BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "/v1/embeddings": [
        ({}, "input"),
        ({"input": ""} | {"messages": MESSAGES}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 10**9}, "dimensions"),
        ({"input": "x", "encoding_format": "bytes"}, "encoding_format"),
        ({"input": "x", "temperature": 1}, "temperature"),
        ({"input": "x", "preset": "balanced"}, "preset"),
        ({"input": "x", "request_id": "x"}, "request_id"),
    ],
    "/v1/responses": [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "mcp_call", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "root", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            "input[0].content[0]",
        ),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "previous_input_messages": []}, "previous_input_messages"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tools": [{"type": "mcp", "server_url": "http://a"}]}, "tools[0].type"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include[0]"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ],
    "/classify": [({}, "input"), ({"input": 5}, "input"), ({"input": "x", "normalize": True}, "normalize")],
    "/score": [
        ({}, "queries"),
        ({"queries": "x"}, "queries"),
        ({"queries": "x", "text_2": "y"}, "queries"),
        ({"queries": "x", "documents": [{"content": [{"type": "image_url"}]}]}, "documents"),
        ({"queries": "x", "documents": ["y"] * 2049}, "documents"),
    ],
    "/rerank": [
        ({}, "query"),
        ({"query": "x"}, "documents"),
        ({"query": ["x"], "documents": ["y"]}, "query"),
        ({"query": "x", "documents": []}, "documents"),
        ({"query": "x", "documents": ["y"], "top_n": -1}, "top_n"),
    ],
    "/pooling": [({"input": "x", "task": "plugin"}, "task"), ({"data": {"a": 1}}, "data")],
    "/tokenize": [
        ({}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x", "model": 5}, "model"),
        ({"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),
    ],
    "/detokenize": [({}, "tokens"), ({"tokens": [-1]}, "tokens[0]"), ({"tokens": ["x"]}, "tokens[0]")],
}


async def test_bodies_that_no_engine_sees(bench: Bench) -> None:
    for path, cases in BAD.items():
        for fields, param in cases:
            status, answer, _ = await bench.post({"model": "base", **fields}, path)
            assert status == 400, (path, fields)
            check_shape(answer)
            assert answer["error"]["param"] == param, answer
    assert bench.engine.stats.paths == {}


async def test_the_openai_client_embeds(bench: Bench) -> None:
    version = await bench.deploy()
    answer = await bench.client.embeddings.create(
        model="support", input=["one", "two"], dimensions=3, encoding_format="float"
    )
    assert [item.embedding for item in answer.data] == [
        pytest.approx(numbers(version.engine_name, text, 3)) for text in ("one", "two")
    ]
    assert answer.model == "support@v1"
    assert (await bench.metrics())['tenon_prompt_tokens_total{adapter="support"}'] == 2


async def test_the_openai_client_gets_a_response(bench: Bench) -> None:
    version = await bench.deploy(sampling={"defaults": {"temperature": 0.5}, "max": {"max_tokens": 4}})
    answer = await bench.client.responses.create(
        model="support", input="one two three", instructions="be short"
    )
    assert answer.output_text == f"{version.engine_name} heard: one two"
    assert (answer.model, answer.status) == ("support@v1", "completed")
    sent = bench.engine.bodies[-1]
    assert (sent["max_output_tokens"], sent["temperature"], sent["store"]) == (4, 0.5, False)
    assert (await bench.metrics())['tenon_completion_tokens_total{adapter="support"}'] == 4
    with pytest.raises(openai.BadRequestError) as caught:
        await bench.client.responses.create(model="support", input="x", max_output_tokens=5)
    assert (caught.value.param, caught.value.code) == ("max_output_tokens", "outside_limits")


async def test_a_streamed_response_is_renamed_and_counted(bench: Bench) -> None:
    version = await bench.deploy()
    stream = await bench.client.responses.create(model="support", input="one two", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == f"{version.engine_name} heard: one two"
    models = {event.response.model for event in events if hasattr(event, "response")}
    assert models == {"support@v1"}
    metrics = await bench.metrics()
    assert metrics['tenon_completion_tokens_total{adapter="support"}'] == 4
    assert metrics['tenon_prompt_tokens_total{adapter="support"}'] == 2
    assert metrics['tenon_time_to_first_token_seconds_count{adapter="support"}'] == 1
    assert metrics['tenon_requests_total{adapter="support",outcome="ok",version="support@v1"}'] == 1


async def test_a_response_that_breaks_off_never_looks_complete(bench: Bench) -> None:
    for after in (0, 1, 3):
        bench.engine.faults = [Fault("die_mid_stream", after=after)]
        stream = await bench.client.responses.create(model="base", input="a b c d e", stream=True)
        seen: list[str] = []

        async def read(stream: Any = stream, seen: list[str] = seen) -> None:
            async for event in stream:
                seen.append(event.type)

        with pytest.raises(openai.APIError, match="down or restarting"):
            await read()
        assert "response.completed" not in seen
    metrics = await bench.metrics()
    assert metrics['tenon_requests_total{adapter="base",outcome="failed",version="base"}'] == 3


async def test_reading_the_tokenizer_does_not_count_into_latencies(bench: Bench) -> None:
    await bench.post({"prompt": "hi"}, "/tokenize")
    assert (await bench.metrics())['tenon_request_duration_seconds_count{adapter="base"}'] == 0
    await bench.post({"model": "base", "input": "hi"}, "/classify")
    assert (await bench.metrics())['tenon_request_duration_seconds_count{adapter="base"}'] == 1
