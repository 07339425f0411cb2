"""What the page shows, taken from an evaluation: labels, examples, speed."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evalsuite.client import Answer
from evalsuite.evaluate import Arm, Evaluation
from evalsuite.scoring import Mark, same_json
from evalsuite.tasks import Message, Question, parse_object

LONGEST_TEXT = 1500
MOST_EXAMPLES = 40
OTHER = "(no label)"


@dataclass(frozen=True)
class LabelRow:
    """One label: F1 of both arms, and what the candidate most often says instead."""

    label: str
    questions: int
    baseline: float
    candidate: float
    mistake: str | None
    mistakes: int

    @property
    def difference(self) -> float:
        """Candidate minus baseline."""
        return self.candidate - self.baseline


@dataclass(frozen=True)
class Reply:
    """What an arm said to a question.

    For JSON answers ``fields`` holds text and right-or-wrong of each expected field, ``surplus`` the others.
    """

    arm: str
    text: str
    right: bool
    cut_short: bool
    fields: tuple[tuple[str, bool], ...] | None = None
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """A question with the right answer and both replies."""

    id: str
    question: str
    context: tuple[Message, ...]
    expected: str
    label: str
    fields: tuple[tuple[str, str], ...] | None
    replies: tuple[Reply, Reply]


@dataclass(frozen=True)
class Speed:
    """Latency in seconds and tokens of one arm's answers."""

    arm: Arm
    p50: float
    p90: float
    p99: float
    prompt_tokens: float
    completion_tokens: float
    cut_short: int
    retried: int
    missing: int


def label_rows(evaluation: Evaluation) -> list[LabelRow]:
    """One row per expected label, the biggest losses first; empty where the task has no labels."""
    comparison = evaluation.against("base")
    baseline, candidate = (evaluation.marks[arm] for arm in (comparison.baseline, comparison.candidate))
    labels = sorted({mark.expected_label for mark in candidate if mark.expected_label is not None})
    scores = [_label_f1(marks) for marks in (baseline, candidate)]
    instead: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for mark in candidate:
        if mark.expected_label is not None and mark.label != mark.expected_label:
            instead[mark.expected_label][mark.label or OTHER] += 1
    asked = Counter(mark.expected_label for mark in candidate)
    rows = []
    for label in labels:
        mistake, mistakes = next(iter(instead[label].most_common(1)), (None, 0))
        rows.append(LabelRow(label, asked[label], scores[0][label], scores[1][label], mistake, mistakes))
    return sorted(rows, key=lambda row: (row.difference, row.label))


def examples(evaluation: Evaluation) -> dict[Literal["broken", "fixed", "both_wrong"], list[Example]]:
    """Questions that the candidate broke, fixed, and that both arms got wrong; at most some of each."""
    comparison = evaluation.against("base")
    pair = comparison.baseline, comparison.candidate
    groups: dict[Literal["broken", "fixed", "both_wrong"], list[Example]] = {
        "broken": [],
        "fixed": [],
        "both_wrong": [],
    }
    for place, index in enumerate(evaluation.complete):
        before, after = (evaluation.marks[arm][place] for arm in pair)
        if after.right:
            kind: Literal["broken", "fixed", "both_wrong"] | None = None if before.right else "fixed"
        else:
            kind = "broken" if before.right else "both_wrong"
        if kind is not None and len(groups[kind]) < MOST_EXAMPLES:
            groups[kind].append(_example(evaluation, index, pair, (before, after)))
    return groups


def shared_context(evaluation: Evaluation) -> tuple[Message, ...]:
    """The messages around the question where they are the same for all; empty where they are not."""
    contexts = {_context(question) for question in evaluation.questions}
    return contexts.pop() if len(contexts) == 1 else ()


def speeds(evaluation: Evaluation) -> list[Speed]:
    """How fast each arm answered and with how many tokens, in the order of the arms."""
    return [_speed(arm, row) for arm, row in zip(evaluation.arms, evaluation.answers, strict=True)]


def clip(text: str) -> str:
    """``text``, shortened where it would fill the page."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more characters)"


def _speed(arm: Arm, answers: Sequence[Answer]) -> Speed:
    given = [answer for answer in answers if answer.error is None]
    p50, p90, p99 = (
        float(value) for value in np.quantile([answer.seconds for answer in given], [0.5, 0.9, 0.99])
    )
    return Speed(
        arm=arm,
        p50=p50,
        p90=p90,
        p99=p99,
        prompt_tokens=sum(answer.prompt_tokens for answer in given) / len(given),
        completion_tokens=sum(answer.completion_tokens for answer in given) / len(given),
        cut_short=sum(answer.cut_short for answer in given),
        retried=sum(answer.tries > 1 for answer in answers),
        missing=len(answers) - len(given),
    )


def _label_f1(marks: Sequence[Mark]) -> Mapping[str, float]:
    hits = Counter(mark.expected_label for mark in marks if mark.label == mark.expected_label)
    given = Counter(mark.label for mark in marks)
    asked = Counter(mark.expected_label for mark in marks)
    return {label: 2 * hits[label] / (given[label] + asked[label]) for label in asked if label is not None}


def _example(evaluation: Evaluation, index: int, pair: tuple[str, str], marks: tuple[Mark, Mark]) -> Example:
    question = evaluation.questions[index]
    wanted = parse_object(question.expected) if evaluation.task.kind == "json" else None
    arms = [arm.label for arm in evaluation.arms]
    before, after = (
        _reply(label, evaluation.answers[arms.index(label)][index], mark, wanted)
        for label, mark in zip(pair, marks, strict=True)
    )
    return Example(
        id=question.id,
        question=clip(question.text),
        context=_context(question),
        expected=clip(question.expected),
        label=marks[0].expected_label or "",
        fields=tuple((key, _json_text(value)) for key, value in wanted.items())
        if wanted is not None
        else None,
        replies=(before, after),
    )


def _context(question: Question) -> tuple[Message, ...]:
    last = max(
        (place for place, message in enumerate(question.messages) if message.role == "user"), default=-1
    )
    return tuple(
        Message(role=message.role, content=clip(message.content))
        for place, message in enumerate(question.messages)
        if place != last
    )


def _reply(label: str, answer: Answer, mark: Mark, wanted: Mapping[str, Any] | None) -> Reply:
    given = parse_object(answer.text) if wanted is not None else None
    if wanted is None or given is None:
        return Reply(label, clip(answer.text), mark.right, answer.cut_short)
    fields = tuple(
        (_json_text(given[key]) if key in given else "missing", key in given and same_json(given[key], value))
        for key, value in wanted.items()
    )
    surplus = tuple(f"{clip(key)}: {_json_text(given[key])}" for key in given if key not in wanted)
    return Reply(label, clip(answer.text), mark.right, answer.cut_short, fields, surplus)


def _json_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return clip(text)
