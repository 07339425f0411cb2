"""Hostile requests: a typed 4xx each, and no engine hears of them. The numbers are those of the attack list."""

import asyncio
import logging
import re
from typing import Any

import pytest
from gateway_harness import MESSAGES, Bench, until
from test_gateway_errors import check_shape

CHAT = "/v1/chat/completions"
# Everything else that a vLLM 0.32 server may have, by its routers and FastAPI itself.
ENGINE_PATHS = (
    "/invocations /ping /pause /resume /is_paused /abort_requests /update_weights /start_weight_update "
    "/finish_weight_update /init_weight_transfer_engine /weight_info /weight_checker /get_world_size "
    "/collective_rpc /sleep /wake_up /is_sleeping /reset_prefix_cache /reset_mm_cache /server_info "
    "/start_profile /stop_profile /scale_elastic_ep /is_scaling_elastic_ep /fault_tolerance/status "
    "/v1/load_lora_adapter /v1/unload_lora_adapter /adapters /adapters/support /load /version /health "
    "/kv_event_sources /static /docs /redoc /openapi.yaml /inference/v1/generate /inference/v1/abort_requests "
    "/v1/chat/completions/render /v1/completions/render /v1/chat/completions/batch /v1/messages "
    "/v1/messages/count_tokens /v2/embed /v2/chat /v1/audio/transcriptions /v1/audio/translations /v1/realtime "
    "/v1/responses/resp_1 /v1/responses/resp_1/cancel /v1/files /v1/batches /_fake/faults /_fake/stats"
)
DISGUISES = (
    "//v1/load_lora_adapter",
    "/v1//load_lora_adapter",
    "/v1/%6c%6f%61d_lora_adapter",
    "/v1/load%5florA_adapter",
    "/v1/models/../load_lora_adapter",
    "/v1/models/%2e%2e/load_lora_adapter",
    "/v1/chat/completions/../../../pause",
    "/v1/chat/completions/%2e%2e/%2e%2e/load_lora_adapter",
    "/v1/chat/completions;/pause",
    "/v1/chat/completions%00",
    "/v1/chat/completions%0d%0aX: y",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/V1/chat/completions",
    "/v1\\chat\\completions",
    "/v1/chat/completions%3f/../pause",
    "/tokenize/../invocations",
    "/%2fv1/chat/completions",
    "/v1/chat/completions%2f..%2f..%2f..%2fpause",
)
HOSTS = (
    "localhost/v1/models?",
    "localhost/v1/chat/completions?",
    "x/v1/models#",
    "a@b",
    "localhost:1/metrics?",
)


async def raw(bench: Bench, head: str, body: bytes = b"", *, wait: float = 5.0) -> bytes:
    """Send bytes as they are; return all that comes back until the gateway is silent or closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.server.port)
    try:
        writer.write(head.encode("latin-1") + b"\r\n\r\n" + body)
        async with asyncio.timeout(wait):
            answer = await reader.read(2**16)
    finally:
        writer.close()
    return answer


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


def request(method: str, path: str, host: str = "localhost", body: bytes = b"{}") -> str:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close"
    )


async def test_1_the_host_header_opens_nothing(bench: Bench) -> None:
    for host in HOSTS:
        for path in ("/v1/load_lora_adapter", "/invocations", "/pause", "/collective_rpc", "/adapters"):
            answer = await raw(bench, request("POST", path, host), b"{}")
            assert status_of(answer) == 404, (host, path)
        answer = await raw(bench, request("GET", "/nothing", host), b"{}")
        assert status_of(answer) == 404
        assert b"/nothing" in answer, "what is answered is about the path and not about the host"
    assert bench.engine.stats.paths == {}


async def test_6_the_engines_other_paths_are_closed(bench: Bench) -> None:
    for path in ENGINE_PATHS.split():
        for method in ("GET", "POST", "DELETE"):
            async with bench.http.request(
                method, path, json={"lora_name": "x", "lora_path": "/etc"}
            ) as reply:
                assert reply.status == 404, (method, path)
                check_shape(await reply.json())
    async with bench.http.get("/metrics") as reply:
        assert "vllm:" not in await reply.text(), "these are the gateway's"
    assert bench.engine.stats.paths == {}


async def test_6_in_disguise_too(bench: Bench) -> None:
    for path in DISGUISES:
        for method in ("GET", "POST"):
            status = status_of(await raw(bench, request(method, path), b"{}"))
            assert 400 <= status < 500, (method, path)
    assert bench.engine.stats.paths == {}


async def test_a_path_is_what_it_says_once_decoded(bench: Bench) -> None:
    body = b'{"model": "base", "messages": [{"role": "user", "content": "x"}]}'
    answer = await raw(bench, request("POST", "/v1/chat/%63ompletions?x=/pause", body=body), body)
    assert status_of(answer) == 200
    assert bench.engine.stats.paths == {CHAT: 1}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "base", "messages": MESSAGES, **fields}


def content(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": "base", "messages": [{"role": "user", "content": list(parts)}]}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": schema}}]


STEERING = (
    "api_base api_key base_url lora_path lora_name lora_request cache_salt kv_transfer_params priority "
    "ec_transfer_params vllm_xargs mm_processor_kwargs media_io_kwargs request_id session_id adapter_id"
)
FRAMES = "data:video/jpeg;base64," + ",".join(["AAAA"] * 10_000)
BODIES: dict[str, list[dict[str, Any]]] = {
    "7 amounts": [
        chat(n=10**9),
        chat(n=-1),
        chat(n=129),
        chat(best_of=10**9),
        chat(logprobs=True, top_logprobs=10**6),
        chat(logprobs=True, top_logprobs=-1),
        chat(prompt_logprobs=10**6),
        chat(stop=["x"] * 10_000),
        chat(stop=["x" * 10**6]),
        chat(max_tokens=-1),
        chat(max_tokens=2**40),
        chat(max_completion_tokens=0),
        chat(min_tokens=2**40),
        chat(logit_bias={str(token): 1 for token in range(10_000)}),
        chat(allowed_token_ids=list(range(100_000))),
        chat(stop_token_ids=list(range(100_000))),
        chat(bad_words=["x"] * 1000),
        chat(use_beam_search=True, n=100),
        chat(temperature=1e308),
        chat(seed=2**200),
    ],
    "8 schemas": [
        chat(tools=tool(nested(100))),
        chat(tools=tool({"type": "string", "pattern": "(a{1,1000}){1,1000}"})),
        chat(tools=tool({"$ref": "http://169.254.169.254/"})),
        chat(tools=tool({"type": "string"}) * 129),
        chat(tools=tool({"enum": ["x"] * 100_000})),
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": nested(20)}}),
        chat(response_format={"type": "structural_tag", "structures": [], "triggers": ["a"]}),
        chat(structured_outputs={"regex": "(a+)+$"}),
        chat(structured_outputs={"grammar": "root ::= root root"}),
        chat(structured_outputs={"structural_tag": "{}"}),
        chat(guided_regex="(a+)+$"),
        chat(guided_grammar="root ::= root"),
        chat(guided_json={}),
    ],
    "9 templates": [
        chat(chat_template="{{ cycler.__init__.__globals__ }}"),
        chat(chat_template_kwargs={"tokenize": True}),
        chat(chat_template_kwargs={"chat_template": "{{ x }}"}),
        chat(chat_template_kwargs={"continue_final_message": True}),
        chat(chat_template_kwargs={"enable_thinking": {"a": 1}}),
    ],
    "10 tensors": [
        chat(prompt_embeds="AAAA"),
        content({"type": "prompt_embeds", "prompt_embeds": "AAAA"}),
        content({"type": "image_embeds", "image_embeds": "AAAA"}),
    ],
    "11 steering": [chat(**{field: "x"}) for field in STEERING.split()],
    "12 media": [
        content({"type": "image_url", "image_url": {"url": url}})
        for url in (
            "http://169.254.169.254/latest/meta-data/",
            "http:\\\\169.254.169.254\\",
            "https://example.org/redirects-to-169.254.169.254",
            "http://[::ffff:169.254.169.254]/",
            "http://0x7f000001/",
            "file:///etc/passwd",
            "data:image/png;base64,iVBORw0KGgo=",
        )
    ]
    + [
        content({"type": "video_url", "video_url": {"url": FRAMES}}),
        content({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        content({"image_url": "http://169.254.169.254/"}),
        content({"type": "file", "file": {"file_id": "x"}}),
    ],
    "13 names": [
        chat(model="base\0"),
        chat(model="../base"),
        chat(model="base/../../etc/passwd"),
        chat(model="base\r\nx: y"),
        chat(messages=[{"role": "user\0", "content": "x"}]),
        chat(messages=[{"role": "user", "name": "a\0b", "content": "x"}]),
        chat(tools=[{"type": "function", "function": {"name": "a\nb"}}]),
        chat(user="a\0b"),
    ],
}


@pytest.mark.parametrize("name", BODIES)
async def test_7_to_13_bodies(bench: Bench, name: str) -> None:
    for body in BODIES[name]:
        status, answer, _ = await bench.post(body)
        assert status in (400, 404), (name, str(body)[:300])
        check_shape(answer)
        assert answer["error"]["param"] or status == 404 or "nested" in answer["error"]["message"], answer
        assert len(str(answer)) < 1500
    assert bench.engine.stats.paths == {}


async def test_13_what_is_no_json(bench: Bench) -> None:
    head = b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "x": '
    for value in (
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"NaN",
        b"-Infinity",
        b"1e999",
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b"[" * 100 + b"]" * 100,
    ):
        status, answer, _ = await bench.post(head + value + b"}")
        assert (status, check_shape(answer)) == (400, "invalid_request"), value[:20]
    assert bench.engine.stats.paths == {}


async def test_13_of_a_key_twice_the_engine_gets_the_one_that_was_checked(bench: Bench) -> None:
    twice = b'{"model": "base", "messages": [{"role": "user", "content": "x"}], %b, %b}'
    status, _, _ = await bench.post(twice % (b'"n": 1', b'"n": 1000000000'))
    assert status == 400
    assert bench.engine.stats.paths == {}
    status, _, _ = await bench.post(twice % (b'"n": 1000000000', b'"n": 1'))
    assert status == 200
    assert bench.engine.bodies[-1]["n"] == 1
    status, _, _ = await bench.post(twice % (b'"model": "nobody"', b'"\\u006dodel": "base"'))
    assert (status, bench.engine.bodies[-1]["model"]) == (200, "base")


async def test_14_heads(bench: Bench) -> None:
    for head, statuses in (
        (f"GET /healthz HTTP/1.1\r\nhost: x\r\nx-big: {'a' * 200_000}", {431}),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n" + "\r\n".join(f"x-{n}: y" for n in range(30_000)), {431}),
        (f"GET /healthz?{'a' * 100_000} HTTP/1.1\r\nhost: x", {400, 431}),
        (f"GET /{'a' * 70_000} HTTP/1.1\r\nhost: x", {400, 431}),
        ("nonsense", {400}),
        ("GET /healthz HTTP/9.9\r\nhost: x", {400}),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5", {400}),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1e3", {400}),
        ("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6", {400}),
        (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
            {400},
        ),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\nbad header: y", {400}),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\nx: a\nb", {400}),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\nx: a\0b", {400}),
    ):
        assert status_of(await raw(bench, head)) in statuses, head[:80]
    async with bench.http.get("/healthz") as reply:
        assert reply.status == 200
    assert bench.engine.stats.paths == {}


async def test_14_a_head_that_drips_is_cut(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.protocol.HEAD_SECONDS", 0.2)
    for first in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.server.port)
        writer.write(first)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_14_a_body_that_drips_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.asgi.BODY_SECONDS", 0.2)
    for sent in (b"", b'{"model"'):
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000"
        answer = await raw(bench, head, sent)
        assert status_of(answer) == 408
        assert b'"request_timeout"' in answer
    assert bench.engine.stats.paths == {}


async def test_14_ranges_mean_nothing(bench: Bench) -> None:
    ranges = {"range": "bytes=" + ",".join(f"{n}-{n}" for n in range(5_000))}
    for path in ("/openapi.json", "/metrics", "/v1/models", "/healthz"):
        async with bench.http.get(path, headers=ranges) as reply:
            assert reply.status == 200
            assert "content-range" not in reply.headers


async def test_15_nothing_of_a_client_ends_up_in_headers_labels_or_logs(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, key = "my prompt is private", "sk-very-secret"
    headers = {"authorization": f"Bearer {key}", "x-request-id": "evil%0d%0aset-cookie: a=b"}
    for body in (
        chat(messages=[{"role": "user", "content": secret}]),
        chat(messages=[{"role": "user", "content": secret}], n=0),
        chat(model=f'x",outcome="{secret}', messages=MESSAGES),
        chat(messages=[{"role": "user", "content": secret}], stream=True),
    ):
        async with bench.http.post(CHAT, json=body, headers=headers) as reply:
            await reply.read()
            assert "set-cookie" not in reply.headers
            assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    bench.engine.answer = lambda _, prompt: prompt
    answer = await raw(
        bench, "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: a\r\nset-cookie: a=b"
    )
    assert b"set-cookie" not in answer.lower()
    async with bench.http.get("/metrics") as reply:
        assert secret not in await reply.text()
    assert secret not in caplog.text
    assert key not in caplog.text


async def test_16_no_client_chooses_its_cache_salt(bench: Bench) -> None:
    for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/pooling", "/score"):
        status, answer, _ = await bench.post({"model": "base", "cache_salt": "a"}, path)
        assert status == 400
        assert answer["error"]["param"] == "cache_salt"
    assert bench.engine.stats.paths == {}


async def test_the_gateway_answers_as_before_after_all_that(bench: Bench) -> None:
    for bodies in BODIES.values():
        for body in bodies[:2]:
            await bench.post(body)
    status, answer, _ = await bench.post(chat())
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "base heard: one two three")
    await until(lambda: bench.engine.stats.running == 0)
