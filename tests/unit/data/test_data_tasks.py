import json

import pytest

from serve.errors import DataError
from train.data.examples import Example
from train.data.tasks import DEFAULT_INSTRUCTION, Task, detect_task, instruction


def answers(*texts: str) -> list[Example]:
    return [
        Example(number, [{"role": "user", "content": str(number)}], {"role": "assistant", "content": text})
        for number, text in enumerate(texts)
    ]


def test_labelled_text_is_a_label_even_where_every_label_is_new() -> None:
    task = detect_task("labelled", answers("b", "a", "c"))
    assert task == Task("label", ("a", "b", "c"), None, None, 1, 1)
    assert task.label("a") == "a"


def test_short_answers_that_repeat_are_labels() -> None:
    assert detect_task("chat", answers(*["yes", "no"] * 2)).kind == "label"
    assert detect_task("chat", answers("yes", "no", "maybe")).kind == "text"
    assert detect_task("chat", answers(*["x" * 65, "no"] * 5)).kind == "text"
    assert detect_task("chat", answers(*["two\nlines", "no"] * 5)).kind == "text"
    assert detect_task("chat", answers(*[str(number) for number in range(201)] * 3)).kind == "text"


def test_json_answers_have_fields_and_a_label_field() -> None:
    rows = [json.dumps({"city": "Bonn", "intent": "ask"}), '{"intent": "book"}'] * 2
    task = detect_task("prompt_completion", answers(*rows))
    assert task == Task("json", ("ask", "book"), ("intent", "city"), "intent", 33, 33)
    assert task.label(rows[0]) == "ask"
    assert task.meaning('{"a": 1, "b": 2}') == task.meaning('{"b":2,"a":1}')


def test_json_answers_without_a_label_field() -> None:
    empty = detect_task("prompt_completion", answers("{}", '{"people": "2"}', '{"people": "3"}'))
    assert (empty.kind, empty.labels, empty.fields, empty.label_field) == ("json", None, ("people",), None)
    mixed = detect_task(
        "prompt_completion", answers(*['{"intent": "a"}', '{"intent": "b"}'] * 4, '{"intent": 1}')
    )
    assert mixed.label_field is None
    assert detect_task("prompt_completion", answers('{"a": 1}', '{"a": 1} or so', "[1]")).kind == "text"


def test_task_json_has_the_agreed_keys() -> None:
    assert detect_task("labelled", answers("a", "b")).to_json() == {
        "kind": "label",
        "labels": ("a", "b"),
        "fields": None,
        "label_field": None,
        "longest_answer_chars": 1,
        "longest_answer_bytes": 1,
    }


def test_the_longest_answer_is_measured_in_characters_and_in_bytes() -> None:
    task = detect_task("chat", answers("twelve chars", "我的银行卡丢了怎么办"))
    assert (task.longest_answer_chars, task.longest_answer_bytes) == (12, 30)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", r'"\ud800"'])
def test_what_is_no_json_is_no_json_answer(value: str) -> None:
    assert detect_task("chat", answers('{"a": 1}', f'{{"a": {value}}}')).kind == "text"


def test_instruction() -> None:
    label = detect_task("labelled", answers("a", "b"))
    text = detect_task("chat", answers("some", "text"))
    assert instruction(None, "labelled", label, ["a", "b"]) == f"{DEFAULT_INSTRUCTION} Labels: a, b."
    assert instruction(None, "labelled", label, [str(number) for number in range(25)]) == DEFAULT_INSTRUCTION
    assert instruction(None, "labelled", label, ["x" * 41]) == DEFAULT_INSTRUCTION
    assert instruction(None, "chat", text, []) == ""
    assert instruction("", "labelled", label, ["a"]) == ""
    assert instruction('Say {"x"} of {labels}', "labelled", label, ["a", "b"]) == 'Say {"x"} of a, b'
    with pytest.raises(DataError, match="the answers are text"):
        instruction("{labels}", "chat", text, [])
