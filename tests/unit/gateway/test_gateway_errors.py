"""Every error of every path has OpenAI's shape, and no engine is asked."""

from typing import Any

from gateway_harness import MESSAGES, Bench, until

from serve.gateway.asgi import MAX_BODY

CHAT = "/v1/chat/completions"


def check_shape(answer: Any) -> str:
    error = answer["error"]
    assert list(answer) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] in {
        "invalid_request_error",
        "server_error",
        "requests",
        "tokens",
        "insufficient_quota",
    }
    return str(error["code"])


# One gateway answers all cases of a test: starting it takes longer than asking it.


async def test_wrong_paths_and_methods(bench: Bench) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/embeddings/", 404, "not_found"),
        ("GET", "/tokenize", 405, "method_not_allowed"),
        ("POST", "/tokenizer_info", 405, "method_not_allowed"),
        ("POST", "/v1/load_lora_adapter", 404, "not_found"),
        ("POST", "/adapters", 404, "not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fmetrics", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ):
        async with bench.http.request(method, path) as reply:
            assert (reply.status, check_shape(await reply.json())) == (status, code), path
            assert ("allow" in reply.headers) == (status == 405)


async def test_bodies_that_are_no_json_object(bench: Bench) -> None:
    for raw in (
        b"",
        b"not json",
        b'{"model": "base"',
        b"[]",
        b'"base"',
        b'{"model": "base", "messages": NaN}',
        b'{"model": "base", "prompt": "\\ud800"}',
        b"[" * 10_000 + b"]" * 10_000,
        b'\xff{"model": "base"}',
    ):
        status, answer, _ = await bench.post(raw)
        assert (status, check_shape(answer)) == (400, "invalid_request"), raw[:50]
    assert bench.engine.bodies == []


async def test_a_body_nested_too_deeply(bench: Bench) -> None:
    schema = b'{"a":' * 400 + b"1" + b"}" * 400
    raw = b'{"model":"base","messages":[{"role":"user"}],"response_format":' + schema + b"}"
    status, answer, _ = await bench.post(raw)
    assert (status, check_shape(answer)) == (400, "invalid_request")
    assert "nested" in answer["error"]["message"]


async def test_no_model(bench: Bench) -> None:
    for model in (None, "", 3, ["base"]):
        status, answer, _ = await bench.post({"model": model, "messages": MESSAGES})
        assert (status, check_shape(answer)) == (400, "invalid_request")
        assert answer["error"]["param"] == "model"


async def test_hostile_model_names(bench: Bench) -> None:
    for model in ("x" * 100_000, "../base", "base\x00", "support@v1-00000000"):
        status, answer, _ = await bench.post({"model": model, "messages": MESSAGES})
        assert (status, check_shape(answer)) == (404, "model_not_found")
        assert len(answer["error"]["message"]) < 300


async def test_a_body_that_is_too_large(bench: Bench) -> None:
    raw = b'{"model": "base", "prompt": "' + b"x" * MAX_BODY + b'"}'
    status, answer, _ = await bench.post(raw)
    assert (status, check_shape(answer)) == (413, "request_too_large")

    async def pieces() -> Any:  # without a content-length
        for _ in range(MAX_BODY // 2**20 + 1):
            yield b" " * 2**20

    async with bench.http.post(CHAT, data=pieces(), headers={"content-type": "application/json"}) as reply:
        assert reply.status == 413
        assert check_shape(await reply.json()) == "request_too_large"


async def test_a_large_body_below_the_cap_arrives_whole(bench: Bench) -> None:
    bench.engine.answer = lambda _, prompt: str(len(prompt))
    status, answer, _ = await bench.post({"model": "base", "prompt": "x" * 2_000_000}, "/v1/completions")
    assert (status, answer["choices"][0]["text"]) == (200, "2000000")


async def test_wrong_content(bench: Bench) -> None:
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        async with bench.http.post(CHAT, data=b"{}", headers=headers) as reply:
            assert reply.status == 415
            assert check_shape(await reply.json()) == "unsupported_content"


async def test_a_version_that_is_not_loaded_is_named_and_unavailable(bench: Bench) -> None:
    version = bench.register()
    await bench.follow()
    for state, word in ((None, "not deployed"), ("pending", "pending"), ("failed", "could not be loaded")):
        if state:
            bench.set_state(version, state, "secret")
            await bench.follow()
        status, answer, headers = await bench.post({"model": "support@v1", "messages": MESSAGES})
        assert (status, check_shape(answer)) == (503, "adapter_not_ready")
        assert word in answer["error"]["message"]
        assert "secret" not in answer["error"]["message"]
        assert int(headers["retry-after"]) > 0


async def test_the_control_plane(bench: Bench) -> None:
    version = await bench.deploy(sampling={"temperature": 0.5})
    async with bench.http.get("/healthz") as reply:
        assert await reply.json() == {"status": "ok", "revision": bench.registry.revision()}
    async with bench.http.get("/readyz") as reply:
        assert (reply.status, (await reply.json())["status"]) == (200, "ready")
    async with bench.http.get("/api/status") as reply:
        status = await reply.json()
    assert status["engine"]["url"] == bench.engine.url
    assert status["engine_ready"] is True
    assert status["routes"] == {"base": "base", "support": "support@v1", "support@v1": "support@v1"}
    assert status["aliases"][0]["sampling"] == {"temperature": 0.5}
    assert status["versions"][0]["digest"] == version.digest
    assert status["versions"][0]["state"] == "ready"


async def test_before_any_engine_was_started(bench: Bench) -> None:
    (bench.home / "run" / "engine.json").unlink()
    await until(lambda: bench.source.table.engine is None)
    status, answer, _ = await bench.post({"model": "base", "messages": MESSAGES})
    assert (status, check_shape(answer)) == (503, "engine_unavailable")
    async with bench.http.get("/readyz") as reply:
        assert (reply.status, check_shape(await reply.json())) == (503, "engine_unavailable")
