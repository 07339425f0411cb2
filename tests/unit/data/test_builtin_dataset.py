"""The built-in dataset: honest splits, true answers, the same rows from the same seed."""

import itertools
import json
import re
from collections import Counter, defaultdict

import pytest

from train.data import builtin


@pytest.fixture(scope="module")
def dataset() -> dict[str, list[builtin.Row]]:
    return builtin.generate()


def message(row: builtin.Row) -> str:
    return row["prompt"][-1]["content"]


def answer(row: builtin.Row) -> dict[str, str]:
    return json.loads(row["completion"][0]["content"])


def skeletons(split: str) -> set[str]:
    """Everything that the phrasings of a split can say, without case, punctuation and the names of slots."""
    found = set()
    for _, phrasing in builtin.phrasings(split):
        parts = [part.split("|") for part in re.split(r"[\[\]]", phrasing)]
        for words in itertools.product(*parts):
            found.add(" ".join(re.findall(r"\w+", re.sub(r"\{\w+\}", "X", "".join(words)).casefold())))
    return found


def word_pairs(text: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(text.split()))


def test_sizes_are_as_documented(dataset):
    assert {split: len(rows) for split, rows in dataset.items()} == builtin.SIZES


def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others(dataset):
    assert builtin.generate(seed=0) == dataset
    assert builtin.generate(seed=1)["test"] != dataset["test"]


def test_no_phrasing_belongs_to_two_splits():
    said = {split: skeletons(split) for split in builtin.SPLITS}
    assert not said["train"] & said["test"]
    assert not said["train"] & said["validation"]
    assert not said["validation"] & said["test"]


def test_no_phrasing_of_the_test_is_nearly_one_of_the_training():
    sizes, holders = [], defaultdict(list)
    for number, text in enumerate(skeletons("train")):
        pairs = word_pairs(text)
        sizes.append(len(pairs))
        for pair in pairs:
            holders[pair].append(number)
    for text in skeletons("test"):
        asked = word_pairs(text)
        shared = Counter(number for pair in asked for number in holders[pair])
        shares = (both / (len(asked) + sizes[number] - both) for number, both in shared.items())
        assert max(shares, default=0) < 0.7, text


def test_every_intent_has_phrasings_of_its_own_in_every_split():
    for split, least in (("train", 15), ("validation", 3), ("test", 6)):
        counts = Counter(intent for intent, _ in builtin.phrasings(split))
        assert set(counts) == set(builtin.intents())
        assert min(counts.values()) >= least


def test_no_message_occurs_twice(dataset):
    messages = [message(row).casefold() for rows in dataset.values() for row in rows]
    assert len(messages) == len(set(messages))


def test_ids_are_unique(dataset):
    ids = [row["id"] for rows in dataset.values() for row in rows]
    assert len(ids) == len(set(ids))


def test_every_detail_stands_in_the_message_word_for_word(dataset):
    for rows in dataset.values():
        for row in rows:
            for field, value in answer(row).items():
                if field != "intent":
                    assert value in message(row), row


def test_answers_are_compact_json_with_the_intent_first_and_the_details_in_order(dataset):
    for rows in dataset.values():
        for row in rows:
            found = answer(row)
            assert row["completion"][0]["content"] == json.dumps(
                found, ensure_ascii=False, separators=(",", ":")
            )
            assert list(found) == ["intent", *(field for field in builtin.FIELDS if field in found)]
            assert found["intent"] in builtin.intents()


def test_no_slot_or_choice_is_left_open(dataset):
    assert not [row for rows in dataset.values() for row in rows if re.search(r"[{}\[\]|]", message(row))]


def test_intents_are_balanced(dataset):
    for rows in dataset.values():
        counts = Counter(answer(row)["intent"] for row in rows)
        assert max(counts.values()) - min(counts.values()) <= 0.3 * max(counts.values())


def test_the_test_split_has_products_cities_and_orders_that_training_never_saw(dataset):
    for field in ("product", "city", "order"):
        seen = {answer(row).get(field) for row in dataset["train"]}
        unseen = {answer(row).get(field) for row in dataset["test"]} - seen
        assert len(unseen) >= 5, field


def test_what_only_the_test_asks_about_is_not_in_training():
    for kind in ("products", "cities"):
        pools = builtin._source()[kind]
        for pool in pools.keys() - {"test"}:
            assert not set(pools["test"]) & set(pools[pool]), (kind, pool)


def test_rows_have_the_form_that_training_reads(dataset):
    for row in dataset["validation"]:
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert row["prompt"][0]["content"] == builtin.system_message()
        assert [turn["role"] for turn in row["completion"]] == ["assistant"]
        assert re.fullmatch(r"[0-9a-f]{12}", row["id"])
