"""Sampling policies and presets through the gateway; cache salts of tenants."""

import re
from typing import Any

import openai
import pytest
from gateway_harness import MESSAGES, Bench
from test_gateway_errors import check_shape

from serve.gateway.salt import cache_salt

POLICY = {
    "defaults": {"temperature": 0.3},
    "min": {"temperature": 0.1},
    "max": {"temperature": 0.9, "max_tokens": 5},
    "force": {"seed": 1, "top_p": 0.5},
}


async def sent(bench: Bench, **body: Any) -> dict[str, Any]:
    status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES, **body})
    assert status == 200, answer
    got = dict(bench.engine.bodies[-1])
    del got["model"], got["messages"]
    return got


async def test_defaults_limits_and_forced_values(bench: Bench) -> None:
    await bench.deploy(sampling=POLICY)
    forced = {"seed": 1, "top_p": 0.5}
    assert await sent(bench) == {"temperature": 0.3, "max_tokens": 5, **forced}
    assert await sent(bench, temperature=0.9, max_completion_tokens=2, seed=9, top_p=None) == {
        "temperature": 0.9,
        "max_completion_tokens": 2,
        **forced,
    }
    _, _, headers = await bench.post({"model": "support", "messages": MESSAGES})
    assert headers["x-tenon-forced"] == "seed, top_p"
    _, _, headers = await bench.post({"model": "support@v1", "messages": MESSAGES})
    assert "x-tenon-forced" not in headers
    seen = len(bench.engine.bodies)
    for field, value, limit in (
        ("temperature", 0.95, "0.9"),
        ("temperature", 0, "0.1"),
        ("max_tokens", 6, "5"),
    ):
        status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES, field: value})
        assert (status, check_shape(answer)) == (400, "outside_limits")
        assert answer["error"]["param"] == field
        assert f" {limit}, the " in answer["error"]["message"]
    assert len(bench.engine.bodies) == seen


async def test_a_preset_by_name(bench: Bench) -> None:
    await bench.deploy(sampling={"temperature": 0.3, "stop": "x"})
    assert await sent(bench, preset="balanced") == {"temperature": 0.7, "top_p": 0.9, "stop": "x"}
    assert await sent(bench, preset="balanced", temperature=0.2) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "stop": "x",
    }
    assert await sent(bench, model="base", preset="deterministic") == {
        "temperature": 0,
        "top_p": 1,
        "top_k": -1,
        "min_p": 0,
        "seed": 0,
    }
    with pytest.raises(
        openai.BadRequestError, match="known presets: deterministic, balanced, creative"
    ) as caught:
        await bench.client.chat.completions.create(
            model="support", messages=MESSAGES, extra_body={"preset": "wild"}
        )
    assert caught.value.param == "preset"


async def test_an_alias_whose_limits_cannot_be_read_does_not_answer(bench: Bench) -> None:
    await bench.deploy(sampling={"defaults": {}, "max": {"temperature": "low"}})
    status, answer, _ = await bench.post({"model": "support", "messages": MESSAGES})
    assert (status, check_shape(answer)) == (503, "adapter_not_ready")
    assert "sampling policy" in answer["error"]["message"]
    status, _, _ = await bench.post({"model": "support@v1", "messages": MESSAGES})
    assert status == 503  # the limits would hold for it, too


async def test_salts_keep_tenants_apart_and_none_is_set_without_keys(bench: Bench) -> None:
    assert "cache_salt" not in await sent_to_base(bench)
    secrets = {
        name: bench.registry.create_key(name, tenant=tenant).secret
        for name, tenant in (("one", "a"), ("two", "a"), ("three", "b"), ("four", ""), ("five", ""))
    }
    await bench.follow()
    salts = {name: (await sent_to_base(bench, secret))["cache_salt"] for name, secret in secrets.items()}
    assert salts["one"] == salts["two"] == cache_salt("tenant:a")
    assert len(set(salts.values())) == 4, "who has no tenant is one of his own"
    assert all(re.fullmatch("[0-9a-f]{64}", salt) for salt in salts.values()), "vLLM takes 128 plain letters"
    assert "cache_salt" not in await sent_to_base(bench, secrets["one"], "/tokenize", prompt="x")


async def sent_to_base(
    bench: Bench, secret: str = "none", path: str = "/v1/chat/completions", **body: Any
) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {secret}"}
    async with bench.http.post(
        path, json=body or {"model": "base", "messages": MESSAGES}, headers=headers
    ) as reply:
        assert reply.status == 200, await reply.text()
    return bench.engine.bodies[-1]
