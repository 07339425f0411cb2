"""The endless stream of documents: task makers drawn by weight."""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping

from serve.errors import DataError
from train.tiny_base.corpus import classify, extract, facts, language
from train.tiny_base.corpus.rows import Row

# Most weight lies on what adapters will be trained for: labels (shown, or known from the task) and JSON.
MAKERS: Mapping[str, tuple[Callable[[random.Random], Row], float]] = {
    "options": (classify.with_options, 14),
    "fixed": (classify.fixed, 15),
    "described": (classify.described, 8),
    "everything": (classify.everything, 5),
    "topic": (classify.topic, 4),
    "same_intent": (classify.same_intent, 4),
    "odd_one_out": (classify.odd_one_out, 2),
    "few_shot": (classify.few_shot, 8),
    "fields": (extract.fields, 12),
    "intent_and_fields": (extract.intent_and_fields, 12),
    "one_value": (extract.one_value, 3),
    "tone": (language.tone, 4),
    "question": (language.question, 1),
    "paraphrase": (language.paraphrase, 4),
    "correction": (language.correction, 2),
    "completion": (language.completion, 2),
    "keywords": (language.keywords, 2),
    "quoting": (language.quoting, 2),
    "word_fact": (facts.word_fact, 5),
    "story": (facts.story, 2),
    "dialogue": (language.dialogue, 2),
}


def documents(seed: int, weights: Mapping[str, float] | None = None) -> Iterator[Row]:
    """Yield rows without end, the same for the same seed.

    A row is either a chat row (`prompt` and `completion`, lists of role/content turns) or `{"text": …}`.
    `weights` replaces the share of the task kinds it names (0 leaves one out); the names are those of `MAKERS`.
    Raises DataError for a name that is not among them, or when no weight is above zero.
    """
    shares = {name: weight for name, (_, weight) in MAKERS.items()} | dict(weights or {})
    unknown = shares.keys() - MAKERS.keys()
    if unknown or not any(share > 0 for share in shares.values()):
        raise DataError(
            f"task weights name unknown kinds {sorted(unknown)}" if unknown else "all task weights are zero",
            hint=f"Use the kinds {', '.join(MAKERS)}.",
        )
    makers = [MAKERS[name][0] for name in shares]
    bounds = list(itertools.accumulate(shares.values()))
    return _draw(random.Random(seed), makers, bounds)


def _draw(
    rng: random.Random, makers: list[Callable[[random.Random], Row]], bounds: list[float]
) -> Iterator[Row]:
    total = bounds[-1]
    while True:
        yield makers[bisect(bounds, rng.random() * total)](rng)
