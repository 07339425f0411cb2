import json
import random
from itertools import islice

import pytest

from serve.errors import DataError
from train.tiny_base.corpus import documents
from train.tiny_base.corpus.classify import fixed_tasks, with_options
from train.tiny_base.corpus.extract import fields, intent_and_fields, one_value
from train.tiny_base.corpus.labels import STYLES, arbitrary
from train.tiny_base.corpus.stream import MAKERS


def prompt_of(row) -> str:
    return "\n".join(turn["content"] for turn in row["prompt"])


def answer_of(row) -> str:
    return row["completion"][0]["content"]


def test_the_stream_is_the_same_for_the_same_seed_only():
    first, again, other = (list(islice(documents(seed), 300)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_two_streams_do_not_disturb_each_other():
    one, two = documents(5), documents(6)
    mixed = [next(stream) for _ in range(100) for stream in (one, two)]
    assert mixed[::2] == list(islice(documents(5), 100))


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_are_chat_rows_or_text(kind: str):
    only = dict.fromkeys(MAKERS, 0.0) | {kind: 1.0}
    for row in islice(documents(3, only), 200):
        if "text" in row:
            assert set(row) == {"text"}
            assert row["text"].strip()
            continue
        assert set(row) == {"prompt", "completion"}
        roles = [turn["role"] for turn in row["prompt"]]
        assert roles in (["user"], ["system", "user"])
        assert [turn["role"] for turn in row["completion"]] == ["assistant"]
        assert all(turn["content"].strip() for turn in [*row["prompt"], *row["completion"]])


def test_rows_are_short():
    lengths = sorted(len(json.dumps(row)) for row in islice(documents(0), 3000))
    assert lengths[len(lengths) // 2] < 500
    assert lengths[-1] < 4000


def test_extracted_values_stand_in_the_prompt():
    rng = random.Random(4)
    for _ in range(1500):
        row = fields(rng)
        prompt, answer = prompt_of(row), answer_of(row)
        if not answer.startswith("{"):  # one value, or the names of the keys that have one
            assert answer in prompt or all(key in prompt for key in answer.split(", "))
            continue
        for value in json.loads(answer).values():
            assert value is None or (value and value in prompt)


def test_values_beside_an_intent_stand_in_the_prompt():
    rng = random.Random(5)
    for _ in range(500):
        row = intent_and_fields(rng)
        label, *values = json.loads(answer_of(row)).values()
        assert label
        assert all(value is None or value in prompt_of(row) for value in values)


def test_keys_without_a_value_are_null_or_left_out_as_the_instruction_says():
    rng = random.Random(8)
    nulls = omitted = 0
    for row in (maker(rng) for maker in (fields, intent_and_fields) for _ in range(500)):
        prompt, answer = prompt_of(row), answer_of(row)
        if not answer.startswith("{") or "money" in prompt.casefold() or "amount into" in prompt:
            continue
        if None in json.loads(answer).values():
            nulls += 1
            assert "null" in prompt
        elif any(word in prompt for word in ("Leave out", "Omit missing", "Only include")):
            omitted += 1
    assert nulls > 50
    assert omitted > 50


def test_one_value_is_copied_from_the_prompt():
    rng = random.Random(6)
    for _ in range(300):
        row = one_value(rng)
        assert answer_of(row) in prompt_of(row)


def test_the_right_option_is_among_the_options():
    rng = random.Random(7)
    for _ in range(500):
        row = with_options(rng)
        assert answer_of(row) in prompt_of(row)


def test_fixed_tasks_are_fixed_and_their_labels_differ():
    tasks = fixed_tasks()
    assert len(tasks) > 100
    for task in tasks:
        assert len(set(task.labels)) == len(task.labels) == len(task.intents)


@pytest.mark.parametrize("style", STYLES)
def test_label_styles_are_reversible(style: str):
    assert STYLES[style]("card not here") != STYLES[style]("card is here")


def test_arbitrary_labels_differ():
    rng = random.Random(8)
    for count in range(2, 20):
        assert len(set(arbitrary(rng, count))) == count


def test_weights_choose_the_kinds_of_rows():
    only = dict.fromkeys(MAKERS, 0.0) | {"story": 1.0}
    assert all("text" in row for row in islice(documents(0, only), 50))


def test_bad_weights_are_refused():
    with pytest.raises(DataError, match="unknown kinds \\['poems'\\]"):
        documents(0, {"poems": 1})
    with pytest.raises(DataError, match="all task weights are zero"):
        documents(0, dict.fromkeys(MAKERS, 0.0))
