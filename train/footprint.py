"""How much memory a training will take, from the shapes of its base and the lengths of its rows, without torch.

What a forward pass keeps for the backward one grows with the tokens of a batch and, over all architectures that were
measured (``tests/unit/train/test_footprint.py``), with the sum of the sizes of what goes in and out of the layers. Rows
of bases whose attention is transformers' own (Gemma 2, gpt-oss) take the square of their tokens on top, which is not
counted.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.engine.device import Device, installed_device

KEPT = {True: 3.4, False: 4.7}
"""Bytes that are kept for a token and each value that goes in or out of a layer, by whether it computes in bf16."""
DROPOUT = 1.65
"""How much more it is with dropout on the updates' inputs, which keeps each once more and its mask."""
MOST_LOGITS, LOGIT_BYTES = 2**25, 14
"""How many logits :mod:`train.methods.head` holds at once at most, in fp32 and a few copies."""
BYTES_PER_TOKEN = 3
"""Of a row in UTF-8, at worst but for code and numbers: a token has four letters of English, or one of Chinese."""
LIBRARIES = 2**30
"""What torch and the other libraries take themselves, with what the allocator does not give back."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, by what they are for.

    ``kept`` is what a forward pass keeps for the backward one, ``checkpointed`` the same with gradient checkpointing.
    """

    base: int
    adapter: int
    logits: int
    kept: int
    checkpointed: int

    def total(self, *, checkpointing: bool) -> int:
        """Bytes of all of it."""
        kept = self.checkpointed if checkpointing else self.kept
        return LIBRARIES + self.base + self.adapter + self.logits + kept


def footprint(
    shapes: Mapping[str, tuple[int, ...]],
    linear: Mapping[str, tuple[int, ...]],
    *,
    adapter: int,
    tokens: int,
    vocabulary: int,
    bf16: bool,
    dropout: bool,
) -> Footprint:
    """What a training takes for a base's tensors and an adapter of so many parameters.

    ``linear`` are those of its tensors that are linear layers which a token passes; ``tokens`` are those of a batch,
    padding included.
    """
    width = sum(sum(shape) for shape in linear.values())
    layers = max(Counter(name.split(".")[-2] for name in linear).values())
    hidden = Counter(size for shape in linear.values() for size in shape).most_common(1)[0][0]
    each = KEPT[bf16] * (DROPOUT if dropout else 1.0)
    return Footprint(
        base=(2 if bf16 else 4) * sum(math.prod(shape) for shape in shapes.values()),
        adapter=16 * adapter,  # an fp32 weight, its gradient and two moments of AdamW
        logits=LOGIT_BYTES * min(MOST_LOGITS, tokens * vocabulary),
        kept=round(tokens * each * width),
        # What goes into each block, and one block at a time.
        checkpointed=round(tokens * (3 if bf16 else 6) * hidden * layers + tokens * each * width / layers),
    )


def tokens_in(row: int, most: int) -> int:
    """How many tokens a row of so many bytes has at worst, of which no more than ``most`` are read."""
    return min(most, math.ceil(row / BYTES_PER_TOKEN))


def has_bf16(device: Device | None = None) -> bool:
    """Whether a training will find bf16 in the hardware: on a GPU, and on a CPU whose flags say so."""
    if (device or installed_device()) == "cuda":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
