"""Checks of request fields, without a server."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.gateway.bodies.refused import IGNORED, INTERNAL, UNSERVED
from serve.gateway.rules import Rules
from serve.gateway.validate import FIELDS, check_request, parse_body

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
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "verbosity": "low"},
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
        ("stream_options", {"include_usage": "yes"}, "stream_options.include_usage"),
        ("top_logprobs", 21, "top_logprobs"),
        ("top_logprobs", -1, "top_logprobs"),
        ("logit_bias", {str(token): 1 for token in range(301)}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", {"five": 1}, "logit_bias.five"),
        ("metadata", {"a": 1}, "metadata.a"),
        ("user", "x" * 513, "user"),
        ("allowed_token_ids", list(range(1025)), "allowed_token_ids"),
        ("bad_words", ["x"] * 129, "bad_words"),
        ("documents", [{"text": 5}], "documents[0].text"),
        ("response_format", {"type": "xml"}, "response_format"),
        ("structured_outputs", {}, "structured_outputs"),
        ("structured_outputs", {"choice": ["a"], "json": {}}, "structured_outputs"),
        ("structured_outputs", {"regex": "a"}, "structured_outputs.regex"),
        ("tool_choice", "always", "tool_choice"),
        ("modalities", ["text", "audio"], "modalities[1]"),
        ("logprobs", 5, "logprobs"),
        ("messages", [], "messages"),
        ("messages", "hi", "messages"),
        ("messages", ["hi"], "messages[0]"),
        ("messages", [{"role": "user"}, {"content": "x"}], "messages[1].role"),
        ("messages", [{"role": 5}], "messages[0].role"),
        ("messages", [{"role": "root"}], "messages[0].role"),
        ("messages", [{"role": "user"}] * 2049, "messages"),
        ("messages", [{"role": "user", "name": "a\0b"}], "messages[0].name"),
        ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ("messages", [{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0]"),
        ("messages", [{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs"),
        ("tools", "x", "tools"),
    ],
)
def test_bad_chats_name_the_field(field: str, value: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_request({**CHAT, field: value}, "chat")
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_a_completion_may_be_its_prompt_alone_but_a_chat_has_an_answer() -> None:
    asked = {"model": "m", "prompt": "x", "max_tokens": 0, "echo": True, "logprobs": 1}
    assert check_request(asked, "completion")["max_tokens"] == 0
    with pytest.raises(BadRequest, match="max_tokens"):
        check_request({**CHAT, "max_tokens": 0}, "chat")
    with pytest.raises(BadRequest, match="max_tokens"):
        check_request({**asked, "max_tokens": -1}, "completion")


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
    ["messages", "prompt", "stop", "n", "stream_options", "logit_bias", "tools", "response_format"]
)


@given(st.dictionaries(fields, json_values), st.sampled_from(["chat", "completion"]))
def test_whatever_comes_is_passed_or_refused(body: dict[str, Any], endpoint: Any) -> None:
    try:
        check_request({"model": "m", **body}, endpoint)
    except BadRequest as error:
        param = error.param
    else:
        return
    assert error_names(param, body)


def error_names(param: str | None, body: dict[str, Any]) -> bool:
    return str(param).partition(".")[0].partition("[")[0] in {*body, "messages", "prompt"}


@given(st.data())
def test_any_values_in_known_fields_are_checked_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FIELDS)))
    names = st.sampled_from(sorted(FIELDS[kind]))
    body = data.draw(st.dictionaries(names, json_values, max_size=4))
    try:
        checked = check_request({"model": "m", **body}, kind)
    except BadRequest:
        return
    assert checked.keys() <= FIELDS[kind]
    assert None not in checked.values()
    orjson.dumps(checked)


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_with_a_model_or_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_body(raw)


@pytest.mark.parametrize("field", sorted(UNSERVED))
def test_fields_that_are_not_offered_are_refused_with_the_reason(field: str) -> None:
    with pytest.raises(BadRequest, match=f"{field}: not offered here, as .") as caught:
        check_request({**CHAT, field: "x"}, "chat")
    assert caught.value.param == field


@pytest.mark.parametrize("field", sorted(INTERNAL | UNSERVED.keys() | {"unheard_of"}))
def test_null_counts_as_not_set(field: str) -> None:
    assert check_request({**CHAT, field: None}, "chat") == CHAT


def test_fields_without_a_meaning_here_do_not_reach_the_engine() -> None:
    body = {**CHAT, "metadata": {"a": "b"}, "store": True, "modalities": ["text"], "prompt_cache_key": "x"}
    assert check_request(body, "chat") == CHAT


def test_an_unknown_field_is_refused_with_the_nearest_name_or_dropped() -> None:
    body = {**CHAT, "max_tokns": 5}
    with pytest.raises(BadRequest, match="did you mean max_tokens") as caught:
        check_request(body, "chat")
    assert (caught.value.param, caught.value.code) == ("max_tokns", "unknown_field")
    dropping = Rules(unknown_fields="drop")
    assert check_request(body, "chat", dropping) == CHAT
    with pytest.raises(BadRequest, match="internal"):
        check_request({**CHAT, "cache_salt": "x"}, "chat", dropping)


def test_no_field_is_both_offered_and_refused() -> None:
    for fields in FIELDS.values():
        assert not fields & (INTERNAL | UNSERVED.keys())
    assert not (INTERNAL | UNSERVED.keys()) & IGNORED


def test_only_listed_keys_of_messages_reach_the_engine() -> None:
    part = {"type": "text", "text": "x", "image_url": "http://169.254.169.254/", "uuid": "1"}
    turn = {"role": "user", "content": [part], "provider_data": {"lora_path": "/etc"}}
    checked = check_request({"model": "m", "messages": [turn]}, "chat")
    assert checked["messages"] == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


IMAGE = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": IMAGE}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
    ],
)
def test_media_are_refused_unless_the_operator_allows_them(part: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    with pytest.raises(BadRequest, match="TENON_MEDIA"):
        check_request(body, "chat")
    check_request(body, "chat", Rules(media=frozenset({"image", "audio", "video"})))


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.png",
        "http:\\\\169.254.169.254/a.png",
        "file:///etc/passwd",
        "//169.254.169.254/",
        "data:image/svg+xml;base64,AAAA",
        "data:video/jpeg;base64," + ",".join(["AAAA"] * 10_000),
        "data:image/png;base64,AAAA,AAAA",
        "data:text/html,<script>",
        "DATA:image/png;base64,AAAA",
        "",
    ],
)
def test_media_come_as_one_data_url_or_not_at_all(url: str) -> None:
    rules = Rules(media=frozenset({"image", "audio", "video"}))
    for kind in ("image_url", "audio_url", "video_url"):
        part = {"type": kind, kind: {"url": url}}
        with pytest.raises(BadRequest, match="data: URL"):
            check_request({"model": "m", "messages": [{"role": "user", "content": [part]}]}, "chat", rules)


def test_parts_that_carry_tensors_are_refused() -> None:
    rules = Rules(media=frozenset({"image", "audio", "video"}))
    for kind in ("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil", "file"):
        turn = {"role": "user", "content": [{"type": kind, kind: "x"}]}
        with pytest.raises(BadRequest, match="does not match"):
            check_request({"model": "m", "messages": [turn]}, "chat", rules)


def test_answers_to_one_request_are_counted_together() -> None:
    check_request({"model": "m", "prompt": ["x"] * 8, "n": 128}, "completion")
    with pytest.raises(BadRequest, match="1,024 answers") as caught:
        check_request({"model": "m", "prompt": ["x"] * 9, "n": 128}, "completion")
    assert caught.value.param == "n"
    with pytest.raises(BadRequest, match="best_of"):
        check_request({"model": "m", "prompt": "x", "n": 2, "best_of": 5}, "completion")
    assert "best_of" not in check_request({"model": "m", "prompt": "x", "best_of": 1}, "completion")


@pytest.mark.parametrize(
    "prompt", [["x", 1], [1, "x"], [[1], "x"], [[]], [[1], []], [True], [-1], [2**31], [1.5], [["x"]]]
)
def test_mixed_prompts(prompt: Any) -> None:
    for kind, field in (("completion", "prompt"), ("embedding", "input")):
        with pytest.raises(BadRequest) as caught:
            check_request({"model": "m", field: prompt}, kind)  # type: ignore[arg-type]
        assert caught.value.param == field


def nested(levels: int) -> bytes:
    return b'{"model": "m", "a": ' + b"[" * levels + b"]" * levels + b"}"


def test_depth() -> None:
    parse_body(nested(63))
    for levels in (64, 300, 1023, 10_000, 200_000):
        with pytest.raises(BadRequest, match=r"nested too deeply|not JSON"):
            parse_body(nested(levels))


def test_many_shallow_values_are_not_deep() -> None:
    parse_body(b'{"model": "m", "a": [' + b"[]," * 1000 + b"[]]}")


@pytest.mark.parametrize("value", [b"[]", b"{}", b"0"])
def test_a_body_of_too_many_values_is_not_even_read(value: bytes) -> None:
    raw = b'{"model": "m", "a": [' + b",".join([value] * 1_100_000) + b"]}"
    with pytest.raises(BadRequest, match="too many values") as caught:
        parse_body(raw)
    assert caught.value.status == 413


def test_of_a_key_that_stands_twice_the_one_that_is_checked_is_the_one_that_is_used() -> None:
    bad_last = b'{"model": "m", "messages": [{"role": "user"}], "n": 1, "n": 1000000000}'
    with pytest.raises(BadRequest):
        check_request(parse_body(bad_last), "chat")
    bad_first = b'{"model": "m", "messages": [{"role": "user"}], "n": 1000000000, "n": 1}'
    assert check_request(parse_body(bad_first), "chat")["n"] == 1


@pytest.mark.parametrize(
    "text", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"\\ud800"', b'"\xed\xa0\x80"', b"01", b"'x'"]
)
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        parse_body(b'{"model": "m", "a": ' + text + b"}")
