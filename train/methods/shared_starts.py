"""Batches in which what several rows begin with is computed once, and nothing is computed for padding.

Rows of one task begin alike: the template's frame, the system instruction, few-shot examples. A batch is laid out
as the prefix tree of its rows, written down as one sequence, in which a token stands at the position that it has
in its rows and sees its ancestors alone. Losses and gradients are those of padded rows but for rounding, as
nothing of a row depends on what comes after it. (With ``lora.dropout`` rows share what is dropped in a common
start.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from train.methods.tokens import IGNORED

Row = tuple[Sequence[int], Sequence[int]]
Batch = dict[str, Any]


@dataclass(slots=True)
class Tree:
    """Rows as a prefix tree. ``rows`` counts the rows that a token stands in; all lists but two have a value per token.

    ``path`` leads from the root to the end of the latest row. A piece is a stretch of tokens without a branch: the
    path to its end, and the depth of its first token.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    pieces: list[tuple[list[int], int]] = field(default_factory=list)

    def add(self, row: Row, shared: int, next_shared: int) -> None:
        """Add ``row``, which shares its first tokens with the row before and with the one after it."""
        ids, labels = row
        first, new = len(self.ids), len(ids) - shared
        above = self.path[:shared]
        for place in above:
            self.rows[place] += 1
        self.path = [*above, *range(first, first + new)]
        self.ids += ids[shared:]
        # The place before a row's first new token may belong to another row, which must not learn from it.
        self.labels += [IGNORED, *labels[shared + 1 :]]
        self.depths += range(shared, len(ids))
        self.rows += [1] * new
        branch = [next_shared] if shared < next_shared < len(ids) else []
        self.pieces += [(self.path[:end], begin) for begin, end in pairwise([shared, *branch, len(ids)])]


def grow(rows: Iterable[Row]) -> Tree:
    """The prefix tree of ``rows``, each of token ids and labels."""
    ordered = sorted(rows, key=lambda row: tuple(row[0]))
    shared = [0, *(shared_start(one, other) for one, other in pairwise(ordered)), 0]
    tree = Tree()
    for row, (before, after) in zip(ordered, pairwise(shared), strict=True):
        tree.add(row, before, after)
    return tree


def shared_start(one: Row, other: Row) -> int:
    """Tokens that two rows begin with alike, where neither learns from them nor from the token after them."""
    most = max(0, min(_unsupervised(one[1]), _unsupervised(other[1])) - 1)
    alike = zip(one[0][:most], other[0][:most], strict=False)
    return next((place for place, (left, right) in enumerate(alike) if left != right), most)


def _unsupervised(labels: Sequence[int]) -> int:
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


class SharedStarts:
    """Collates rows of ``input_ids`` and ``labels`` into the one sequence of their tree.

    Gives tensors of shape (1, tokens): ``input_ids``, ``labels``, ``position_ids`` and ``attention_mask``, which
    counts the rows that a token stands in; and ``tree``, what :mod:`train.methods.tree_attention` reads:

    - ``seen`` (pieces, longest path): places of the tokens on the path to each piece's end, padded with 0;
    - ``asking`` (pieces, longest piece): places of the piece's own tokens, padded with 0;
    - ``mask`` (pieces, 1, longest piece, longest path): which of ``seen`` each of ``asking`` sees;
    - ``origin`` (tokens): where each token stands in ``asking``, counted along its flattened form.
    """

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """One batch."""
        tree = grow((example["input_ids"], example["labels"]) for example in examples)
        return {
            "input_ids": torch.tensor([tree.ids]),
            "labels": torch.tensor([tree.labels]),
            "position_ids": torch.tensor([tree.depths]),
            "attention_mask": torch.tensor([tree.rows]),
            "tree": _views(tree),
        }


def _views(tree: Tree) -> dict[str, torch.Tensor]:
    pieces = tree.pieces
    longest_path = max(len(path) for path, _ in pieces)
    longest = max(len(path) - begin for path, begin in pieces)
    seen = np.zeros((len(pieces), longest_path), dtype=np.int64)
    asking = np.zeros((len(pieces), longest), dtype=np.int64)
    mask = np.zeros((len(pieces), 1, longest, longest_path), dtype=np.bool_)
    origin = np.zeros(len(tree.ids), dtype=np.int64)
    for number, (path, begin) in enumerate(pieces):
        own = len(path) - begin
        seen[number, : len(path)] = path
        asking[number, :own] = path[begin:]
        mask[number, 0, :own, : len(path)] = np.tri(own, len(path), begin, dtype=np.bool_)
        mask[number, 0, own:, 0] = True  # padding sees something, so that its softmax is a number
        origin[path[begin:]] = number * longest + np.arange(own)
    return {
        name: torch.from_numpy(array)
        for name, array in (("seen", seen), ("asking", asking), ("mask", mask), ("origin", origin))
    }
