"""What an evaluation measures: a task, and the held-out questions with their expected answers.

``task.json`` says what kind of answer is expected; ``test.jsonl`` holds one question per line, in the
conversational prompt-completion form that training reads as well.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.errors import DataError

Kind = Literal["label", "json", "text"]


class Message(BaseModel):
    """One turn of a conversation; an assistant that called tools may have said nothing."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None

    def to_openai(self) -> dict[str, Any]:
        """As a message of a chat request, where the arguments of a call are JSON text."""
        message = self.model_dump(exclude_none=True)
        if self.tool_calls is not None:
            message["tool_calls"] = [_call_to_openai(call) for call in self.tool_calls]
            message["content"] = self.content or None  # as clients send it
        return message


def chat_fields(messages: Iterable[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A conversation as fields of a chat request.

    The model sees the tools as in training; the engine must not parse calls out of the text.
    """
    offered = {"tools": list(tools), "tool_choice": "none"} if tools else {}
    return {"messages": [message.to_openai() for message in messages], **offered}


class Task(BaseModel):
    """What is asked: one of some labels, a JSON object, or free text."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    labels: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    label_field: str | None = None
    longest_answer_chars: Annotated[int, Field(ge=0)] = 0
    longest_answer_bytes: Annotated[int, Field(ge=0)] | None = None
    """In UTF-8; None in files of before it was kept."""


class Question(NamedTuple):
    """A held-out question: the messages to send, the answer that is right, and the tools that are offered."""

    id: str
    messages: tuple[Message, ...]
    expected: str
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """What the user said last."""
        return next(
            (m.content for m in reversed(self.messages) if m.role == "user"), self.messages[-1].content
        )


class _Row(BaseModel):
    id: Annotated[str, Field(min_length=1)]
    prompt: Annotated[tuple[Message, ...], Field(min_length=1)]
    completion: Annotated[tuple[Message, ...], Field(min_length=1, max_length=1)]
    tools: tuple[dict[str, Any], ...] | None = None


def read_task(path: Path) -> Task:
    """Read ``task.json``, else raise :class:`DataError`."""
    try:
        return Task.model_validate_json(_read(path))
    except ValidationError as error:
        raise DataError(
            f"{path} is no task: {_first_problem(error)}", "it is written by the data step"
        ) from error


def read_questions(path: Path, task: Task, limit: int | None = None) -> list[Question]:
    """Read ``test.jsonl``: every row is checked, and the first ``limit`` of them are returned.

    Raises :class:`DataError` naming file and line for a row that is not a question, an id that occurs twice,
    or an expected answer that does not fit the task.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    # Not splitlines(): an answer may hold U+2028 or U+0085, which would cut a JSON line in two.
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        question = _question(path, number, line)
        if question.id in seen:
            raise DataError(
                f"{path}, line {number}: id {question.id!r} was used in line {seen[question.id]}",
                "give each row an id of its own, as the data step does",
            )
        _check_expected(path, number, question.expected, task)
        seen[question.id] = number
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no question", "an evaluation needs at least one held-out row")
    return questions[:limit]


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None.

    A Markdown code fence around it is forgiven; nothing else is. NaN, infinite numbers and lone surrogates are
    no JSON; the data step has the same rule. How accents are encoded makes no difference.
    """
    text = unicodedata.normalize("NFC", text).strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3]
    try:
        # orjson is strict, json keeps integers of any size.
        orjson.loads(text)
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _call_to_openai(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist", "prepare the data first, or name another file") from error
    except UnicodeDecodeError as error:
        text = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        raise DataError(text, "prepare the data again, or save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "look at its permissions") from error


def _question(path: Path, number: int, line: str) -> Question:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        raise DataError(
            f"{path}, line {number}: {_first_problem(error)}",
            'a row is {"id": …, "prompt": [{"role", "content"}, …], "completion": [{"role", "content"}]}',
        ) from error
    answer = row.completion[0]
    if answer.tool_calls:
        raise DataError(
            f"{path}, line {number}: the expected answer is a tool call, which is not scored yet",
            "leave the row out; the data step does",
        )
    return Question(row.id, row.prompt, answer.content, row.tools or ())


def _check_expected(path: Path, number: int, expected: str, task: Task) -> None:
    if task.kind == "label" and task.labels is not None and expected not in task.labels:
        raise DataError(
            f"{path}, line {number}: the expected answer {expected[:80]!r} is none of the task's labels",
            "the test split and task.json must come from the same data step",
        )
    if task.kind == "json" and parse_object(expected) is None:
        raise DataError(
            f"{path}, line {number}: the expected answer is no JSON object: {expected[:80]!r}",
            "the test split and task.json must come from the same data step",
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
