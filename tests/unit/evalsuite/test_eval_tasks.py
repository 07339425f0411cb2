"""Reading tasks and questions: what is wrong is named with its file and line."""

import json
from pathlib import Path

import pytest

from evalsuite.tasks import Task, read_questions, read_task
from serve.errors import DataError

TEXT = Task(kind="text")


def row(name: str, answer: str = "yes", **changes: object) -> str:
    whole = {
        "id": name,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Is {name}?"}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    return json.dumps(whole | changes, ensure_ascii=False)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "test.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_questions_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, row("a"), "", row("b", "two\u2028lines"), row("c"))
    questions = read_questions(path, TEXT)
    assert [question.id for question in questions] == ["a", "b", "c"]
    assert questions[0].text == "Is a?"
    assert questions[1].expected == "two\u2028lines"
    assert [message.role for message in questions[0].messages] == ["system", "user"]
    assert len(read_questions(path, TEXT, limit=2)) == 2


@pytest.mark.parametrize(
    ("lines", "task", "telling"),
    [
        (["{"], TEXT, "line 1"),
        ([row("a"), "[]"], TEXT, "line 2"),
        ([row("a"), row("a")], TEXT, "line 2: id 'a' was used in line 1"),
        ([row("a", prompt=[])], TEXT, "line 1: prompt"),
        ([row("a", prompt=[{"role": "wizard", "content": "x"}])], TEXT, "line 1: prompt.0.role"),
        ([row("a", completion=[])], TEXT, "line 1: completion"),
        ([row("")], TEXT, "line 1: id"),
        (
            [row("a", completion=[{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}])],
            TEXT,
            "tool call, which is not scored",
        ),
        (
            [row("a", "maybe")],
            Task(kind="label", labels=("yes", "no")),
            "'maybe' is none of the task's labels",
        ),
        ([row("a", "[1]")], Task(kind="json"), "no JSON object"),
        ([""], TEXT, "holds no question"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, lines: list[str], task: Task, telling: str) -> None:
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, *lines), task)
    assert telling in caught.value.message
    assert "test.jsonl" in caught.value.message


def test_tools_and_tool_messages_are_read_and_sent_in_the_shape_of_openai(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"city": "Köln"}}}
    prompt = [
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    (question,) = read_questions(write(tmp_path, row("a", prompt=prompt, tools=tools)), TEXT)
    assert list(question.tools) == tools
    assert question.text == "Weather?"
    sent = [message.to_openai() for message in question.messages]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"city": "Köln"}'}
    assert [sent[0], sent[2]] == [prompt[0], prompt[2]]


def test_rows_beyond_the_limit_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2"):
        read_questions(write(tmp_path, row("a"), "broken"), TEXT, limit=1)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_questions(tmp_path / "no.jsonl", TEXT)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(binary, TEXT)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path, TEXT)


def test_a_task_is_read_and_its_unknown_keys_are_for_others(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text('{"kind": "label", "labels": ["a", "b"], "longest_answer_chars": 1, "language": "en"}')
    assert read_task(path) == Task(kind="label", labels=("a", "b"), longest_answer_chars=1)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"kind": "poem"}', '{"kind": "text", "longest_answer_chars": -1}']
)
def test_a_bad_task_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is no task"):
        read_task(path)
