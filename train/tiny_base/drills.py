"""Copying drills: a few tokens drawn at random, and the same tokens again.

Extraction is finding and copying, and a model learns to copy late and only the words that it has seen copied, unless
it is shown copying by itself. Any entry of the vocabulary can occur here, so that names and numbers that are in no
corpus can be copied too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

# A sequence of ids and, for each, its weight as something to predict.
WeightedIds = tuple[list[int], list[float]]

_SHORTEST, _LONGEST = 4, 28


def drills(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Iterator[WeightedIds]:
    """Endless pairs of ids and weights: a passage (weight 0), a line break, the passage again (weight 1), the end.

    A passage draws from the whole vocabulary, from digits and a few letters as in an order number, or from a handful
    of entries, which makes it repeat itself, so that looking one token back is not enough to find the place.
    """
    chance = random.Random(f"drills-{seed}")
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    numbers = tokenizer.convert_tokens_to_ids([*"0123456789"])
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    while True:
        kind, length = chance.random(), chance.randint(_SHORTEST, _LONGEST)
        pool = ordinary
        if kind < 0.3:
            pool = numbers * 2 + chance.sample(ordinary, 4)
        elif kind < 0.5:
            pool = chance.sample(ordinary, 8)
        passage = [chance.choice(pool) for _ in range(length)]
        # The first token of the copy is a convention, all others follow from the passage.
        weights = [0.0] * (length + 1) + [1.0] * (length + 1)
        yield passage + line_break + passage + [tokenizer.eos_token_id], weights
