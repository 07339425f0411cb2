"""What use comes to, in tokens, engine time and money, summed by whatever it is asked by."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serve.prices import Prices
from serve.registry.usage import COUNTS, UsageField, UsageSum

AMOUNTS = (*COUNTS, "cost")

Amounts = dict[str, Any]


def amounts_by(
    fields: Sequence[UsageField], sums: Iterable[UsageSum], prices: Prices
) -> dict[tuple[Any, ...], Amounts]:
    """The amounts for each value of the fields, costs added up over what has different prices.

    Each of ``sums`` must tell its adapter, by which prices differ.
    """
    found: dict[tuple[Any, ...], Amounts] = {}
    for used in sums:
        place = tuple(getattr(used, name) for name in fields)
        amounts = found.setdefault(place, dict.fromkeys(AMOUNTS, 0))
        for name in COUNTS:
            amounts[name] += getattr(used, name)
        price = prices.of(str(used.adapter))
        amounts["cost"] += price.cost(used.prompt_tokens, used.completion_tokens, used.engine_seconds)
    return found


def total_of(rows: Iterable[Mapping[str, Any]]) -> Amounts:
    """All of them together."""
    listed = list(rows)
    return {name: sum(row[name] for row in listed) for name in AMOUNTS}
