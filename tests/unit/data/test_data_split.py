import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.examples import Example
from train.data.split import Split, split
from train.data.text import fold

LABELS = "abc"
rows = st.lists(
    st.tuples(st.text("xyXY ", min_size=1, max_size=4), st.sampled_from(LABELS)), min_size=1, max_size=60
)
shares = st.sampled_from([0, 0.05, 0.1, 0.3, 0.45])


def examples(pairs: list[tuple[str, str]]) -> list[Example]:
    return [
        Example(number, [{"role": "user", "content": text}], {"role": "assistant", "content": label})
        for number, (text, label) in enumerate(pairs, 1)
    ]


def divide(pairs: list[tuple[str, str]], validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    return split(examples(pairs), lambda answer: answer, validation=validation, test=test, seed=seed)


def contents(part: list[Example]) -> list[tuple[str, str]]:
    return [(example.exact, example.answer) for example in part]


@settings(deadline=None)
@given(rows, shares, shares, st.integers(0, 3))
def test_split_is_a_partition_without_a_text_in_two_parts(
    pairs: list[tuple[str, str]], validation: float, test: float, seed: int
) -> None:
    result = divide(pairs, validation, test, seed)
    parts = [result.train, result.validation, result.test]
    assert sorted(example.number for part in parts for example in part) == list(range(1, len(pairs) + 1))
    keys = [{example.key for example in part} for part in parts]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert validation or not result.validation
    assert test or not result.test


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_row_order(pairs: list[tuple[str, str]], chance: random.Random) -> None:
    shuffled = list(pairs)
    chance.shuffle(shuffled)
    one, two = divide(pairs), divide(shuffled)
    assert contents(one.train) == contents(two.train)
    assert contents(one.validation) == contents(two.validation)
    assert contents(one.test) == contents(two.test)
    assert one.single == two.single


@settings(deadline=None)
@given(rows)
def test_every_label_stays_in_train(pairs: list[tuple[str, str]]) -> None:
    unambiguous = list({fold(text): (text, label) for text, label in pairs}.values())
    result = divide(unambiguous, 0.45, 0.45)
    assert {example.answer for example in result.train} == {label for _, label in unambiguous}


def test_parts_have_their_share_of_each_label() -> None:
    pairs = [(f"{label} {number}", label) for label in "abcd" for number in range(50)]
    result = divide(pairs, validation=0.1, test=0.2)
    assert Counter(example.answer for example in result.test) == dict.fromkeys("abcd", 10)
    assert Counter(example.answer for example in result.validation) == dict.fromkeys("abcd", 5)


def test_small_labels_share_what_is_left_by_rounding() -> None:
    pairs = [(f"{label} {number}", str(label)) for label in range(20) for number in range(4)]
    result = divide(pairs, validation=0.1, test=0.1)
    assert (len(result.validation), len(result.test)) == (8, 8)


def test_label_of_one_text_is_in_train_and_named() -> None:
    pairs = [("rare", "r"), *((f"often {number}", "o") for number in range(20))]
    result = divide(pairs, 0.4, 0.4)
    assert result.single == ("r",)
    assert "r" in {example.answer for example in result.train}


def test_another_seed_splits_another_way() -> None:
    pairs = [(f"text {number}", "a") for number in range(100)]
    assert contents(divide(pairs, seed=0).test) != contents(divide(pairs, seed=1).test)
