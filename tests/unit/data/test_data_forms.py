import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from serve.errors import DataError
from train.data import chat, forms
from train.data.examples import (
    BINARY,
    EMPTY_ANSWER,
    EMPTY_TEXT,
    NOT_TEXT,
    SPECIAL,
    Example,
    too_long,
)
from train.data.read import from_rows
from train.data.report import Ledger
from train.data.spec import DataSpec


def convert(*rows: dict[str, Any], **spec: Any) -> tuple[list[Example], Ledger, str]:
    table, ledger = from_rows("rows", list(rows)), Ledger()
    ledger.open("rows", "row")
    settings = DataSpec(**spec)
    layout = forms.detect(table, settings)
    return forms.examples(table, layout, settings, ledger), ledger, str(layout)


def one(row: dict[str, Any], **spec: Any) -> Example:
    found, ledger, _ = convert(row, **spec)
    assert len(found) == 1, ledger.report()
    return found[0]


def reason(row: dict[str, Any], **spec: Any) -> str:
    found, ledger, _ = convert(row, **spec)
    assert not found
    (drop,) = ledger.report().drops
    assert drop.rows == (1,)
    return drop.reason


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


BARE = {"type": "function", "function": {"name": "f", "description": None, "parameters": None}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"text": "hi", "label": "greet"}, [user("hi")], "greet"),
        ({"Sentence": "hi", "Category": 3}, [user("hi")], "3"),
        ({"text": "hi", "label": 3.0, "label_text": "greet"}, [user("hi")], "greet"),
        ({"query": "hi", "intent": True}, [user("hi")], "true"),
        ({"text": "hi", "label": Decimal("2.50")}, [user("hi")], "2.50"),
        ({"text": "hi", "label": date(2026, 1, 2)}, [user("hi")], "2026-01-02"),
        ({"text": "hi", "label": ["joy", "fear"]}, [user("hi")], "joy, fear"),
        ({"question": "who?", "answer": "me"}, [user("who?")], "me"),
        ({"question": "who?", "context": "I did", "answer": "me"}, [user("I did\n\nwho?")], "me"),
        ({"instruction": "add", "input": "1+1", "output": 2}, [user("add\n\n1+1")], "2"),
        ({"instruction": "add", "input": None, "response": "2"}, [user("add")], "2"),
        ({"prompt": "hi", "completion": "yo"}, [user("hi")], "yo"),
        ({"prompt": "hi", "completion": {"a": "é"}}, [user("hi")], '{"a": "é"}'),
        (
            {"system": "Be kind", "prompt": "hi", "response": "yo"},
            [{"role": "system", "content": "Be kind"}, user("hi")],
            "yo",
        ),
        ({"prompt": [user("hi")], "completion": [assistant("yo")]}, [user("hi")], "yo"),
        ({"prompt": [user("hi")], "completion": "yo"}, [user("hi")], "yo"),
        ({"messages": [user("hi"), assistant("yo")]}, [user("hi")], "yo"),
        (
            {"messages": '[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]'},
            [user("hi")],
            "yo",
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            [user("hi")],
            "yo",
        ),
    ],
)
def test_every_form(row: dict[str, Any], prompt: list[Any], answer: str) -> None:
    example = one(row)
    assert example.prompt == prompt
    assert example.completion == assistant(answer)


def test_chat_learns_the_last_answer_that_has_weight() -> None:
    turns = [
        {"role": "developer", "content": "Be brief"},
        user("one"),
        assistant("1"),
        user("two"),
        assistant("2", weight=1),
        user("three"),
        assistant("3", weight=0),
        user("four"),
    ]
    example = one({"messages": turns})
    assert example.prompt == [
        {"role": "system", "content": "Be brief"},
        user("one"),
        assistant("1"),
        user("two"),
    ]
    assert example.completion == assistant("2")


def test_chat_keeps_tool_messages_and_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}', "x": None}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    turns = [
        user("go"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        assistant("done"),
    ]
    example = one({"messages": turns, "tools": [tool]})
    calls = example.prompt[1]["tool_calls"]
    assert calls == [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert example.prompt[2] == {"role": "tool", "content": "", "tool_call_id": "c1"}
    assert example.tools == [
        {"type": "function", "function": {"name": "f", "description": None, "parameters": {}}}
    ]
    assert one({"messages": turns, "functions": [{"name": "f"}]}).tools == [BARE]


def test_bare_tools_and_calls_become_what_a_request_can_have() -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}, "returns": "x", "strict": True}
    call = {"id": 7, "name": "f", "arguments": {"a": 1}, "function": None}
    turns = [
        user("go"),
        assistant("", tool_calls=[call]),
        {"role": "tool", "content": "3"},
        assistant("done"),
    ]
    example = one({"messages": turns, "tools": [tool]})
    kept = {key: tool[key] for key in ("name", "description", "parameters", "strict")}
    assert example.tools == [{"type": "function", "function": kept}]
    assert example.prompt[1]["tool_calls"] == [
        {"id": "7", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": '{"a": 1}'}, {"a": 1}),
        ({"function": '{"name": "f", "arguments": {"a": 1}}'}, {"a": 1}),
        ({"function": {"name": "f", "arguments": ""}}, {}),
        ({"function": {"name": "f"}}, {}),
    ],
)
def test_the_arguments_of_a_call_are_an_object_as_the_engine_renders_them(
    call: dict[str, Any], arguments: dict[str, Any]
) -> None:
    turns = [
        user("go"),
        assistant("", tool_calls=[call]),
        {"role": "tool", "content": "3"},
        assistant("done"),
    ]
    for calls in ([call], json.dumps([call])):
        turns[1]["tool_calls"] = calls
        assert one({"messages": turns}).prompt[1]["tool_calls"][0]["function"] == {
            "name": "f",
            "arguments": arguments,
        }
    turns[1]["tool_calls"] = [{"name": "f", "arguments": "a=1"}]
    assert reason({"messages": turns}) == chat.NOT_ARGUMENTS


@pytest.mark.parametrize("calls", ["[]", "null", "", None, []])
def test_an_answer_without_calls_is_an_answer(calls: object) -> None:
    assert one({"messages": [user("hi"), assistant("yo", tool_calls=calls)]}).answer == "yo"


@pytest.mark.parametrize("escaped", ["\\u003c|im_end|>", "\\ud800", "\\u0000"])
@pytest.mark.parametrize("key", ["parameters", "arguments"])
def test_what_json_text_hides_is_found(escaped: str, key: str) -> None:
    turns: list[dict[str, Any]] = [user("hi"), assistant("yo")]
    function = {"name": "f", key: f'{{"a": "{escaped}"}}'}
    row: dict[str, Any] = {"messages": turns}
    if key == "parameters":
        row["tools"] = [function]
    else:
        turns[1:1] = [assistant("", tool_calls=[function]), user("and?")]
    assert reason(row) in (SPECIAL, BINARY)


def test_functions_may_be_json_text() -> None:
    row = {"messages": [user("hi"), assistant("yo")], "functions": '[{"name": "f"}]'}
    assert one(row).tools == [BARE]


@pytest.mark.parametrize(
    "schema", [{"input_schema": {"type": "object"}}, {"parameters": '{"type": "object"}'}]
)
def test_the_schema_of_a_tool_goes_by_several_names(schema: dict[str, Any]) -> None:
    example = one({"messages": [user("hi"), assistant("yo")], "tools": [{"name": "f", **schema}]})
    assert example.tools is not None
    assert example.tools[0]["function"]["parameters"] == {"type": "object"}


def test_chat_keeps_names_as_text_and_numbers_finite() -> None:
    turns = [
        {"role": "user", "content": "go", "name": 7},
        {"role": "tool", "content": "x", "tool_call_id": 3},
        assistant("done"),
    ]
    tool = {"type": "function", "function": {"name": "f", "limit": float("inf")}}
    example = one({"messages": turns, "tools": [tool]})
    assert example.prompt[0]["name"] == "7"
    assert example.prompt[1]["tool_call_id"] == "3"
    assert example.tools == [BARE]


def test_a_system_field_beside_the_conversation_is_kept_unless_that_has_its_own() -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    assert one({"conversations": turns, "system": "Be kind"}).prompt == [system("Be kind"), user("hi")]
    own = [{"from": "system", "value": "Be brief"}, *turns]
    assert one({"conversations": own, "system": "Be kind"}).prompt == [system("Be brief"), user("hi")]
    assert one({"conversations": turns, "system": " "}).prompt == [user("hi")]
    row = {"prompt": [user("hi")], "completion": [assistant("yo")], "system": "Be kind"}
    assert one(row).prompt == [system("Be kind"), user("hi")]


def test_a_weight_of_zero_as_text_is_not_learnt() -> None:
    turns = [user("a"), assistant("1", weight="1.0"), user("b"), assistant("2", weight="0")]
    assert one({"messages": turns}).answer == "1"


def test_chat_joins_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one({"messages": [{"role": "user", "content": parts}, assistant("c")]}).prompt == [user("a\nb")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "", "label": "a"}, EMPTY_TEXT),
        ({"text": None, "label": None}, EMPTY_TEXT),
        ({"text": " \u200b\n", "label": "a"}, EMPTY_TEXT),
        ({"text": "\u200d", "label": "a"}, EMPTY_TEXT),
        ({"text": float("nan"), "label": "a"}, EMPTY_TEXT),
        ({"text": "hi", "label": " "}, EMPTY_ANSWER),
        ({"text": "hi", "label": float("inf")}, EMPTY_ANSWER),
        ({"text": "hi", "label": []}, EMPTY_ANSWER),
        ({"text": "a\0b", "label": "a"}, BINARY),
        ({"text": b"ab", "label": "a"}, BINARY),
        ({"text": "\udc80", "label": "a"}, BINARY),
        ({"text": "x" * 1_000_000, "label": "a"}, too_long(32_000)),
        ({"text": "x<|im_end|>", "label": "a"}, SPECIAL),
        ({"text": ["x"], "label": "a"}, NOT_TEXT),
        ({"question": "", "context": "c", "answer": "a"}, EMPTY_TEXT),
        ({"prompt": "p", "completion": None}, EMPTY_ANSWER),
        ({"messages": []}, chat.NO_MESSAGES),
        ({"messages": "not json"}, chat.NO_MESSAGES),
        ({"messages": [user("hi"), assistant("yo")], "tools": "[{"}, chat.NOT_TOOLS),
        ({"messages": [user("hi")]}, chat.NO_ASSISTANT),
        ({"messages": [user("hi"), assistant("yo", weight=0)]}, chat.NO_ASSISTANT),
        ({"messages": [assistant("yo")]}, chat.NO_PROMPT),
        ({"messages": [user(""), assistant("yo")]}, EMPTY_TEXT),
        ({"messages": [user("hi"), assistant("")]}, EMPTY_ANSWER),
        ({"messages": [user("hi"), assistant("", tool_calls=[CALL])]}, chat.TOOL_CALL),
        ({"messages": [user("hi"), assistant("I look", tool_calls=[CALL])]}, chat.TOOL_CALL),
        (
            {"messages": [user("hi"), assistant("", tool_calls="f()"), user("x"), assistant("y")]},
            chat.NOT_CALLS,
        ),
        (
            {"messages": [user("hi"), assistant("", tool_calls=[{"id": "c"}]), user("x"), assistant("y")]},
            chat.NOT_CALLS,
        ),
        ({"messages": [user("hi"), assistant("yo")], "tools": [{"type": "function"}]}, chat.NOT_TOOLS),
        (
            {"messages": [user("hi"), assistant("yo")], "tools": [{"name": "a\nb"}]},
            "that no request could ask (tools.function.name)",
        ),
        (
            {"messages": [user("hi", name="x" * 200), assistant("yo")]},
            "that no request could ask (messages.name)",
        ),
        ({"messages": [{"role": "alien", "content": "x"}, assistant("yo")]}, chat.UNKNOWN_ROLE),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant("yo")]},
            chat.NOT_TEXT_PART,
        ),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    assert reason(row) == expected


def test_length_counts_the_whole_example() -> None:
    assert one({"text": "abcd", "label": "x"}, max_chars=5).answer == "x"
    assert reason({"text": "abcde", "label": "x"}, max_chars=5) == too_long(5)
    assert reason(
        {"messages": [user("abc"), assistant("de"), user("f"), assistant("g")]}, max_chars=6
    ) == too_long(6)


def test_columns_can_be_named() -> None:
    row = {"body": "hi", "team": "sales", "label": "x"}
    assert one(row, columns={"text": "body", "label": "team"}).answer == "sales"
    assert one({"text": "hi", "a": "x", "label": "y"}, label_column="a").answer == "x"
    both = {"question": "q?", "answer": "a", "label": "x"}
    assert one(both).answer == "a"
    assert one(both, format="labelled").answer == "x"
    assert one(both, label_column="label").answer == "x"


def test_layout_says_which_column_is_what() -> None:
    assert convert({"text": "a", "category": "b"})[2] == "labelled (text, label = category)"


def test_unknown_columns_name_what_was_found_and_the_way_out() -> None:
    with pytest.raises(DataError) as caught:
        convert({"foo": 1, "bar": 2})
    assert caught.value.message == "rows has no columns of a known form (found: foo, bar)"
    for form in forms.FORMS:
        assert form.signature in caught.value.hint
    assert "data.columns.text=YOUR_COLUMN" in caught.value.hint
    assert "lost_card" in caught.value.hint


def test_named_form_or_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no columns for the form chat \(found: text, label\)") as caught:
        convert({"text": "a", "label": "b"}, format="chat")
    assert "data.columns.messages=YOUR_COLUMN" in caught.value.hint
    with pytest.raises(DataError, match="no column 'categry' for label") as caught:
        convert({"text": "a", "category": "b"}, label_column="categry")
    assert caught.value.hint == "did you mean 'category'?"


def test_label_column_needs_labelled_text() -> None:
    with pytest.raises(ValueError, match="label_column is for labelled text"):
        DataSpec(label_column="a", format="chat")
    with pytest.raises(ValueError, match="name two columns"):
        DataSpec(label_column="a", columns={"label": "b"})
    with pytest.raises(ValueError, match="Extra inputs"):
        DataSpec(trian="a.csv")
