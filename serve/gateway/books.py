"""What a request is counted for: its tokens and its share of the engine's time, by key, adapter and version."""

from collections.abc import Mapping
from typing import Any

from serve.gateway.auth import Caller
from serve.gateway.balance.cost import BYTES_PER_TOKEN
from serve.gateway.ledger import Ledger, Use
from serve.gateway.meter import Meter
from serve.gateway.routes import Route
from serve.prices import Prices

ANSWERED = frozenset({"ok", "disconnected"})


class Tally:
    """The tokens of one answer; ``known`` says that the engine itself has counted them."""

    __slots__ = ("completion_tokens", "known", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.known = False

    def take(self, usage: Mapping[str, Any]) -> None:
        """Take over an engine's account of an answer; the second names are those of ``/v1/responses``."""
        self.prompt_tokens = int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0)
        self.completion_tokens = int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)
        self.known = True

    def see(self, tokens: int) -> None:
        """Count what was seen of an answer that ended before the engine's account."""
        self.completion_tokens = tokens


class Books:
    """Counts requests for ``tenon usage``, for metrics and for the budgets of keys."""

    def __init__(self, ledger: Ledger, prices: Prices | None = None, meter: Meter | None = None) -> None:
        self.ledger = ledger
        self.meter = meter or Meter()
        self._prices = prices or Prices()

    def book(
        self, caller: Caller, route: Route, tally: Tally, seconds: float, outcome: str, size: int
    ) -> Use:
        """Count a request that has ended with an outcome of the metrics; ``size`` is its body's, in bytes.

        Counted are requests that were answered in full or in part, and those whose client left. An answer that was
        broken off lacks the engine's account: its prompt, which was computed or about to be, is then taken by its size.
        """
        if outcome not in ANSWERED and not tally.completion_tokens:
            return Use()
        prompt = tally.prompt_tokens if tally.known else size // BYTES_PER_TOKEN
        version = route.public_name
        adapter = version.partition("@")[0]
        use = Use(1, prompt, tally.completion_tokens, seconds)
        self.ledger.add(caller.key_id, adapter, version, use)
        price = self._prices.of(adapter)
        route.meters.cost.inc(price.cost(use.prompt_tokens, use.completion_tokens, seconds))
        return use
