"""Sampling policies and presets, without a server."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest, ConfigError, InputError, OutsideLimits
from serve.gateway.endpoints import CHAT, COMPLETION, RESPONSES
from serve.gateway.policy import NO_POLICY, SamplingPolicy
from serve.gateway.presets import BUILT_IN, find_preset, read_presets
from serve.gateway.rules import Rules
from serve.gateway.sampling import LIMITED
from serve.gateway.validate import check_request, preset_of


def policy(**parts: Any) -> SamplingPolicy:
    return SamplingPolicy.parse({"defaults": {}, **parts})


def applied(stored: SamplingPolicy, endpoint: Any = CHAT, **body: Any) -> dict[str, Any]:
    stored.apply(body, endpoint.length)
    return body


def test_what_was_stored_before_there_were_limits_is_read_as_defaults() -> None:
    old = {"temperature": 0.3, "stop": ["x"]}
    assert SamplingPolicy.parse(old).defaults == old
    assert SamplingPolicy.parse(old).stored() == old
    assert SamplingPolicy.parse({}) == NO_POLICY
    assert not NO_POLICY


def test_a_policy_is_stored_and_read_again() -> None:
    parts = {
        "defaults": {"temperature": 0.3},
        "min": {"temperature": 0.1},
        "max": {"temperature": 0.5, "max_tokens": 512},
        "force": {"seed": 1},
        "preset": "balanced",
    }
    assert SamplingPolicy.parse(parts).stored() == parts


def test_every_problem_is_listed_with_the_nearest_name() -> None:
    with pytest.raises(InputError) as caught:
        policy(
            defaults={"temprature": 1, "top_p": 7, "stop": 3}, min={"seed": 1}, max={"top_p": None, "n": 3}
        )
    for part in ("did you mean temperature?", "top_p", "stop", "seed has no limits", "n: no such field"):
        assert part in caught.value.message
    assert "repetition_penalty" in caught.value.hint


@pytest.mark.parametrize(
    "parts",
    [
        {"min": {"temperature": 0.9}, "max": {"temperature": 0.1}},
        {"defaults": {"temperature": 1.5}, "max": {"temperature": 1}},
        {"force": {"max_tokens": 10}, "min": {"max_tokens": 20}},
        {"defaults": {"top_k": -1}, "max": {"top_k": 50}},
        {"limits": {}},
        {"max": {"stop": "x"}},
        {"defaults": [1]},
        {"preset": 5},
    ],
)
def test_contradictions(parts: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        policy(**parts)


def test_defaults_do_not_touch_what_a_request_sets() -> None:
    chosen = policy(defaults={"temperature": 1, "top_p": 0.5, "max_tokens": 9, "seed": 1})
    body = applied(chosen, temperature=0, top_p=None, max_completion_tokens=5)
    assert body == {"temperature": 0, "top_p": 0.5, "max_completion_tokens": 5, "seed": 1}


@pytest.mark.parametrize(
    ("endpoint", "body", "param", "limit"),
    [
        (CHAT, {"temperature": 1.1}, "temperature", "1.0"),
        (CHAT, {"temperature": 0.1}, "temperature", "0.2"),
        (CHAT, {"max_tokens": 513}, "max_tokens", "512"),
        (CHAT, {"max_completion_tokens": 513}, "max_completion_tokens", "512"),
        (CHAT, {"max_completion_tokens": 5, "max_tokens": 513}, "max_tokens", "512"),
        (COMPLETION, {"max_tokens": 513}, "max_tokens", "512"),
        (RESPONSES, {"max_output_tokens": 513}, "max_output_tokens", "512"),
        (CHAT, {"top_k": -1}, "top_k", "50"),
        (CHAT, {"top_k": 0}, "top_k", "50"),
    ],
)
def test_a_value_outside_the_limits_is_refused_by_name(
    endpoint: Any, body: dict[str, Any], param: str, limit: str
) -> None:
    limited = policy(min={"temperature": 0.2}, max={"temperature": 1.0, "max_tokens": 512, "top_k": 50})
    with pytest.raises(OutsideLimits, match=limit) as caught:
        applied(limited, endpoint, **body)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")


def test_a_limit_holds_also_for_who_says_nothing() -> None:
    limited = policy(max={"temperature": 0.5, "max_tokens": 512, "top_k": 50, "top_p": 1.0})
    sent = {"temperature": 0.5, "top_k": 50, "top_p": 1.0}
    assert applied(limited) == {**sent, "max_tokens": 512}
    assert applied(limited, RESPONSES) == {**sent, "max_output_tokens": 512}
    assert applied(limited, COMPLETION) == sent, "an engine stops a completion after 16 tokens by itself"
    assert applied(policy(max={"max_tokens": 8}), COMPLETION) == {"max_tokens": 8}
    assert applied(policy(min={"max_tokens": 8})) == {}
    assert applied(policy(defaults={"temperature": 0.1}, max={"temperature": 0.5})) == {"temperature": 0.1}


def test_forced_values_win_over_everything() -> None:
    forced = policy(force={"temperature": 0, "max_tokens": 7}, max={"temperature": 1})
    assert applied(forced, temperature=2, max_tokens=5, max_completion_tokens=9) == {
        "temperature": 0,
        "max_tokens": 7,
    }
    assert applied(forced, RESPONSES, max_output_tokens=9) == {"temperature": 0, "max_output_tokens": 7}


numbers = st.dictionaries(st.sampled_from(["temperature", "top_p"]), st.floats(0.01, 1))


@given(numbers, numbers, numbers)
def test_whatever_is_asked_the_engine_gets_what_the_limits_allow(
    low: dict[str, float], high: dict[str, float], body: dict[str, float]
) -> None:
    try:
        limited = policy(min=low, max=high)
    except InputError:
        assert any(low[name] > high[name] for name in low.keys() & high.keys())
        return
    outside = [name for name in body if not low.get(name, 0) <= body[name] <= high.get(name, 2)]
    if outside:
        with pytest.raises(OutsideLimits) as caught:
            applied(limited, **body)
        assert caught.value.param in outside
        return
    sent = applied(limited, **body)
    for name in low.keys() | high.keys():
        assert low.get(name, 0) <= sent[name] <= high.get(name, 2)


# ---------------------------------------------------------------- presets


def test_built_in_presets_hold_valid_values() -> None:
    for values in BUILT_IN.values():
        assert SamplingPolicy.parse(values).defaults == values
        assert values.keys() <= {*LIMITED, "seed", "stop"}


def test_a_preset_stands_between_the_request_and_the_defaults() -> None:
    body = {"temperature": 0.9}
    policy(defaults={"temperature": 0.1, "top_p": 0.3, "seed": 7}).apply(
        body, CHAT.length, {"temperature": 0.5, "top_p": 0.8}, "mine"
    )
    assert body == {"temperature": 0.9, "top_p": 0.8, "seed": 7}


def test_a_preset_is_held_to_the_limits() -> None:
    with pytest.raises(OutsideLimits, match="from the preset creative"):
        policy(max={"temperature": 0.5}).apply({}, CHAT.length, BUILT_IN["creative"], "creative")
    policy(max={"temperature": 0.5}).apply(
        {"temperature": 0.2}, CHAT.length, BUILT_IN["creative"], "creative"
    )


def test_a_request_names_a_preset() -> None:
    body = {"model": "m", "messages": [{"role": "user"}], "preset": "balanced"}
    checked = check_request(body, "chat")
    assert preset_of(checked, Rules()) == ("balanced", BUILT_IN["balanced"])
    assert "preset" not in checked
    with pytest.raises(BadRequest, match="did you mean balanced") as caught:
        preset_of({"preset": "balance"}, Rules())
    assert caught.value.param == "preset"


def test_presets_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "presets.yaml"
    assert read_presets(file) == BUILT_IN
    with pytest.raises(ConfigError, match="no such file"):
        read_presets(file, needed=True)
    file.write_text("")
    assert read_presets(file) == BUILT_IN
    file.write_text("terse: {max_tokens: 64}\nbalanced: {temperature: 0.5}\n")
    assert find_preset(read_presets(file), "terse") == {"max_tokens": 64}
    assert read_presets(file)["balanced"] == {"temperature": 0.5}
    assert "deterministic" in read_presets(file)


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "Big Name: {}", "a: {temperature: 9}", "a: {lora_path: /etc}", "a: 5", "\0"]
)
def test_bad_preset_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "presets.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"presets\.yaml"):
        read_presets(file)
