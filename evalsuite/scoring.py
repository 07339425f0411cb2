"""How answers are marked, and how marks become metrics.

Every metric is higher-is-better and between 0 and 1. The first metric of a task is its primary one: it alone
decides the verdict, the others explain it.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from evalsuite.stats import Floats, Statistic
from evalsuite.tasks import Task, parse_object

SEPARATORS = re.compile(r"(?<=.)[\s_\-]+(?=.)", re.DOTALL)
# Text of these scripts has no spaces between words: Han, Hiragana, Katakana.
UNSPACED = re.compile(
    "[\u3005\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Dashes and CJK punctuation stand between words without spaces; a minus sign is written in two ways.
GAPS = {
    **dict.fromkeys(
        map(
            ord,
            "\u2014\u2015\u2026\u3001\u3002\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011\u30fb",
        ),
        " ",
    ),
    0x2212: "-",
}
AROUND = ".,:;!?\"'`*_()[]{}<>\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\u00bf\u00a1"
EDGES = "\"'`*.,:;!?()[]{}<>_-"


@dataclass(frozen=True)
class Mark:
    """What one answer was worth. Fields that do not apply to the task keep their defaults."""

    right: bool
    score: float
    label: str | None = None
    expected_label: str | None = None
    valid: bool = True
    matched: int = 0
    spurious: int = 0
    missed: int = 0


@dataclass(frozen=True)
class Metric:
    """A metric as a function of sums over questions, so that one bootstrap serves all.

    ``rows(marks)`` has shape ``(questions, columns)``; ``statistic`` maps column sums to the value.
    ``binary`` metrics are means of right-or-wrong marks, which McNemar's test fits.
    """

    name: str
    title: str
    rows: Callable[[Sequence[Mark]], Floats]
    statistic: Statistic
    binary: bool = False

    def value(self, marks: Sequence[Mark]) -> float:
        """The metric over ``marks``; 0 when there are none."""
        return float(self.statistic(self.rows(marks).sum(axis=0))) if marks else 0.0


class Marker:
    """Marks answers to one task: :meth:`mark` for each answer, :attr:`metrics` for all of them."""

    def __init__(self, task: Task, expected: Sequence[str]) -> None:
        """``expected`` are the right answers of all questions; macro-F1 averages over their labels."""
        self.task = task
        labels = task.labels or tuple(dict.fromkeys(expected))
        self._labels = frozenset(labels)
        self._edges = _edges(labels)
        self._forms = _label_forms(labels, self._edges)
        self.metrics = _metrics(task, [self._expected_label(text) for text in expected])

    def mark(self, expected: str, answer: str) -> Mark:
        """Mark ``answer`` against the ``expected`` one."""
        if self.task.kind == "label":
            exact = answer.strip()
            label = exact if exact in self._labels else self._forms.get(normalise(answer, self._edges))
            right = label == expected
            return Mark(right, float(right), label, expected)
        if self.task.kind == "json":
            return self._mark_object(expected, answer)
        right = normalise_text(answer) == normalise_text(expected)
        return Mark(right, token_f1(expected, answer))

    def _mark_object(self, expected: str, answer: str) -> Mark:
        wanted, given = parse_object(expected) or {}, parse_object(answer)
        found = given or {}
        matched = sum(key in found and same_json(found[key], value) for key, value in wanted.items())
        right = given is not None and matched == len(wanted) == len(found)
        field = self.task.label_field
        return Mark(
            right,
            float(right),
            label=_as_label(found.get(field)) if field else None,
            expected_label=_as_label(wanted.get(field)) if field else None,
            valid=given is not None,
            matched=matched,
            spurious=len(found) - matched,
            missed=len(wanted) - matched,
        )

    def _expected_label(self, expected: str) -> str | None:
        if self.task.kind == "label":
            return expected
        field = self.task.label_field
        return (
            _as_label((parse_object(expected) or {}).get(field))
            if field and self.task.kind == "json"
            else None
        )


def normalise(answer: str, edges: str = EDGES) -> str:
    """A label as it counts: case, any of ``edges`` around it, and space or ``_`` or ``-`` make no difference."""
    folded = unicodedata.normalize("NFKC", answer).casefold().strip(edges + string.whitespace)
    return SEPARATORS.sub(" ", folded)


def normalise_text(answer: str) -> str:
    """Text as it counts for exact match: Unicode form, case and runs of space make no difference."""
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split())


def token_f1(expected: str, answer: str) -> float:
    """Word overlap of two texts: the F1 of SQuAD's evaluation script (Rajpurkar et al. 2016) on other tokens.

    That script drops articles and all ASCII punctuation, so that ``-5`` is ``5`` and ``C++`` is ``C``, and leaves text
    without spaces whole. See :func:`tokens` for ours.
    """
    wanted, given = (Counter(tokens(text)) for text in (expected, answer))
    if not wanted or not given:
        return float(normalise_text(expected) == normalise_text(answer))
    common = (wanted & given).total()
    return 2 * common / (wanted.total() + given.total())


def tokens(text: str) -> list[str]:
    """The words of ``text`` without case: punctuation around a word is no part of it, what stands inside is.

    Signs, decimals and symbols stay (``-5``, ``5.1``, ``C++``, ``$5``), articles too; each Chinese or Japanese
    character is a token.
    """
    spaced = UNSPACED.sub(r" \g<0> ", normalise_text(text).translate(GAPS))
    return [token for word in spaced.split() if (token := _bare(word))]


def _bare(word: str) -> str:
    """``word`` without what stands around it; empty where it is punctuation alone."""
    word = word.rstrip(AROUND)
    bare = word.lstrip(AROUND)
    if bare[:1].isdigit() and word[: -len(bare)].endswith("."):
        bare = f".{bare}"
    return "" if all(unicodedata.category(sign)[0] == "P" for sign in bare) else bare


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; unlike Python's ``==``, ``true`` is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _as_label(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _edges(labels: Sequence[str]) -> str:
    """What may be around a label without being part of it: no character that a label begins or ends with."""
    trimmed = (unicodedata.normalize("NFKC", label).strip() for label in labels)
    meant = {char for label in trimmed if label for char in (label[0], label[-1])}
    return "".join(char for char in EDGES if char not in meant)


def _label_forms(labels: Sequence[str], edges: str) -> dict[str, str]:
    """Normalised form to label; labels that only their spelling tells apart have none: they must be exact."""
    forms = Counter(normalise(label, edges) for label in labels)
    return {form: label for label in labels if (form := normalise(label, edges)) and forms[form] == 1}


def _metrics(task: Task, expected_labels: Sequence[str | None]) -> tuple[Metric, ...]:
    right = _mean_of("right")
    by_label = sorted({label for label in expected_labels if label is not None})
    macro = Metric("macro_f1", "Macro-F1", partial(_label_rows, by_label), macro_f1)
    if task.kind == "label":
        return (Metric("accuracy", "Accuracy", right, mean, binary=True), macro)
    if task.kind == "text":
        return (
            Metric("token_f1", "Token F1", _mean_of("score"), mean),
            Metric("exact_match", "Exact match", right, mean, binary=True),
        )
    name = (task.label_field or "").capitalize()
    of_label = (
        Metric("label_accuracy", f"{name} accuracy", _label_right, mean, binary=True),
        Metric("macro_f1", f"{name} macro-F1", macro.rows, macro_f1),
    )
    return (
        Metric("exact_match", "Exact match", right, mean, binary=True),
        *(of_label if by_label else ()),
        Metric("field_f1", "Field F1", _field_rows, micro_f1),
        Metric("field_precision", "Field precision", _field_rows, micro_precision),
        Metric("field_recall", "Field recall", _field_rows, micro_recall),
        Metric("valid_json", "Valid JSON", _mean_of("valid"), mean, binary=True),
    )


def mean(sums: Floats) -> Floats:
    """Mean from the sums ``[value, 1]``."""
    return _ratio(sums[..., 0], sums[..., 1])


def micro_precision(sums: Floats) -> Floats:
    """Share of the fields given that are right, from ``[matched, spurious, missed]``."""
    return _ratio(sums[..., 0], sums[..., 0] + sums[..., 1])


def micro_recall(sums: Floats) -> Floats:
    """Share of the fields expected that were given rightly, from ``[matched, spurious, missed]``."""
    return _ratio(sums[..., 0], sums[..., 0] + sums[..., 2])


def micro_f1(sums: Floats) -> Floats:
    """Harmonic mean of field precision and recall, from ``[matched, spurious, missed]``."""
    return _ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 of the labels that were expected, from ``[hits, predictions, expectations]`` of each label.

    Columns are three blocks of one column per label. A label that a resample never asks for does not count
    there, as it would not count if that resample were the test.
    """
    hits, predicted, expected = np.split(sums, 3, axis=-1)
    asked = expected > 0
    scores = np.where(asked, _ratio(2 * hits, predicted + expected), 0.0)
    return _ratio(scores.sum(axis=-1), asked.sum(axis=-1))


def _ratio(above: Floats, below: Floats) -> Floats:
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _mean_of(field: str) -> Callable[[Sequence[Mark]], Floats]:
    return lambda marks: np.array([(float(getattr(mark, field)), 1.0) for mark in marks])


def _label_right(marks: Sequence[Mark]) -> Floats:
    return np.array(
        [(float(mark.label is not None and mark.label == mark.expected_label), 1.0) for mark in marks]
    )


def _field_rows(marks: Sequence[Mark]) -> Floats:
    return np.array([(mark.matched, mark.spurious, mark.missed) for mark in marks], float)


def _label_rows(labels: Sequence[str], marks: Sequence[Mark]) -> Floats:
    column = {label: index for index, label in enumerate(labels)}
    size = len(labels)
    rows = np.zeros((len(marks), 3 * size))
    for row, mark in zip(rows, marks, strict=True):
        given, wanted = column.get(mark.label or ""), column.get(mark.expected_label or "")
        if given is not None:
            row[size + given] = 1
        if wanted is not None:
            row[2 * size + wanted] = 1
            row[wanted] = given == wanted
    return rows
