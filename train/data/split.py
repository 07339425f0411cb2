"""Train, validation and test: stratified by label, by the hash of each text, whatever the row order."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from train.data.examples import Example


@dataclass(frozen=True, slots=True)
class Split:
    """A partition of the examples; ``single`` are the labels of one text only, which is in ``train``."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    single: tuple[str, ...]


def split(
    examples: Sequence[Example],
    label: Callable[[str], str],
    *,
    validation: float,
    test: float,
    seed: int,
) -> Split:
    """Divide ``examples``; ``validation`` and ``test`` are shares of all texts, 0 for an empty part.

    Rows with the same folded text stay together. Each label gives its share to each part, rounded so that the
    parts have the right size together (largest remainders first), and keeps at least one text in ``train``.
    Texts are ordered by the hash of ``seed`` and their content, so the parts and their order depend on
    nothing else: not on row order, and not on the process.
    """
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in order(examples, seed, ""):
        groups[example.key].append(example)
    strata: defaultdict[str, list[list[Example]]] = defaultdict(list)
    for group in groups.values():
        strata[min(label(example.answer) for example in group)].append(group)
    sizes = {name: len(texts) for name, texts in strata.items()}
    tests = _shares(sizes, {name: size - 1 for name, size in sizes.items()}, test, seed)
    room = {name: size - 1 - tests[name] for name, size in sizes.items()}
    validations = _shares(sizes, room, validation, seed)
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for name, texts in strata.items():
        for index, group in enumerate(texts):
            at = 2 if index < tests[name] else 1 if index < tests[name] + validations[name] else 0
            parts[at].extend(group)
    single = tuple(sorted(name for name, size in sizes.items() if size == 1 and len(sizes) > 1))
    in_order = [order(part, seed, "") for part in parts]
    return Split(in_order[0], in_order[1], in_order[2], single)


def order(examples: Sequence[Example], seed: int, purpose: str) -> list[Example]:
    """``examples`` in the order of the hash of their content: random to the eye, the same each time."""
    return sorted(
        examples, key=lambda example: (_hash(seed, purpose, example.key), example.exact, example.answer)
    )


def _shares(sizes: Mapping[str, int], room: Mapping[str, int], share: float, seed: int) -> dict[str, int]:
    """How many texts each label gives to a part: ``share`` of its size, at most its room.

    The part as a whole gets ``share`` of all texts, at least one where there is room.
    """
    shares = {name: min(int(size * share), room[name]) for name, size in sizes.items()}
    missing = max(1, round(share * sum(sizes.values()))) - sum(shares.values()) if share else 0
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * share % 1), _hash(seed, "share", name)))
    for name in by_remainder:
        if missing <= 0:
            break
        if shares[name] < room[name]:
            shares[name] += 1
            missing -= 1
    return shares


def _hash(seed: int, purpose: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{text}".encode()).digest()
