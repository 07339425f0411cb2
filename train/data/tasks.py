"""What there is to learn: a label out of a few, a JSON object, or text."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import orjson

from serve.errors import DataError
from train.data.examples import Example, canonical
from train.data.spec import FormName

Kind = Literal["label", "json", "text"]

# Other forms than labelled text count as labels only where answers are as short and as few as labels are.
_MAX_LABELS = 200
_MAX_LABEL_CHARS = 64
# Fields of a JSON answer that hold the label, if one of them holds few values.
_LABEL_FIELDS = ("intent", "label", "category", "class", "type", "topic", "sentiment")

DEFAULT_INSTRUCTION = "Classify the message. Answer with one label."
# A longer list would cost more tokens in every request than it is worth.
_MAX_LISTED = 24
_MAX_LISTED_CHARS = 40


@dataclass(frozen=True, slots=True)
class Task:
    """What an evaluation measures; ``labels`` and ``fields`` are None where the kind has none.

    ``label_field`` is the field of a JSON answer that holds a label, and ``labels`` then its values.
    ``longest_answer_bytes`` (in UTF-8) bounds the tokens of an answer: no tokenizer needs more than one per
    byte, but many need more than one per character.
    """

    kind: Kind
    labels: tuple[str, ...] | None
    fields: tuple[str, ...] | None
    label_field: str | None
    longest_answer_chars: int
    longest_answer_bytes: int

    def label(self, answer: str) -> str:
        """The label that ``answer`` bears, empty where the task has none."""
        if self.kind == "label":
            return answer
        if self.label_field is None:
            return ""
        return str((_object(answer) or {}).get(self.label_field, ""))

    def meaning(self, answer: str) -> str:
        """``answer``, the same for two JSON answers that are written differently only."""
        return canonical(_object(answer)) if self.kind == "json" else answer

    def to_json(self) -> dict[str, Any]:
        """What ``task.json`` holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Task":
        """Read what :meth:`to_json` gave; raises KeyError or TypeError for anything else."""
        lists = {name: value[name] and tuple(value[name]) for name in ("labels", "fields")}
        return cls(**{**value, **lists})

    def including(self, answers: Iterable[str]) -> "Task":
        """The same task where ``answers`` are expected, too."""
        answers = list(answers)
        longest = _Longest.of(answers)
        return replace(
            self,
            labels=tuple(sorted({*(self.labels or ()), *answers})) if self.kind == "label" else self.labels,
            longest_answer_chars=max(self.longest_answer_chars, longest.chars),
            longest_answer_bytes=max(self.longest_answer_bytes, longest.bytes),
        )


class _Longest(NamedTuple):
    chars: int
    bytes: int

    @classmethod
    def of(cls, answers: Iterable[str]) -> "_Longest":
        sizes = [(len(answer), len(answer.encode())) for answer in answers]
        return cls(max((size[0] for size in sizes), default=0), max((size[1] for size in sizes), default=0))


def _object(answer: str) -> dict[str, Any] | None:
    """The JSON object that ``answer`` is, None where it is something else.

    NaN, infinite numbers and lone surrogates are no JSON; the evaluation has the same rule.
    """
    if not answer.startswith("{"):
        return None
    try:
        # orjson is strict, json keeps integers of any size.
        orjson.loads(answer)
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def detect_task(form: FormName, examples: Sequence[Example]) -> Task:
    """The task of ``examples``, which are those of all splits.

    Labelled text is a label. Else answers that are all JSON objects are JSON; at most 200 distinct answers
    of at most 64 characters on one line that come twice each on average are labels; anything else is text.
    """
    answers = Counter(example.answer for example in examples)
    longest = _Longest.of(answers)
    if form == "labelled":
        return Task("label", tuple(sorted(answers)), None, None, *longest)
    objects = {answer: value for answer in answers if (value := _object(answer)) is not None}
    if len(objects) == len(answers):
        return _json_task(objects, answers, longest)
    short = all(len(answer) <= _MAX_LABEL_CHARS and "\n" not in answer for answer in answers)
    if short and len(answers) <= _MAX_LABELS and len(answers) * 2 <= len(examples):
        return Task("label", tuple(sorted(answers)), None, None, *longest)
    return Task("text", None, None, None, *longest)


def _json_task(objects: dict[str, dict[str, Any]], answers: Counter[str], longest: _Longest) -> Task:
    """A JSON task; its fields are in the order of how often they occur, then of their names."""
    counts: Counter[str] = Counter()
    for answer, value in objects.items():
        counts.update(dict.fromkeys(value, answers[answer]))
    fields = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    total = answers.total()
    for name in _LABEL_FIELDS:
        values = [value[name] for value in objects.values() if isinstance(value.get(name), str)]
        labels = tuple(sorted(set(values)))
        few = 1 < len(labels) <= _MAX_LABELS and len(labels) * 2 <= total
        if few and len(values) == len(objects):
            return Task("json", labels, fields, name, *longest)
    return Task("json", None, fields, None, *longest)


def instruction(system: str | None, form: FormName, task: Task, labels: Sequence[str]) -> str:
    """The system instruction of rows that have none of their own; empty for none.

    ``system`` is the user's, with ``{labels}`` for the list of ``labels``. Without one, labelled text gets a
    short instruction, with the list where it has at most 24 labels of at most 40 characters; other forms get
    none.
    """
    listed = ", ".join(labels)
    if system is not None:
        if "{labels}" in system and task.kind != "label":
            raise DataError(
                f"data.system has {{labels}}, but the answers are {task.kind}, not labels",
                "take {labels} out of data.system",
            )
        return system.strip().replace("{labels}", listed)
    if form != "labelled":
        return ""
    if len(labels) > _MAX_LISTED or any(len(label) > _MAX_LISTED_CHARS for label in labels):
        return DEFAULT_INSTRUCTION
    return f"{DEFAULT_INSTRUCTION} Labels: {listed}."
