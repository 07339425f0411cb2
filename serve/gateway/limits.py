"""What a key may spend: requests and tokens per minute, requests at once, tokens in a month.

A request's tokens are estimated and charged when it is let in, and what it really took replaces that when it ends.
Every answer to a key with limits per minute says in OpenAI's headers what is left.
"""

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from serve.errors import QuotaUsedUp, RateLimited
from serve.gateway.asgi import Message, Scope, Send
from serve.gateway.auth import Caller
from serve.gateway.balance.cost import BYTES_PER_TOKEN, estimate_tokens
from serve.gateway.books import Tally
from serve.gateway.counters import Counters, Window
from serve.gateway.endpoints import Endpoint
from serve.gateway.ledger import Ledger
from serve.registry import ApiKey

logger = logging.getLogger(__name__)

REQUESTS, TOKENS = "requests", "tokens"
OWNER = 16
"""Characters of a key's hash that name it in Redis, where several registries may count."""
UNPAID = frozenset({"failed", "unavailable", "rejected"})
"""Outcomes for which nothing is charged unless tokens came."""


class Limiter:
    """Lets requests take their turns; ``running`` closes what it needs."""

    def __init__(self, ledger: Ledger, counters: Counters | None = None) -> None:
        self.ledger = ledger
        self.counters = counters or Counters()
        self.at_once: Counter[int] = Counter()

    def turn(self, caller: Caller, send: Send) -> "Turn | None":
        """The turn of a request, to be entered with ``async with``; None for a key without limits."""
        key = caller.key
        if key is None:
            return None
        rights = key.rights
        limits = (
            rights.requests_per_minute,
            rights.tokens_per_minute,
            rights.max_concurrent,
            rights.monthly_tokens,
        )
        return Turn(self, key, send) if any(limit is not None for limit in limits) else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Close the connections to Redis after the block."""
        try:
            yield
        finally:
            await self.counters.close()


class Turn:
    """One request of a key with limits; ``send`` is the client's, with the headers about what is left.

    Entering raises RateLimited or QuotaUsedUp.
    """

    def __init__(self, limiter: Limiter, key: ApiKey, send: Send) -> None:
        self._limiter = limiter
        self._key = key
        self._owner = key.hash[:OWNER]
        self._send = send
        self._windows: dict[str, Window] = {}
        self._charged = 0
        self._took: int | None = None

    async def __aenter__(self) -> Self:
        rights, at_once = self._key.rights, self._limiter.at_once
        if rights.max_concurrent is not None and at_once[self._key.id] >= rights.max_concurrent:
            raise RateLimited(
                f"the key may have {rights.max_concurrent} requests at once",
                "wait for one to end",
                kind=REQUESTS,
                retry_after=1,
            )
        at_once[self._key.id] += 1
        try:
            self._check_month()
            await self._count(REQUESTS, rights.requests_per_minute, 1)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if not self._charged or self._took is None:
            return
        difference = self._took - self._charged
        # What is given back belongs to the minute that it was taken from; what is owed, to any.
        if difference > 0 or (difference < 0 and time.time() < self._windows[TOKENS].ends):
            await self._limiter.counters.correct(self._owner, TOKENS, difference)

    def _leave(self) -> None:
        at_once = self._limiter.at_once
        at_once[self._key.id] -= 1
        if not at_once[self._key.id]:
            del at_once[self._key.id]

    def _check_month(self) -> None:
        budget = self._key.rights.monthly_tokens
        if budget is not None and self._limiter.ledger.month_tokens(self._key.id) >= budget:
            now = datetime.now(UTC)
            first = (now.replace(day=1) + timedelta(days=32)).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            raise QuotaUsedUp(
                f"the key has used up its {budget:,} tokens of this month",
                "it begins anew with the next month of UTC; ask the operator for more",
                retry_after=math.ceil((first - now).total_seconds()),
            )

    async def charge(self, estimate: int) -> None:
        """Charge the tokens that a request may take; raises RateLimited.

        A request that allows more than a whole minute's tokens waits for a minute in which none were used.
        """
        limit = self._key.rights.tokens_per_minute
        if limit is not None:
            cost = min(estimate, limit)
            await self._count(TOKENS, limit, cost)
            self._charged = cost

    async def _count(self, what: str, limit: int | None, amount: int) -> None:
        if limit is None:
            return
        counters = self._limiter.counters
        window = await counters.add(self._owner, what, amount)
        if window.used > limit:  # what was refused was not spent
            self._windows[what] = Window(window.used - amount, window.ends)
            if time.time() < window.ends:
                await counters.correct(self._owner, what, -amount)
            raise RateLimited(
                f"the key may use {limit:,} {what} per minute, and {window.used - amount:,} are used",
                "see the headers x-ratelimit-*",
                kind=what,
                retry_after=max(1, math.ceil(window.ends - time.time())),
            )
        self._windows[what] = window

    def settle(self, tally: Tally, outcome: str) -> None:
        """Note what the request took, once it has ended with an outcome of the metrics.

        Of one that was broken off the estimate stays: its account never came.
        """
        if tally.known:
            self._took = tally.prompt_tokens + tally.completion_tokens
        elif outcome in UNPAID and not tally.completion_tokens:
            self._took = 0

    async def send(self, message: Message) -> None:
        """Pass a message on to the client; the first one gets the headers."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *await self._headers()]}
        await self._send(message)

    async def _headers(self) -> list[tuple[bytes, bytes]]:
        rights, headers = self._key.rights, []
        for what, limit in ((REQUESTS, rights.requests_per_minute), (TOKENS, rights.tokens_per_minute)):
            if limit is None:
                continue
            window = self._windows.get(what) or await self._limiter.counters.look(self._owner, what)
            left, seconds = max(0, limit - window.used), max(0.0, window.ends - time.time())
            for name, value in (
                ("limit", f"{limit}"),
                ("remaining", f"{left}"),
                ("reset", duration(seconds)),
            ):
                headers.append((f"x-ratelimit-{name}-{what}".encode(), value.encode()))
        return headers


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: ``59.25s``."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def turn_of(scope: Scope) -> Turn | None:
    """The turn of a request whose key has limits."""
    turn: Turn | None = scope["state"].get("turn")
    return turn


def estimate(body: dict[str, Any], size: int, endpoint: Endpoint) -> int:
    """Tokens that a checked request of ``size`` bytes may take; what runs no model takes none."""
    if not endpoint.timed:
        return 0
    return estimate_tokens(body, size) if endpoint.length is not None else max(1, size // BYTES_PER_TOKEN)
