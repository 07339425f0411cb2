"""What words mean and what things are: categories, synonyms, opposites, definitions, and short stories."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from train.tiny_base.corpus.entities import pick
from train.tiny_base.corpus.grammar import Template
from train.tiny_base.corpus.loader import compile_lines, compile_slots, read_yaml, shared, split_words
from train.tiny_base.corpus.message import pick_template, sentence
from train.tiny_base.corpus.rows import Row, chat, plain


@dataclass(frozen=True, slots=True)
class Facts:
    """What the corpus knows about words, ready for drawing."""

    categories: Mapping[str, tuple[str, ...]]
    category_of: tuple[tuple[str, str], ...]
    synonyms: tuple[tuple[str, str], ...]
    antonyms: tuple[tuple[str, str], ...]
    definitions: tuple[tuple[str, str], ...]
    stories: tuple[Template, ...]


@cache
def facts() -> Facts:
    """Return categories, pairs of words, and stories."""
    raw = read_yaml("facts.yaml")
    base = shared()
    slots = compile_slots(raw.get("slots") or {}, base.slots, base.entities)
    categories = {name: split_words(text) for name, text in raw["categories"].items()}
    return Facts(
        categories=categories,
        category_of=tuple((member, name) for name, members in categories.items() for member in members),
        synonyms=_pairs(raw["synonyms"]),
        antonyms=_pairs(raw["antonyms"]),
        definitions=_pairs(raw["definitions"], separator="\n"),
        stories=compile_lines(raw["stories"], slots, base.entities),
    )


def word_fact(rng: random.Random) -> Row:
    """State or ask what a thing is, what a word means, or which word is its like or opposite."""
    known = facts()
    kind = int(rng.random() * 5)
    if kind < 2:
        return _category_fact(rng, known)
    if kind == 4:
        return _definition(rng, known)
    return _pair_fact(rng, known, same=kind == 2)


def story(rng: random.Random) -> Row:
    """Write a few sentences of everyday narrative."""
    lines = facts().stories
    return plain(
        " ".join(
            _paragraph(pick_template(rng, lines).expand(rng).finish())
            for _ in range(1 + int(rng.random() * 2))
        )
    )


def _definition(rng: random.Random, known: Facts) -> Row:
    word, meaning = known.definitions[int(rng.random() * len(known.definitions))]
    if rng.random() < 0.5:
        task = pick(rng, ("What is {}?", "Define {}.", "Explain {} in a few words."))
        return chat(task.format(_article(word)), sentence(meaning))
    return chat(f"Which word is meant? {sentence(meaning)}", word)


def _pair_fact(rng: random.Random, known: Facts, *, same: bool) -> Row:
    pairs = known.synonyms if same else known.antonyms
    one, two = pairs[int(rng.random() * len(pairs))]
    if rng.random() < 0.5:
        one, two = two, one
    if rng.random() < 0.3:
        return plain(f"{one} and {two} {'mean nearly the same' if same else 'are opposites'}.".capitalize())
    asks = ("Give a synonym for", "Give another word for", "Which word means the same as")
    opposite = ("Give the opposite of", "Give an antonym of", "What is the contrary of")
    return chat(f"{pick(rng, asks if same else opposite)} '{one}'.", two)


def _category_fact(rng: random.Random, known: Facts) -> Row:
    member, category = known.category_of[int(rng.random() * len(known.category_of))]
    style = rng.random()
    if style < 0.2:
        return plain(f"{_article(member)} is {_article(category)}.".capitalize())
    if style < 0.5:
        return chat(
            pick(rng, ("What kind of thing is {}?", "What is {}?", "{}: category?")).format(_article(member)),
            category,
        )
    names = list(known.categories)
    if style < 0.75:
        other = pick(rng, names)
        shown = category if rng.random() < 0.5 else other
        right = member in known.categories[shown]
        return chat(f"Is {_article(member)} {_article(shown)}? yes or no", "yes" if right else "no")
    odd = pick(rng, known.categories[pick(rng, names)])
    members = known.categories[category]
    if odd in members:
        return chat(f"Name {_article(category)}.", member)
    group = [*rng.sample(members, min(3, len(members))), odd]
    rng.shuffle(group)
    return chat(f"Which word does not belong? {', '.join(group)}", odd)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _pairs(text: str, separator: str = ",") -> tuple[tuple[str, str], ...]:
    pairs = (part.split("=", 1) for part in text.split(separator) if "=" in part)
    return tuple((left.strip(), right.strip()) for left, right in pairs)


def _paragraph(text: str) -> str:
    return text[0].upper() + text[1:]
