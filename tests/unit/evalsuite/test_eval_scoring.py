"""Marks and metrics, with scikit-learn as the oracle."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from evalsuite.scoring import Marker, normalise, same_json, token_f1, tokens
from evalsuite.tasks import Task, parse_object

LABELS = ("card_arrival", "Refund_not_showing_up", "lost-card")


def label_marker(labels: tuple[str, ...] = LABELS) -> Marker:
    return Marker(Task(kind="label", labels=labels), list(labels))


def scores(marker: Marker, pairs: list[tuple[str, str]]) -> dict[str, float]:
    marks = [marker.mark(expected, answer) for expected, answer in pairs]
    return {metric.name: metric.value(marks) for metric in marker.metrics}


@pytest.mark.parametrize(
    "answer", ["card_arrival", " Card Arrival.\n", '"card-arrival"', "`CARD_ARRIVAL`", "card arrival"]
)
def test_spelling_of_a_label_does_not_matter(answer: str) -> None:
    mark = label_marker().mark("card_arrival", answer)
    assert mark.right
    assert mark.label == "card_arrival"


@pytest.mark.parametrize(
    "answer", ["", "card", "card_arrival or lost-card", "I think: card_arrival", "cardarrival"]
)
def test_anything_else_is_no_label(answer: str) -> None:
    mark = label_marker().mark("card_arrival", answer)
    assert not mark.right
    assert mark.label is None


def test_labels_that_only_spelling_tells_apart_must_be_exact() -> None:
    marker = label_marker(("c", "C", "?"))
    assert marker.mark("c", "c").right
    assert not marker.mark("c", "C").right
    assert marker.mark("?", " ? ").right
    assert not marker.mark("?", "").right


@pytest.mark.parametrize(
    ("labels", "answer", "label"),
    [
        (("<5", ">10"), "<10", None),
        (("<5", ">10"), "5", None),
        (("<5", ">10"), '"<5".', "<5"),
        (("-1", "+1"), "1", None),
        (("-1", "+1"), " -1.", "-1"),
        (("C", "C++", "(none)"), "none", None),
        (("C", "C++", "(none)"), "c++", "C++"),
        (("a_b", "c"), "<_A-b_>", "a_b"),
    ],
)
def test_characters_that_belong_to_a_label_are_kept(
    labels: tuple[str, ...], answer: str, label: str | None
) -> None:
    assert label_marker(labels).mark(labels[0], answer).label == label


@given(st.integers(0, 10**6))
def test_accuracy_and_macro_f1_are_scikit_learns(seed: int) -> None:
    rng = random.Random(seed)
    labels = tuple("abcdefg"[: rng.randint(2, 7)])
    expected = [rng.choice(labels) for _ in range(rng.randint(1, 60))]
    answers = [rng.choice([*labels, "none of these"]) for _ in expected]
    marker = Marker(Task(kind="label", labels=labels), expected)
    got = scores(marker, list(zip(expected, answers, strict=True)))
    assert got["accuracy"] == pytest.approx(accuracy_score(expected, answers))
    asked = sorted(set(expected))
    theirs = f1_score(expected, answers, labels=asked, average="macro", zero_division=0)
    assert got["macro_f1"] == pytest.approx(theirs)


JSON = Task(kind="json", label_field="intent", fields=("intent", "item", "urgent"))
EXPECTED = '{"intent": "refund", "item": "kettle", "urgent": true}'


@pytest.mark.parametrize(
    ("answer", "right", "valid", "matched", "spurious", "missed"),
    [
        ('{"urgent": true, "item": "kettle", "intent": "refund"}', True, True, 3, 0, 0),
        (f"```json\n{EXPECTED}\n```", True, True, 3, 0, 0),
        ('{"intent": "refund", "item": "lamp", "urgent": true}', False, True, 2, 1, 1),
        ('{"intent": "refund", "urgent": true}', False, True, 2, 0, 1),
        ('{"intent": "refund", "item": "kettle", "urgent": true, "x": null}', False, True, 3, 1, 0),
        ('{"intent": "refund", "item": "kettle", "urgent": 1}', False, True, 2, 1, 1),
        ("{}", False, True, 0, 0, 3),
        ("refund", False, False, 0, 0, 3),
        ('["refund"]', False, False, 0, 0, 3),
        (f"Sure: {EXPECTED}", False, False, 0, 0, 3),
        ("", False, False, 0, 0, 3),
        ('{"a": NaN}', False, False, 0, 0, 3),
        ("[" * 100_000, False, False, 0, 0, 3),
        ('{"a": ' + "9" * 5000 + "}", False, False, 0, 0, 3),
    ],
)
def test_json_answers(
    answer: str, right: bool, valid: bool, matched: int, spurious: int, missed: int
) -> None:
    mark = Marker(JSON, [EXPECTED]).mark(EXPECTED, answer)
    got = (mark.right, mark.valid, mark.matched, mark.spurious, mark.missed)
    assert got == (right, valid, matched, spurious, missed)


def test_field_scores_are_the_micro_averages_of_scikit_learn() -> None:
    rng = random.Random(4)
    fields, values = ["intent", "item", "urgent"], ["x", "y"]
    pairs, truth, given_fields = [], [], []
    universe = [f"{field}={value}" for field in fields for value in values]
    for _ in range(80):
        wanted = {field: rng.choice(values) for field in fields if rng.random() < 0.8}
        found = {field: rng.choice(values) for field in fields if rng.random() < 0.8}
        pairs.append((repr(wanted).replace("'", '"'), repr(found).replace("'", '"')))
        for side, into in ((wanted, truth), (found, given_fields)):
            into.append([int(pair in {f"{key}={value}" for key, value in side.items()}) for pair in universe])
    got = scores(Marker(JSON, [wanted for wanted, _ in pairs]), pairs)
    assert got["field_f1"] == pytest.approx(f1_score(truth, given_fields, average="micro"))


def test_a_json_task_with_a_label_field_scores_the_label() -> None:
    pairs = [(EXPECTED, '{"intent": "refund"}'), (EXPECTED, '{"intent": ["refund"]}'), (EXPECTED, "no")]
    got = scores(Marker(JSON, [EXPECTED]), pairs)
    assert got["label_accuracy"] == pytest.approx(1 / 3)
    assert got["valid_json"] == pytest.approx(2 / 3)
    assert got["exact_match"] == 0


def test_a_json_task_without_a_label_field_has_no_label_metrics() -> None:
    names = [metric.name for metric in Marker(Task(kind="json"), [EXPECTED]).metrics]
    assert names == ["exact_match", "field_f1", "field_precision", "field_recall", "valid_json"]


def test_text_is_scored_by_overlap_first() -> None:
    marker = Marker(Task(kind="text"), ["x"])
    assert [metric.name for metric in marker.metrics] == ["token_f1", "exact_match"]
    got = scores(marker, [("The card is on its way", "the CARD is  on its way"), ("red kettle", "a kettle")])
    assert got["exact_match"] == 0.5
    assert got["token_f1"] == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is -5, not 5.1!", ["it", "is", "-5", "not", "5.1"]),
        ("(C++) or C#?", ["c++", "or", "c#"]),
        ("**Yes**, \u201cfor $5\u201d \u2014 50%.", ["yes", "for", "$5", "50%"]),
        ("about .5 - \u22122", ["about", ".5", "-2"]),
        ("我要退款。", ["我", "要", "退", "款"]),
        ("カード100枚", ["カ", "ー", "ド", "100", "枚"]),
        ("환불 요청", ["환불", "요청"]),
        ("5 + 3", ["5", "+", "3"]),
        ("don't", ["don't"]),
        ("...", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("5.1", "1.5"), ("C++", "C"), ("猫", "犬")])
def test_answers_that_differ_in_a_sign_share_no_token(one: str, other: str) -> None:
    assert token_f1(one, other) == 0


def test_text_without_spaces_overlaps_in_part() -> None:
    assert token_f1("我要退款", "我要换货") == pytest.approx(0.5)


@given(st.text(max_size=40), st.text(max_size=40))
def test_token_f1_is_symmetric_and_bounded(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == 1


@given(st.text(max_size=200))
def test_no_answer_breaks_a_marker(answer: str) -> None:
    normalise(answer)
    parse_object(answer)
    for task, expected in (
        (JSON, EXPECTED),
        (Task(kind="text"), "x"),
        (Task(kind="label", labels=LABELS), LABELS[0]),
    ):
        mark = Marker(task, [expected]).mark(expected, answer)
        assert mark.score in (0, 1) or task.kind == "text"


def test_no_answers_score_nothing() -> None:
    assert scores(label_marker(), []) == {"accuracy": 0.0, "macro_f1": 0.0}


def test_how_accents_are_encoded_makes_no_difference_to_json() -> None:
    apart = unicodedata.normalize("NFD", '{"stadt": "Köln", "größe": 1}')
    assert parse_object(apart) == {"stadt": "Köln", "größe": 1}
    assert parse_object('{"a": "\ud800"}') is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ([True], [1], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {}, False),
    ],
)
def test_json_equality_is_not_pythons(one: object, other: object, same: bool) -> None:
    assert same_json(one, other) is same
