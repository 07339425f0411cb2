"""What an engine holds by its last use: for the reconciler, which chooses what to unload (``engine/wishes.py``)."""

from collections import OrderedDict
from collections.abc import Iterable


class Residency:
    """Adapters of one engine, the least recently used first. A use takes O(1)."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, None] = OrderedDict()

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
