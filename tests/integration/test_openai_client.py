"""The unmodified ``openai`` client against the gateway and the real engine."""

import json
import subprocess
import sys
from typing import Any

import openai
import pytest
from support.stack import RunningStack

from deploy.snippets import curl_snippet, python_snippet

ASK = [{"role": "user", "content": "Where is my order?"}]


@pytest.fixture
def model(stack: RunningStack) -> str:
    """An alias that answers with a random adapter."""
    if stack.registry.alias("client") is None:
        stack.serve("client", seed=11)
    return "client"


def test_models_list_names_base_alias_and_version(
    client: openai.OpenAI, stack: RunningStack, model: str
) -> None:
    names = {entry.id for entry in client.models.list()}
    assert {stack.base.name, model, "client@v1"} <= names


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=8, temperature=0)
    assert answer.model == "client@v1"
    assert answer.choices[0].message.content is not None
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8


@pytest.mark.parametrize("tools", [False, True])
def test_the_lines_that_a_run_prints_work_as_they_are(stack: RunningStack, model: str, tools: bool) -> None:
    sample: dict[str, Any] = {"messages": [{"role": "user", "content": 'Where\'s my "order"?\n$HOME é'}]}
    if tools:
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
        sample["messages"] += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "on its way", "tool_call_id": "c1"},
        ]
        function = {"name": "find", "strict": False, "parameters": {"type": "object", "properties": {}}}
        sample |= {"tools": [{"type": "function", "function": function}], "tool_choice": "none"}
    code = python_snippet(stack.url, model, sample)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    command = curl_snippet(stack.url, model, sample)
    answered = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    answer = json.loads(answered.stdout)
    assert answer["model"] == "client@v1"
    assert printed.stdout.removesuffix("\n") == answer["choices"][0]["message"]["content"]


def test_stream_has_the_same_text_and_no_usage_unasked(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ASK, max_tokens=12, temperature=0)
    chunks = list(
        client.chat.completions.create(model=model, messages=ASK, max_tokens=12, temperature=0, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"client@v1"}
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_stream_with_usage(client: openai.OpenAI, model: str) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=6, stream=True, stream_options=options
    )
    last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens >= 1


def test_n_gives_that_many_choices(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ASK, n=2, max_tokens=4, temperature=1, seed=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs
    assert content is not None
    assert content.content
    assert all(entry.logprob <= 0 for entry in content.content)


def test_stop_ends_the_answer_before_the_stop_text(client: openai.OpenAI, model: str) -> None:
    free = client.chat.completions.create(model=model, messages=ASK, max_tokens=16, temperature=0)
    text = free.choices[0].message.content or ""
    stop = text[len(text) // 2 :][:3]
    cut = client.chat.completions.create(model=model, messages=ASK, max_tokens=16, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_completions(client: openai.OpenAI, model: str) -> None:
    scored = client.completions.create(model=model, prompt="Hello there", max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == "Hello there"
    assert len(scored.choices[0].logprobs.token_logprobs) == scored.usage.prompt_tokens
    answer = client.completions.create(model=model, prompt="Hello", max_tokens=5, temperature=0)
    assert answer.model == "client@v1"
    assert answer.choices[0].text


def test_adapter_and_base_differ(client: openai.OpenAI, stack: RunningStack, model: str) -> None:
    answers = [
        client.chat.completions.create(model=name, messages=ASK, max_tokens=16, temperature=0)
        .choices[0]
        .message.content
        for name in (stack.base.name, model)
    ]
    assert answers[0] != answers[1]


def test_wrong_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=ASK)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("bad", [{"temperature": 9}, {"max_tokens": 0}, {"n": 100_000}, {"top_p": "much"}])
def test_bad_parameter_is_400_and_named(client: openai.OpenAI, model: str, bad: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ASK, **bad)
    assert caught.value.param == next(iter(bad))
