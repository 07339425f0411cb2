"""Consistent hashing with bounded loads: a conversation keeps its engine, and no engine gets far too much.

The algorithm is that of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016), used
for prefix caches as KubeAI does (``internal/loadbalancer/balance_chwbl.go``): engines stand on a ring at many
places each, and a key goes to the first engine after its own place that has room. What differs from KubeAI: the
mean is that of the engines that may be chosen, not of all, so that one of them always is within the bound.

The hash is BLAKE2b of 8 bytes, from the standard library. xxhash would be faster by a fraction of a microsecond
once per request, at the price of one more compiled dependency of the base install; Python's own ``hash`` differs
from process to process.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b

PLACES = 128
"""Places of one engine on the ring: shares of keys then differ by some ten percent of the mean."""
LOAD_FACTOR = 1.25
"""How far an engine's load may lie above the mean of those that may be chosen."""


def hash64(*parts: str) -> int:
    """64 bits that depend on all of ``parts`` and on where one ends and the next begins."""
    digest = blake2b(digest_size=8)
    for part in parts:
        text = part.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return int.from_bytes(digest.digest(), "big")


def load_bound(loads: Iterable[int], factor: float = LOAD_FACTOR) -> int:
    """The highest load that one of the engines with ``loads`` may have once one more request is placed.

    ``ceil(factor × (sum + 1) / n)``: the least loaded engine is always below it, whatever the loads are.
    """
    counts = list(loads)
    return math.ceil(factor * (sum(counts) + 1) / len(counts))


class Ring:
    """Engines on a ring; immutable, built again when the set of engines changes.

    Adding or removing one of n engines moves about 1/n of the keys and no others. Building takes
    O(n·places·log), a walk O(log) to its start and on average a few steps per engine that it yields.
    """

    def __init__(self, engines: Iterable[str], places: int = PLACES) -> None:
        self.engines = frozenset(engines)
        points = sorted(
            (hash64(engine, str(place)), engine) for engine in self.engines for place in range(places)
        )
        self._hashes = [point for point, _ in points]
        self._owners = [engine for _, engine in points]

    def walk(self, *key: str) -> Iterator[str]:
        """Every engine once, in the order in which the ring passes them after the place of ``key``."""
        start = bisect.bisect_left(self._hashes, hash64(*key))
        seen: set[str] = set()
        for step in range(len(self._owners)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner
                if len(seen) == len(self.engines):
                    return


def pick(order: Iterable[str], loads: Mapping[str, int], starts: Callable[[str], bool]) -> str:
    """Choose one of the engines in ``loads`` (engine → requests it has), which may not be empty.

    ``order`` is :meth:`Ring.walk`; ``starts`` says whether an engine would begin with the request at once. The
    first of these that there is: the first in order that is within the load bound and starts at once; the least
    loaded that starts at once; the first in order that is within the bound, where the request will wait.
    O(n) beside the walk.
    """
    bound = load_bound(loads.values())
    within = None
    passed: list[str] = []
    for engine in order:
        if engine not in loads:
            continue
        passed.append(engine)
        if loads[engine] + 1 <= bound:
            if starts(engine):
                return engine
            within = within or engine
    free = [engine for engine in passed if starts(engine)]
    if free:
        return min(free, key=loads.__getitem__)
    return within or min(loads, key=loads.__getitem__)
