"""What the data step writes is what the evaluation reads, however awkward the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalsuite.tasks import Question, Task, parse_object, read_questions, read_task
from train.data.prepare import DataSpec, prepare

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Köln"}'}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"maximum": 2**70, "d": float("nan")}}}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def chat(number: int, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Question {number}?"}, *turns], **more}


def awkward(number: int) -> dict[str, Any]:
    """One of eight kinds of chat that ends in a text of its own."""
    end = assistant(f"The answer is {number} \u2028 \x85 and 我的卡丢了 🏳️\u200d🌈")
    kinds: list[dict[str, Any]] = [
        chat(number, end),
        chat(number, end, tools=[TOOL]),
        chat(
            number,
            assistant(None, tool_calls=[CALL]),
            {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "find"},
            end,
            tools=[TOOL],
        ),
        chat(number, assistant("", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1.5}}}]), end),
        chat(number, {"role": "developer", "content": "Be brief"}, end),
        chat(number, {"role": "user", "content": "more", "name": 5}, end, functions=[{"name": "f"}]),
        chat(number, {"role": "tool", "tool_call_id": 9, "content": None}, end),
        chat(number, {"role": "user", "content": [{"type": "text", "text": "part"}]}, end),
    ]
    return kinds[number % len(kinds)]


def prepared(folder: Path, rows: list[dict[str, Any]]) -> tuple[Task, list[Question], int]:
    """The task, all questions of all splits and how many rows were dropped."""
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = prepare(DataSpec(train=str(path)), folder / "out")
    task = read_task(made.folder / "task.json")
    assert task == Task.model_validate(made.task.to_json())
    questions = [
        question
        for split in ("train", "validation", "test")
        for question in read_questions(made.folder / f"{split}.jsonl", task)
    ]
    assert len(questions) == sum(made.counts.values())
    return task, questions, made.report.dropped()


def test_awkward_chats_are_readable_and_can_be_sent(tmp_path: Path) -> None:
    task, questions, dropped = prepared(tmp_path, [awkward(number) for number in range(80)])
    assert (task.kind, len(questions), dropped) == ("text", 80, 0)
    for question in questions:
        json.dumps([message.to_openai() for message in question.messages], allow_nan=False)
        json.dumps(question.tools, allow_nan=False)
    assert sum(bool(question.tools) for question in questions) == 30
    roles = {message.role for question in questions for message in question.messages}
    assert roles == {"system", "user", "assistant", "tool"}


def test_answers_that_are_tool_calls_never_reach_the_evaluation(tmp_path: Path) -> None:
    calls = [chat(number, assistant(None, tool_calls=[CALL])) for number in range(100, 104)]
    _, questions, dropped = prepared(tmp_path, [*map(awkward, range(80)), *calls])
    assert (len(questions), dropped) == (80, 4)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ('{"a": NaN}', "text"),
        ('{"a": -Infinity}', "text"),
        ('{"a": 1e999}', "text"),
        (r'{"a": "\ud800"}', "text"),
        ('{"a": 123456789012345678901234567890}', "json"),
        ('{"a": {"b": [null, 0.1]}}', "json"),
        ("[1]", "text"),
    ],
)
def test_both_sides_agree_on_what_json_is(tmp_path: Path, answer: str, kind: str) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": f'{{"a": {number}}}'} for number in range(40)]
    rows += [{"prompt": f"Odd one {number}?", "completion": answer} for number in range(10)]
    task, questions, _ = prepared(tmp_path, rows)
    assert task.kind == kind
    assert all(parse_object(question.expected) is not None for question in questions) == (kind == "json")
