"""A conversation stays on one side of a canary, and no more move than must."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.balance.cost import USUAL_ANSWER, estimate_tokens
from serve.gateway.balance.side import Split, conversation_key, position

KEYS = [f"conversation {number}" for number in range(5000)]


def picks(weights: dict[str, float], alias: str = "support") -> list[str]:
    split = Split(alias, weights)
    return [split.pick(key) for key in KEYS]


@pytest.mark.parametrize("share", [1, 5, 50, 99])
def test_a_side_gets_its_share(share: int) -> None:
    count = picks({"v1": 100 - share, "v2": share}).count("v2")
    assert count / len(KEYS) == pytest.approx(share / 100, abs=0.02)


@given(st.integers(0, 100), st.integers(0, 100))
def test_only_the_needed_share_moves_and_in_one_direction(before: int, after: int) -> None:
    low, high = sorted((before, after))
    first, second = picks({"v1": 100 - low, "v2": low}), picks({"v1": 100 - high, "v2": high})
    moves = {(old, new) for old, new in zip(first, second, strict=True) if old != new}
    assert moves <= {("v1", "v2")}
    moved = sum(old != new for old, new in zip(first, second, strict=True))
    assert moved / len(KEYS) == pytest.approx((high - low) / 100, abs=0.03)


def test_scale_of_weights_does_not_matter() -> None:
    assert picks({"v1": 95, "v2": 5}) == picks({"v1": 0.95, "v2": 0.05})


def test_nobody_gets_a_version_of_weight_zero() -> None:
    assert set(picks({"v1": 0, "v2": 1, "v3": 0})) == {"v2"}
    assert Split("a", {"v1": 0, "v2": 1}).versions == ("v2",)


def test_canaries_of_different_aliases_meet_different_conversations() -> None:
    weights = {"v1": 50.0, "v2": 50.0}
    same = [a == b for a, b in zip(picks(weights, "a"), picks(weights, "b"), strict=True)]
    assert sum(same) / len(same) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("weights", [{}, {"v1": 0}, {"v1": -1, "v2": 2}, {"v1": float("inf")}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Split("a", weights)


@given(st.text(), st.text())
def test_position_is_in_the_unit_interval(alias: str, key: str) -> None:
    assert 0 <= position(alias, key) < 1


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    roles = ["system", "user", "assistant", "user"]
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **fields}


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = conversation_key(chat("be brief", "hello"))
    assert first == conversation_key(chat("be brief", "hello", "hi", "and now?"))
    assert first != conversation_key(chat("be brief", "good morning"))


def test_header_comes_before_user_and_user_before_messages() -> None:
    body = chat("s", "hello", user="anna")
    assert conversation_key(body, "c1") == conversation_key(chat("s", "other"), "c1")
    assert conversation_key(body) == conversation_key(chat("s", "other", user="anna"))
    assert conversation_key(body) != conversation_key(chat("s", "hello"))
    assert conversation_key({"user": "x"}) != conversation_key({}, "x")


def test_parts_of_a_message_count_but_no_image_in_full() -> None:
    def asks(text: str, image: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": image}}]
        return chat("s", parts)

    keys = {conversation_key(asks(text, image)) for text in ("a", "b") for image in ("c", "d")}
    assert len(keys) == 4
    assert len(conversation_key(asks("a", "x" * 10**6))) < 10_000


@pytest.mark.parametrize("prompt", ["once upon a time", ["one", "two"], [1, 2, 3], [[1, 2], [3]]])
def test_prompts_have_a_key(prompt: Any) -> None:
    assert conversation_key({"prompt": prompt}) == conversation_key({"input": prompt})
    assert conversation_key({"prompt": prompt}) != conversation_key({})


def test_a_prompt_that_grows_keeps_its_key() -> None:
    assert conversation_key({"prompt": "a" * 300}) == conversation_key({"prompt": "a" * 900})


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner)))
def test_whatever_the_messages_are_there_is_a_key(messages: Any) -> None:
    assert isinstance(conversation_key({"messages": messages}), str)


def test_cost_is_prompt_and_all_answers() -> None:
    assert estimate_tokens({}, 400) == 100 + USUAL_ANSWER
    assert estimate_tokens({"max_tokens": 10, "n": 3}, 400) == 130
    assert estimate_tokens({"max_completion_tokens": 5, "max_tokens": 10}, 0) == 5
