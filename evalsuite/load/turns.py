"""Ways of doing the same, measured in turns, so that a machine that slows down meanwhile favours none."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

Way = TypeVar("Way")


def turns(ways: Mapping[str, Way], rounds: int) -> Iterator[tuple[str, Way, bool]]:
    """Each way by name, ``rounds`` times and once before, every other round in the opposite order.

    The third says whether the turn counts: the first round writes bytecode and fills the disk's cache.
    """
    for number in range(rounds + 1):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            yield name, way, number > 0
