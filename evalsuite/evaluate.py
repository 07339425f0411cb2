"""One evaluation: the same held-out questions asked of every arm, marked, compared and kept."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from evalsuite.client import Answer, Asking, ask_all
from evalsuite.compare import Comparison, adjust, compare
from evalsuite.scoring import Mark, Marker
from evalsuite.stats import Verdict
from evalsuite.tasks import Question, Task, read_questions, read_task
from serve.errors import ConfigError, DataError, Unavailable

Role = Literal["base", "candidate", "live"]
LONGEST_MAX_TOKENS = 8192
SLOWEST_TOKENS_PER_SECOND = 10


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: ``model`` is its public name at the gateway, ``label`` what people read."""

    label: str
    model: str
    role: Role


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come. ``scores`` is each arm's mean mark so far, by label."""

    done: int
    total: int
    failed: int
    seconds: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Conditions:
    """How the questions were asked: when, for how many seconds, and with which settings.

    ``too_long`` counts the questions that were left out, as they do not fit the context of an arm.
    """

    started_at: datetime
    seconds: float
    max_tokens: int
    concurrency: int
    seed: int = 0
    too_long: int = 0


@dataclass(frozen=True)
class Evaluation:
    """The questions, every arm's answers, and what they show. Immutable; JSON in and out."""

    task: Task
    arms: tuple[Arm, ...]
    questions: tuple[Question, ...]
    answers: tuple[tuple[Answer, ...], ...]
    comparisons: tuple[Comparison, ...]
    scores: Mapping[str, Mapping[str, float]]
    conditions: Conditions

    @property
    def verdict(self) -> Verdict:
        """Candidate against base, on the primary metric."""
        return self.against("base").verdict

    @property
    def candidate(self) -> Arm:
        """The arm under test."""
        return self.arm("candidate")

    def arm(self, role: Role) -> Arm:
        """The arm that plays ``role``; LookupError when none does."""
        return next(arm for arm in self.arms if arm.role == role)

    def against(self, role: Literal["base", "live"]) -> Comparison:
        """The comparison with the arm of ``role``; LookupError when there is none."""
        for comparison in self.comparisons:
            if comparison.role == role:
                return comparison
        raise LookupError(f"no comparison with a {role} arm")

    @property
    def live(self) -> Comparison | None:
        """The comparison with the version that answers users now, if one took part."""
        return next((item for item in self.comparisons if item.role == "live"), None)

    def missing(self, arm: Arm) -> int:
        """How many questions ``arm`` did not answer."""
        return sum(answer.error is not None for answer in self.answers[self.arms.index(arm)])

    @cached_property
    def complete(self) -> tuple[int, ...]:
        """Indices of the questions that every arm answered; only they are compared."""
        return _complete(self.answers)

    @cached_property
    def marks(self) -> Mapping[str, tuple[Mark, ...]]:
        """Each arm's marks, by label, in the order of :attr:`complete`."""
        marker = Marker(self.task, [question.expected for question in self.questions])
        return _marks(marker, self.arms, self.questions, self.answers, self.complete)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with all the evidence."""
        return dict(_adapter().dump_python(self, mode="json"))

    def summary(self) -> dict[str, Any]:
        """As plain JSON values without questions and answers: what a registry keeps."""
        whole = {key: value for key, value in self.to_dict().items() if key not in ("questions", "answers")}
        missing = {arm.label: self.missing(arm) for arm in self.arms}
        return whole | {"asked": len(self.questions), "missing": missing, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Read what :meth:`to_dict` wrote; pydantic's ValidationError for anything else."""
        return _adapter().validate_python(data)


def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)


async def evaluate(
    url: str,
    arms: Sequence[Arm],
    questions: Path,
    task: Path | Task,
    *,
    concurrency: int = 32,
    max_tokens: int | None = None,
    context: int | None = None,
    limit: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    seed: int = 0,
    patience: float = Asking.patience,
    api_key: str | None = None,
) -> Evaluation:
    """Ask every arm every question of ``questions`` through the gateway at ``url`` and compare them.

    ``max_tokens`` defaults to room for the task's longest answer, or as much of it as there is in a ``context`` of
    so many tokens. Raises :class:`DataError` for files that do not fit, :class:`ConfigError` for arms that do not,
    and what :func:`evalsuite.client.ask_all` raises; :class:`Unavailable` when an arm answered nothing. Questions
    that are longer than an arm's context are left out, and counted in the conditions: nobody could ask them, while
    any other answer that is missing counts as such.
    """
    _check_arms(arms)
    task = task if isinstance(task, Task) else read_task(task)
    asked = read_questions(questions, task, limit)
    room = max_tokens or min(answer_room(task), context or LONGEST_MAX_TOKENS)
    began, started_at = time.monotonic(), datetime.now(UTC)
    marker = Marker(task, [question.expected for question in asked])
    tally = _Tally(arms, len(asked) * len(arms), began)

    def on_answer(question: int, arm: int, answer: Answer) -> None:
        tally.add(arm, answer, marker.mark(asked[question].expected, answer.text))
        on_progress(tally.progress())

    timeout = max(Asking.timeout, room / SLOWEST_TOKENS_PER_SECOND)
    asking = Asking(concurrency, room, timeout, patience, api_key)
    answers = await ask_all(url, [arm.model for arm in arms], asked, asking, on_answer)
    fitting = [
        place for place, row in enumerate(zip(*answers, strict=True)) if not any(a.too_long for a in row)
    ]
    if not fitting:
        raise DataError(
            f"all {len(asked)} questions are longer than the base can read: {answers[0][0].error}",
            "shorten them, or serve the base with a longer context (TENON_MAX_MODEL_LEN)",
        )
    answers = [[row[place] for place in fitting] for row in answers]
    conditions = Conditions(
        started_at, time.monotonic() - began, room, concurrency, seed, len(asked) - len(fitting)
    )
    return assemble(task, arms, [asked[place] for place in fitting], answers, conditions)


def assemble(
    task: Task,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    answers: Sequence[Sequence[Answer]],
    conditions: Conditions,
) -> Evaluation:
    """Mark and compare answers that are already there; ``answers[arm][question]``.

    A question that any arm failed to answer is left out of all comparisons: the gate limits how many may be.
    """
    _check_arms(arms)
    complete = _complete(answers)
    for arm, row in zip(arms, answers, strict=True):
        errors = Counter(answer.error for answer in row if answer.error is not None)
        if errors.total() == len(row):
            raise Unavailable(
                f"{arm.label} answered none of {len(row)} questions: {errors.most_common(1)[0][0]}",
                "see `tenon status`, and the logs of engine and gateway",
            )
    if not complete:
        raise Unavailable(
            "no question was answered by all arms, so there is nothing to compare",
            "see `tenon status`, and ask again when all arms answer",
        )
    marker = Marker(task, [question.expected for question in questions])
    metrics, marks = marker.metrics, _marks(marker, arms, questions, answers, complete)
    candidate = next(arm for arm in arms if arm.role == "candidate")
    comparisons = [
        compare(
            metrics,
            marks[arm.label],
            marks[candidate.label],
            arm.label,
            candidate.label,
            arm.role,
            conditions.seed,
        )
        for arm in arms
        if arm.role != "candidate"
    ]
    return Evaluation(
        task=task,
        arms=tuple(arms),
        questions=tuple(questions),
        answers=tuple(tuple(row) for row in answers),
        comparisons=tuple(adjust(comparisons)),
        scores={
            label: {metric.name: metric.value(row) for metric in metrics} for label, row in marks.items()
        },
        conditions=conditions,
    )


def answer_room(task: Task) -> int:
    """Tokens that the task's longest answer may need: one per byte of UTF-8 is the worst that tokenizers do.

    A task without the number of bytes gets the most that its characters can have, four each. The engine writes less
    where the model's context ends, but wants no more to be asked for than that.
    """
    size = task.longest_answer_bytes
    if size is None:
        size = 4 * task.longest_answer_chars
    return min(size + 16, LONGEST_MAX_TOKENS) if size else 256


class _Tally:
    """Running scores while answers come in."""

    def __init__(self, arms: Sequence[Arm], total: int, began: float) -> None:
        self._labels = [arm.label for arm in arms]
        self._points = [0.0] * len(arms)
        self._answered = [0] * len(arms)
        self._total, self._began, self._failed = total, began, 0

    def add(self, arm: int, answer: Answer, mark: Mark) -> None:
        if answer.error is not None:
            self._failed += 1
            return
        self._answered[arm] += 1
        self._points[arm] += mark.score

    def progress(self) -> Progress:
        scores = {
            label: points / answered
            for label, points, answered in zip(self._labels, self._points, self._answered, strict=True)
            if answered
        }
        done = sum(self._answered) + self._failed
        return Progress(done, self._total, self._failed, time.monotonic() - self._began, scores)


def _complete(answers: Sequence[Sequence[Answer]]) -> tuple[int, ...]:
    return tuple(
        index
        for index, row in enumerate(zip(*answers, strict=True))
        if all(answer.error is None for answer in row)
    )


def _marks(
    marker: Marker,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    answers: Sequence[Sequence[Answer]],
    complete: Sequence[int],
) -> dict[str, tuple[Mark, ...]]:
    return {
        arm.label: tuple(marker.mark(questions[index].expected, row[index].text) for index in complete)
        for arm, row in zip(arms, answers, strict=True)
    }


def _check_arms(arms: Sequence[Arm]) -> None:
    roles = Counter(arm.role for arm in arms)
    if roles["base"] != 1 or roles["candidate"] != 1 or roles["live"] > 1:
        raise ConfigError(
            "an evaluation needs one base arm, one candidate arm and at most one live arm",
            "name each of them once",
        )
    if len({arm.label for arm in arms}) != len(arms):
        raise ConfigError(
            "two arms have the same label, so nobody could tell them apart", "give each a label of its own"
        )
