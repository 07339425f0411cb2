"""Evaluations with made-up answers, for the tests of comparison, gate and report."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from evalsuite.client import Answer
from evalsuite.evaluate import Arm, Conditions, Evaluation, assemble
from evalsuite.tasks import Message, Question, Task

BASE, CANDIDATE, LIVE = (
    Arm("tenon-tiny", "tenon-tiny", "base"),
    Arm("support@v2", "support@v2", "candidate"),
    Arm("support@v1", "support@v1", "live"),
)
LABELS = ("refund", "lost_card", "opening_hours")
TASK = Task(kind="label", labels=LABELS, longest_answer_chars=13)
CONDITIONS = Conditions(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), 1.5, 29, 8)


def answer(text: str, error: str | None = None) -> Answer:
    return Answer(text, 0.1, 20, 3, error=error)


def questions(expected: Sequence[str]) -> list[Question]:
    return [
        Question(f"q{i}", (Message(role="user", content=f"Question {i}?"),), text)
        for i, text in enumerate(expected)
    ]


def evaluation(
    base: float, candidate: float, live: float | None = None, *, n: int = 300, missing: int = 0, seed: int = 1
) -> Evaluation:
    """A label task whose arms answer rightly with these chances; the candidate lacks ``missing`` answers."""
    rng = random.Random(seed)
    asked = questions([rng.choice(LABELS) for _ in range(n)])
    arms, chances = [BASE, CANDIDATE], [base, candidate]
    if live is not None:
        arms, chances = [*arms, LIVE], [*chances, live]

    def reply(chance: float) -> Callable[[Question], Answer]:
        return lambda question: answer(question.expected if rng.random() < chance else "no idea")

    answers = [[reply(chance)(question) for question in asked] for chance in chances]
    for index in range(missing):
        answers[1][index] = answer("", error="HTTP 503: restarting")
    return assemble(TASK, arms, asked, answers, CONDITIONS)
