"""Names for answers: one intent written in many styles, or replaced by an arbitrary code."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from train.tiny_base.corpus.entities import digits, letters, pick
from train.tiny_base.corpus.loader import lexicon

_WORDS = re.compile(r"[a-z0-9]+")


def _parts(name: str) -> list[str]:
    return _WORDS.findall(name.lower())


STYLES: dict[str, Callable[[str], str]] = {
    "snake_case": lambda name: "_".join(_parts(name)),
    "plain words": lambda name: " ".join(_parts(name)),
    "Title Case": lambda name: " ".join(part.capitalize() for part in _parts(name)),
    "kebab-case": lambda name: "-".join(_parts(name)),
    "CamelCase": lambda name: "".join(part.capitalize() for part in _parts(name)),
    "UPPER_CASE": lambda name: "_".join(_parts(name)).upper(),
    "Sentence case": lambda name: " ".join(_parts(name)).capitalize(),
    "dotted.case": lambda name: ".".join(_parts(name)),
    "camelCase": lambda name: _parts(name)[0] + "".join(part.capitalize() for part in _parts(name)[1:]),
}
_COMMON = ("snake_case", "snake_case", "snake_case", "plain words", "plain words", *STYLES)


def random_style(rng: random.Random) -> str:
    """Return the name of a label style, the common ones more often."""
    return pick(rng, _COMMON)


def arbitrary(rng: random.Random, count: int) -> list[str]:
    """Return `count` different codes that say nothing of what they stand for."""
    kind = int(rng.random() * 6)
    if kind == 0:
        return [chr(65 + index) for index in range(count)]
    if kind == 1:
        return [str(index + 1) for index in range(count)]
    if kind == 2:
        return rng.sample(lexicon()["code_words"], count)
    if kind == 3:
        prefix = pick(rng, ("L", "C", "T", "class ", "label ", "Q-", "x"))
        return [f"{prefix}{number}" for number in rng.sample(range(1, 60), count)]
    if kind == 4:
        return _distinct(rng, count, lambda: letters(rng, 3))
    return _distinct(rng, count, lambda: f"{letters(rng, 1)}{digits(rng, 2)}")


def name_all(rng: random.Random, names: Sequence[str], *, codes: float = 0.0) -> list[str]:
    """Return a label for each name, all in one style; with chance `codes`, arbitrary ones (60 names at most)."""
    if codes and rng.random() < codes and len(names) <= 26:
        return arbitrary(rng, len(names))
    write = STYLES[random_style(rng)]
    return [write(name) for name in names]


def _distinct(rng: random.Random, count: int, make: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make()] = None
    return list(found)
