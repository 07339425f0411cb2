"""Answers that must have a form: JSON by a schema, and calls of tools, through the gateway and the real engine."""

import json
from typing import Any

import httpx
import openai
import pytest
from support.stack import RunningStack

ORDER = {
    "type": "object",
    "properties": {
        "intent": {"type": "string", "enum": ["refund", "return", "exchange"]},
        "urgent": {"type": "boolean"},
        "pieces": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["intent", "urgent", "pieces"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "order", "schema": ORDER, "strict": True}}
TOOL = {
    "type": "function",
    "function": {"name": "file_order", "description": "File it.", "strict": True, "parameters": ORDER},
}
BLANKS = ("\n", " ", "\t", "\r")
MESSAGES = [{"role": "user", "content": "I want my money back for two kettles, now!"}]


def check(text: str) -> None:
    order = json.loads(text)
    assert order.keys() == ORDER["properties"].keys()
    assert order["intent"] in ORDER["properties"]["intent"]["enum"]
    assert order["urgent"] in (True, False)
    assert 1 <= order["pieces"] <= 9


@pytest.fixture(scope="session")
def varied(session_stack: RunningStack) -> dict[str, Any]:
    """Options without which a model this small writes blanks for ever wherever a grammar allows them."""
    tokens = set()
    for blank in BLANKS:
        body = {"model": session_stack.base.name, "prompt": blank, "add_special_tokens": False}
        tokens |= set(httpx.post(f"{session_stack.url}/tokenize", json=body).json()["tokens"])
    return {"logit_bias": {str(token): -100 for token in tokens}, "frequency_penalty": 2.0, "max_tokens": 200}


@pytest.fixture
def model(stack: RunningStack) -> str:
    """An adapter that changes a little."""
    if stack.registry.alias("formed") is None:
        stack.serve("formed", seed=31, scale=0.1)
    return "formed"


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_an_answer_follows_its_schema(
    client: openai.OpenAI, model: str, varied: dict[str, Any], temperature: float
) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        response_format=SCHEMA,
        temperature=temperature,
        seed=5,
        **varied,
    )
    assert answer.choices[0].finish_reason == "stop"
    check(answer.choices[0].message.content)


def test_a_streamed_answer_follows_its_schema(
    client: openai.OpenAI, model: str, varied: dict[str, Any]
) -> None:
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, response_format=SCHEMA, temperature=0.5, stream=True, **varied
    )
    check("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))


def test_json_without_a_schema(client: openai.OpenAI, stack: RunningStack) -> None:
    answer = client.chat.completions.create(
        model=stack.base.name,
        messages=MESSAGES,
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=100,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize(
    "choice",
    [{"type": "function", "function": {"name": "file_order"}}, "required"],
    ids=["named", "required"],
)
def test_a_tool_is_called_with_arguments_of_its_schema(
    client: openai.OpenAI, model: str, varied: dict[str, Any], choice: Any
) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=[TOOL], tool_choice=choice, temperature=0, **varied
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "file_order"
    check(call.function.arguments)


def test_a_streamed_tool_call(client: openai.OpenAI, model: str, varied: dict[str, Any]) -> None:
    choice = {"type": "function", "function": {"name": "file_order"}}
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice=choice,
        temperature=0,
        stream=True,
        **varied,
    )
    arguments = ""
    for chunk in stream:
        for choice_ in chunk.choices:
            for call in choice_.delta.tool_calls or []:
                arguments += call.function.arguments or ""
    check(arguments)


def test_a_schema_that_the_engine_cannot_follow_is_the_clients_mistake(
    client: openai.OpenAI, stack: RunningStack
) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=stack.base.name,
            messages=MESSAGES,
            response_format={"type": "json_schema", "json_schema": {"name": "bad", "schema": bad}},
            max_tokens=10,
        )
    answer = client.chat.completions.create(model=stack.base.name, messages=MESSAGES, max_tokens=3)
    assert answer.choices
