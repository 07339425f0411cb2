"""Checks of request fields and sampling defaults, without a server."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest, InputError
from serve.gateway.sampling import SamplingDefaults, apply_defaults
from serve.gateway.validate import INTERNAL, check_request, parse_body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0, "top_p": 1, "min_p": 0.1, "top_k": -1},
        {"temperature": None, "n": None, "stop": None, "stream": None},
        {"stop": []},
        {"stop": ["a", "b"], "seed": -1, "n": 128, "max_tokens": 1},
        {"logprobs": True, "top_logprobs": 20, "logit_bias": {"50256": -100}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "tool"}]},
        {"chat_template": None, "chat_template_kwargs": {"enable_thinking": True}},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"unknown_field": {"is": "the engine's business"}},
    ],
)
def test_good_chats(fields: dict[str, Any]) -> None:
    check_request({**CHAT, **fields}, "chat")


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 2.1, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"),
        ("top_p", 0, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_k", 1.5, "top_k"),
        ("min_p", 1.01, "min_p"),
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", -1, "max_completion_tokens"),
        ("n", 129, "n"),
        ("n", 10**9, "n"),
        ("n", 0, "n"),
        ("best_of", 1000, "best_of"),
        ("stop", ["x"] * 17, "stop"),
        ("stop", [""], "stop"),
        ("stop", 5, "stop"),
        ("presence_penalty", 3, "presence_penalty"),
        ("frequency_penalty", -3, "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("seed", 2**64, "seed"),
        ("stream", "yes", "stream"),
        ("stream_options", True, "stream_options"),
        ("stream_options", {"include_usage": "yes"}, "stream_options"),
        ("logprobs", 5, "logprobs"),
        ("messages", [], "messages"),
        ("messages", "hi", "messages"),
        ("messages", ["hi"], "messages[0]"),
        ("messages", [{"role": "user"}, {"content": "x"}], "messages[1].role"),
        ("messages", [{"role": 5}], "messages[0].role"),
        ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs"),
        ("tools", "x", "tools"),
    ],
)
def test_bad_chats_name_the_field(field: str, value: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_request({**CHAT, field: value}, "chat")
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_missing_fields_are_named() -> None:
    for endpoint, field in (("chat", "messages"), ("completion", "prompt")):
        with pytest.raises(BadRequest, match="required") as caught:
            check_request({"model": "m"}, endpoint)  # type: ignore[arg-type]
        assert caught.value.param == field


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2, 3], [[1], [2]]])
def test_good_completions(prompt: Any) -> None:
    check_request(
        {"model": "m", "prompt": prompt, "logprobs": 1, "echo": True, "max_tokens": 1}, "completion"
    )


@pytest.mark.parametrize("prompt", [None, [], 5, {"a": 1}])
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        check_request({"model": "m", "prompt": prompt}, "completion")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("field", sorted(INTERNAL))
def test_internal_fields_are_refused(field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_request({**CHAT, field: "x"}, "chat")
    assert caught.value.param == field


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(
    ["messages", "prompt", "stop", "n", "stream_options", "logit_bias", "temperature", "tools"]
)


@given(st.dictionaries(fields, json_values), st.sampled_from(["chat", "completion"]))
def test_whatever_comes_is_passed_or_refused(body: dict[str, Any], endpoint: Any) -> None:
    try:
        check_request({"model": "m", **body}, endpoint)
    except BadRequest as error:
        param = error.param
    else:
        return
    assert param in body or param in ("messages", "prompt") or "[" in str(param)


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_with_a_model_or_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_body(raw)


def test_defaults_list_every_problem_and_the_nearest_name() -> None:
    with pytest.raises(InputError) as caught:
        SamplingDefaults.parse({"temprature": 1, "top_p": 7, "stop": 3})
    assert "did you mean temperature?" in caught.value.message
    assert "top_p" in caught.value.message
    assert "stop" in caught.value.message
    assert "repetition_penalty" in caught.value.hint


def test_defaults_hold_only_what_was_set() -> None:
    assert SamplingDefaults.parse({"temperature": 0.0, "stop": "x"}).values() == {
        "temperature": 0.0,
        "stop": ["x"],
    }


def test_defaults_do_not_touch_what_a_request_sets() -> None:
    body = {"temperature": 0, "top_p": None, "max_completion_tokens": 5}
    apply_defaults(body, {"temperature": 1, "top_p": 0.5, "max_tokens": 9, "seed": 1})
    assert body == {"temperature": 0, "top_p": 0.5, "max_completion_tokens": 5, "seed": 1}
