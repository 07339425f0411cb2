"""Which version of a weighted alias a conversation gets: always the same, as long as the weights stay.

A conversation is one point in [0, 1), and each version owns an interval as long as its share, in an order that
does not depend on the weights. Moving the canary from 5 to 10 percent so moves five percent of the
conversations, all in one direction, and moving it back returns exactly those.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from serve.gateway.balance.hashing import hash64

HEADER = b"x-tenon-conversation"
PREFIX = 256
"""Characters of a prompt that count: a plain prompt grows with the conversation, its beginning stays."""
LONGEST = 4096
"""Characters of one text in a message that count."""


class Split:
    """The versions of one alias and their shares; built once per change of the alias.

    ``weights`` maps versions to any numbers that are not negative, of which one at least is above zero; its order
    is the order of the intervals, so it must be one that stays (the order of the versions' numbers). Versions of
    weight zero get nothing. With two versions only the needed share of conversations moves when weights change;
    with more, a change between neighbours moves the needed share, one between others also shifts those in
    between. ``alias`` salts the hash, so that canaries of different aliases meet different conversations.
    A pick takes one hash and O(log n).
    """

    def __init__(self, alias: str, weights: Mapping[str, float]) -> None:
        sides = {version: float(weight) for version, weight in weights.items() if weight}
        total = sum(sides.values())
        if not sides or min(sides.values()) < 0 or not total < float("inf"):
            raise ValueError(
                f"{alias}: weights must be finite, not negative, and not all zero: {dict(weights)}"
            )
        self._alias = alias
        self.versions = tuple(sides)
        ends = itertools.accumulate(sides.values())
        self._ends = [end / total for end in ends][:-1]  # the last version takes all that is left

    def pick(self, conversation: str) -> str:
        """The version for a conversation, as :func:`conversation_key` names it."""
        return self.versions[bisect.bisect_right(self._ends, position(self._alias, conversation))]


def position(alias: str, conversation: str) -> float:
    """The point in [0, 1) of a conversation: 53 bits, which a float holds exactly."""
    return (hash64("side", alias, conversation) >> 11) / 2**53


def conversation_key(body: Mapping[str, Any], header: str | None = None) -> str:
    """What names the conversation of a request, the same for all its turns.

    The first of these that there is: ``header``, the value of ``x-tenon-conversation``, as whoever sets it means
    just this; the field ``user``; the first message of the user, which comes again with every turn; the
    beginning of ``prompt`` or ``input``. Conversations that begin alike share a key, which does no harm but that
    they stay together.
    """
    if header:
        return f"header:{header}"
    user = body.get("user")
    if isinstance(user, str) and user:
        return f"user:{user}"
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        turns = (item for item in messages if isinstance(item, Mapping) and item.get("role") == "user")
        first = next(turns, messages[0])
        content = first.get("content") if isinstance(first, Mapping) else first
        return "message:" + "|".join(_texts(content, LONGEST))
    return "prompt:" + "|".join(_texts(body.get("prompt", body.get("input")), PREFIX))


def _texts(value: Any, longest: int, depth: int = 4) -> Iterator[str]:
    """What a value holds, each text cut to ``longest`` characters, so that no image is hashed in full."""
    if isinstance(value, Mapping | list) and depth:
        for item in itertools.islice(value.values() if isinstance(value, Mapping) else value, longest):
            yield from _texts(item, longest, depth - 1)
    elif isinstance(value, str):
        yield value[:longest]
    elif isinstance(value, int):
        yield str(value)
