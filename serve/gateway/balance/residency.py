"""What an engine should keep in memory: for the reconciler, which loads and unloads.

vLLM keeps ``max_cpu_loras`` adapters and drops the least recently used of more by itself; the next request for
one of those then reads a disk inside the engine's loop, where everybody waits for it. So no more than that are to
be loaded, and we choose which.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable


class Residency:
    """Adapters of one engine by their last use, at most ``capacity`` of them (``--max-cpu-loras``).

    ``pinned`` are live versions of aliases and those that a rollback returns to; ``prefetched`` are versions
    that a rollout is about to send traffic to. Neither is ever evicted. A use takes O(1), the lists O(n).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pinned: tuple[str, ...] = ()
        self.prefetched: tuple[str, ...] = ()
        self._loaded: OrderedDict[str, None] = OrderedDict()  # least recently used first

    @property
    def loaded(self) -> frozenset[str]:
        """What the engine holds, as last observed."""
        return frozenset(self._loaded)

    @property
    def order(self) -> tuple[str, ...]:
        """What the engine holds, the least recently used first."""
        return tuple(self._loaded)

    def observe(self, loaded: Iterable[str]) -> None:
        """Take over what the engine holds; what is new counts as used now."""
        names = list(loaded)
        for gone in self._loaded.keys() - set(names):
            del self._loaded[gone]
        for name in names:
            self._loaded.setdefault(name)

    def touch(self, adapter: str) -> None:
        """Note that a request uses an adapter."""
        if adapter in self._loaded:
            self._loaded.move_to_end(adapter)

    def missing(self) -> list[str]:
        """What should be loaded but is not, the most urgent first: the live, then what a rollout needs soon."""
        wanted = dict.fromkeys([*self.pinned, *self.prefetched])
        return [name for name in wanted if name not in self._loaded]

    def evictable(self, busy: Collection[str] = ()) -> list[str]:
        """What to unload, least recently used first, so that all that is :meth:`missing` has room.

        Never what is pinned, prefetched or ``busy`` (requests for it run or wait): the list is then shorter
        than it should be, and :meth:`excess` says by how many.
        """
        keep = {*self.pinned, *self.prefetched, *busy}
        idle = [name for name in self._loaded if name not in keep]
        return idle[: max(0, self._surplus())]

    def excess(self, busy: Collection[str] = ()) -> int:
        """How many adapters more than ``capacity`` are needed at once: above 0, ``--max-cpu-loras`` is too low."""
        return max(0, self._surplus() - len(self.evictable(busy)))

    def _surplus(self) -> int:
        return len(self._loaded) + len(self.missing()) - self.capacity
