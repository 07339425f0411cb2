"""Turns a phrasing into a message as people write it: greetings, slips, shortcuts, and values to extract."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.tiny_base.corpus.entities import pick
from train.tiny_base.corpus.grammar import MARK, Draft, Entity, Template, mark
from train.tiny_base.corpus.loader import shared

_APOSTROPHES = re.compile(r"(?<=\w)'(?=\w)")
_PRONOUN = re.compile(r"\bi\b")
_CONTRACTIONS = (
    ("can't", "cannot"),
    ("won't", "will not"),
    ("n't", " not"),
    ("I'm", "I am"),
    ("I'd", "I would"),
    ("I've", "I have"),
    ("it's", "it is"),
    ("what's", "what is"),
    ("there's", "there is"),
    ("that's", "that is"),
)
_SHORTHAND = {
    "you": "u",
    "please": "pls",
    "are": "r",
    "your": "ur",
    "because": "cos",
    "thanks": "thx",
    "before": "b4",
    "tomorrow": "tmrw",
    "message": "msg",
    "number": "nr",
    "want to": "wanna",
    "people": "ppl",
    "without": "w/o",
    "with": "w/",
    "something": "sth",
    "and": "&",
    "account": "acct",
    "minutes": "mins",
    "about": "abt",
}
# Keys that lie beside a letter on the keyboard.
_NEIGHBOURS = {
    **{"a": "sq", "b": "vn", "c": "xv", "d": "ef", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo"},
    **{"j": "hk", "k": "jl", "l": "kp", "m": "nk", "n": "bm", "o": "ip", "p": "ol", "q": "wa", "r": "et"},
    **{"s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "xa"},
}


@dataclass(frozen=True, slots=True)
class Message:
    """A finished message and the values that stand in it, each exactly as written there."""

    text: str
    entities: tuple[Entity, ...]

    def fields(self) -> dict[str, str]:
        """Return the values by role; of two with one role, the first."""
        found: dict[str, str] = {}
        for entity in self.entities:
            found.setdefault(entity.role, entity.surface)
        return found


def compose(rng: random.Random, template: Template, tails: int = 0, *, clean: bool = False) -> Message:
    """Expand a phrasing to a message with up to `tails` further sentences that carry values.

    `clean` leaves out noise, greetings and filler: correct, capitalised English.
    """
    draft = template.expand(rng)
    _append_tails(rng, draft, tails)
    if not clean:
        _swap_words(rng, draft)
        _surround(rng, draft)
    return _dress(rng, draft, clean=clean)


def misspell(rng: random.Random, word: str) -> str:
    """Return a word with one typing slip: letters swapped, dropped, doubled or hit beside."""
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    at = 1 + int(rng.random() * (len(word) - 2))
    kind = int(rng.random() * 4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + pick(rng, _NEIGHBOURS.get(word[at].lower(), "e")) + word[at + 1 :]


def sentence(text: str) -> str:
    """Write a draft's text with a capital at the start, a capital I, and an end mark."""
    text = _PRONOUN.sub("I", text)
    if text and text[0] != MARK:
        text = text[0].upper() + text[1:]
    return text if text.endswith(("?", "!", ".", ":")) else text + "."


def _append_tails(rng: random.Random, draft: Draft, tails: int) -> None:
    used = {entity.role for entity in draft.entities}
    for _ in range(tails):
        tail = pick_template(rng, shared().tails).expand(rng)
        roles = {entity.role for entity in tail.entities}
        if roles & used or not tail.entities:
            continue
        used |= roles
        base = len(draft.entities)
        text = tail.text
        for index in reversed(range(len(tail.entities))):
            text = text.replace(mark(index), mark(base + index))
        draft.entities.extend(tail.entities)
        style = rng.random()
        if style < 0.7:
            end = "" if draft.text.endswith("?") else "."
            draft.text = f"{draft.text}{end} {text if style < 0.3 else text[0].upper() + text[1:]}"
        elif style < 0.85 or draft.text.endswith("?"):
            draft.text = f"{text}. {draft.text}"
        else:
            draft.text = f"{draft.text}, {text}"


def _swap_words(rng: random.Random, draft: Draft) -> None:
    if rng.random() > 0.5:
        return
    swaps = shared().swaps
    words = draft.text.split(" ")
    for index, word in enumerate(words):
        options = swaps.get(word)
        if options and rng.random() < 0.5:
            words[index] = pick(rng, options)
    draft.text = " ".join(words)


def _surround(rng: random.Random, draft: Draft) -> None:
    base = shared()
    if rng.random() < 0.14:
        greeting = pick(rng, base.greetings)
        draft.text = f"{greeting}{pick(rng, (', ', ' ', '! ', ' - ', '. '))}{draft.text}"
    if rng.random() < 0.1:
        extra = pick_template(rng, base.fillers).expand(rng)
        if not extra.entities:
            first = rng.random() < 0.5
            end = "" if draft.text.endswith(("?", ".")) else "."
            draft.text = f"{extra.text}. {draft.text}" if first else f"{draft.text}{end} {extra.text}"
    if rng.random() < 0.1:
        end = "" if draft.text.endswith(("?", ".")) else pick(rng, (",", ".", "!", ""))
        draft.text = f"{draft.text}{end} {pick(rng, base.thanks)}"


def _dress(rng: random.Random, draft: Draft, *, clean: bool) -> Message:
    text, entities = draft.text, draft.entities
    style = 0.0 if clean else rng.random()
    if clean or style < 0.45:
        text = sentence(text)
    elif style < 0.7:
        text = _PRONOUN.sub("I", text).rstrip("?.") if rng.random() < 0.5 else _PRONOUN.sub("I", text)
    elif style < 0.97:
        text = text.lower() if style < 0.88 else text.lower().rstrip("?.").replace(",", "")
        entities = _lower(entities, all_kinds=style < 0.8)
    else:
        text = text.upper()
        entities = [Entity(entity.kind, entity.role, entity.surface.upper()) for entity in entities]
    if not clean:
        text = _roughen(rng, text)
    return Message(Draft(text, entities).finish(), tuple(entities))


def _lower(entities: list[Entity], *, all_kinds: bool) -> list[Entity]:
    if not all_kinds:
        return entities
    return [
        Entity(entity.kind, entity.role, entity.surface.lower())
        if entity.kind in {"person", "city", "country", "merchant", "first_name", "weekday", "date"}
        else entity
        for entity in entities
    ]


def _roughen(rng: random.Random, text: str) -> str:
    chance = rng.random()
    if chance < 0.12:
        for short, full in _CONTRACTIONS:
            text = text.replace(short, full)
    elif chance < 0.24:
        text = _APOSTROPHES.sub("", text)
    elif chance < 0.29:
        text = " ".join(_SHORTHAND.get(word, word) for word in text.split(" "))
    if rng.random() < 0.17:
        words = text.split(" ")
        for _ in range(1 + int(rng.random() * 2)):
            at = int(rng.random() * len(words))
            words[at] = misspell(rng, words[at])
        text = " ".join(words)
    if rng.random() < 0.03:
        text = text.rstrip("?.!") + pick(rng, ("??", "!!", "...", "!", " ?", "?!", " :("))
    return text


def pick_template(rng: random.Random, templates: tuple[Template, ...]) -> Template:
    """Return one of the templates."""
    return templates[int(rng.random() * len(templates))]


def shorthand() -> Mapping[str, str]:
    """Return the everyday short forms, by the words they stand for."""
    return _SHORTHAND
