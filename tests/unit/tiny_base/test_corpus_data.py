import random
import re
from itertools import islice

import pytest

from serve.errors import DataError
from train.tiny_base.corpus import documents, domains
from train.tiny_base.corpus.facts import facts
from train.tiny_base.corpus.grammar import MARK, compile_template
from train.tiny_base.corpus.language import tones
from train.tiny_base.corpus.loader import shared
from train.tiny_base.corpus.message import compose, misspell
from train.tiny_base.corpus.stream import MAKERS

LEAST_DOMAINS, LEAST_INTENTS, LEAST_LINES, LEAST_SENTENCES = 30, 10, 8, 12
LEAST_WORDS = 6_000


def test_there_are_as_many_domains_intents_and_phrasings_as_promised():
    found = domains()
    assert len(found) >= LEAST_DOMAINS
    for domain in found:
        assert domain.name == domain.name.strip().lower()
        assert domain.about
        assert len(domain.intents) >= LEAST_INTENTS, domain.name
        assert len({intent.name for intent in domain.intents}) == len(domain.intents)
        for intent in domain.intents:
            assert len(intent.phrasings) >= LEAST_LINES, (domain.name, intent.name)
            sentences = sum(phrasing.size() for phrasing in intent.phrasings)
            assert sentences >= LEAST_SENTENCES, (domain.name, intent.name, sentences)


def test_every_phrasing_expands_to_clean_text():
    rng = random.Random(0)
    for domain in domains():
        for intent in domain.intents:
            for phrasing in intent.phrasings:
                for _ in range(4):
                    text = compose(rng, phrasing, clean=True).text
                    assert not re.search(r"[{}()|<>]|  ", text), (phrasing.source, text)
                    assert MARK not in text
                    assert text == text.strip()
                    assert text[-1] in ".?!:"


def test_a_sentence_never_names_one_role_twice():
    rng = random.Random(0)
    for domain in domains():
        for intent in domain.intents:
            for phrasing in intent.phrasings:
                for _ in range(6):
                    roles = [entity.role for entity in phrasing.expand(rng).entities]
                    assert len(set(roles)) == len(roles), phrasing.source


def test_no_phrasing_belongs_to_two_intents_of_a_domain():
    for domain in domains():
        owners: dict[str, str] = {}
        for intent in domain.intents:
            for phrasing in intent.phrasings:
                owner = owners.setdefault(phrasing.source, intent.name)
                assert owner == intent.name, (domain.name, phrasing.source)


def test_the_vocabulary_is_wide():
    words: set[str] = set()
    rng = random.Random(1)
    for domain in domains():
        for intent in domain.intents:
            for phrasing in intent.phrasings:
                for _ in range(12):
                    words.update(re.findall(r"[a-z']{2,}", compose(rng, phrasing, clean=True).text.lower()))
    only_facts = dict.fromkeys(MAKERS, 0.0) | {"word_fact": 1.0}
    for row in islice(documents(2, only_facts), 8000):
        text = row.get("text") or " ".join(turn["content"] for turn in [*row["prompt"], *row["completion"]])
        words.update(re.findall(r"[a-z']{2,}", text.lower()))
    assert len(words) >= LEAST_WORDS, len(words)


def test_facts_are_consistent():
    known = facts()
    assert len(known.categories) >= 50
    assert all(one != two for one, two in [*known.synonyms, *known.antonyms])
    assert len({word for word, _ in known.definitions}) == len(known.definitions)
    assert {"positive", "negative", "neutral", "urgent", "polite", "formal", "casual"} <= tones().keys()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("send {nothing_known}", "unknown slot"),
        ("a (b|c", "unfinished"),
        ("a b)", "without its"),
        ("a {b", "unexpected"),
    ],
)
def test_a_bad_phrasing_is_refused_by_name(source: str, problem: str):
    with pytest.raises(DataError) as caught:
        compile_template(source, shared().slots, shared().entities)
    assert source in caught.value.message
    assert problem in caught.value.message


def test_templates_count_and_choose_among_their_branches():
    template = compile_template("(a|b (c|d)|) end", {}, {})
    rng = random.Random(0)
    assert template.size() == 4
    assert {template.expand(rng).finish() for _ in range(200)} == {"a end", "b c end", "b d end", "end"}


def test_a_misspelt_word_keeps_its_ends_and_differs():
    rng = random.Random(0)
    slips = {misspell(rng, "delivery") for _ in range(200)}
    assert len(slips) > 10
    assert all(slip[0] == "d" and abs(len(slip) - 8) <= 1 for slip in slips)
    assert misspell(rng, "a1b2c3") == "a1b2c3"
