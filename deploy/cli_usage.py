"""``tenon usage``: who used what, and what it costs."""

import re
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy.cli_stack import Json, settings_of
from deploy.console import console, print_json
from serve.errors import InputError
from serve.prices import HOUR, Prices
from serve.registry import ApiKey, Registry, UsageSum
from serve.registry.usage import NO_KEY, today

COUNTS = ("requests", "prompt_tokens", "completion_tokens", "engine_seconds", "cost")


class By(StrEnum):
    """What usage is told by."""

    KEY = "key"
    ADAPTER = "adapter"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Examples: tenon usage · tenon usage --month 2026-11 --by adapter --json")(usage)


def usage(
    context: typer.Context,
    month: Annotated[
        str | None, typer.Option(help="Month of UTC, such as 2026-11.", show_default="this one")
    ] = None,
    by: Annotated[By, typer.Option(help="Sum by key or by adapter.")] = By.KEY,
    as_json: Json = False,
) -> None:
    """Say what was used in a month and what it costs by the prices in TENON_PRICES."""
    since, until = month_of(month)
    settings = settings_of(context)
    prices = Prices.load(settings.prices)
    with Registry.of(settings) as registry:
        sums = registry.usage(since, until, by=("key_id", "adapter"))
        keys = {key.id: key for key in registry.keys(revoked=True)}
    rows = list(folded(sums, by, keys, prices).values())
    total = {name: sum(row[name] for row in rows) for name in COUNTS}
    if as_json:
        print_json(
            {"month": f"{since:%Y-%m}", "currency": prices.currency, "by": by, "rows": rows, "total": total}
        )
        return
    if not rows:
        console.print(f"Nothing was used in {since:%Y-%m}.")
        return
    show(rows, total, by, prices.currency)


def month_of(text: str | None) -> tuple[date, date]:
    """The first day of a month and of the next; raises InputError."""
    if text is None:
        first = today().replace(day=1)
    else:
        match = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", text)
        if match is None or not 2000 <= int(match[1]) < 9999:
            raise InputError(f"--month {text!r} is no month", "write it as YYYY-MM, such as 2026-11")
        first = date(int(match[1]), int(match[2]), 1)
    return first, date(first.year + first.month // 12, first.month % 12 + 1, 1)


def folded(
    sums: Iterable[UsageSum], by: By, keys: dict[int, ApiKey], prices: Prices
) -> dict[Any, dict[str, Any]]:
    """One row for each key or adapter, costs added up over what has different prices."""
    rows: dict[Any, dict[str, Any]] = {}
    for used in sums:
        key_id, adapter = used.key_id or NO_KEY, str(used.adapter)
        if by is By.ADAPTER:
            row = rows.setdefault(adapter, {"adapter": adapter, **dict.fromkeys(COUNTS, 0)})
        else:
            key = keys.get(key_id)
            who = {"key": key_id, "name": key.name if key else None, "tenant": key.tenant if key else None}
            row = rows.setdefault(key_id, {**who, **dict.fromkeys(COUNTS, 0)})
        price = prices.of(adapter)
        row["cost"] += price.cost(used.prompt_tokens, used.completion_tokens, used.engine_seconds)
        for name in COUNTS[:-1]:
            row[name] += getattr(used, name)
    return rows


def show(rows: list[dict[str, Any]], total: dict[str, Any], by: By, currency: str) -> None:
    """Print the rows and their total for a person."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(by)
    cost = f"cost {currency}".strip()
    for column in ("requests", "prompt tokens", "completion tokens", "engine hours", cost):
        table.add_column(column, justify="right")
    named = [(row["adapter"] if by is By.ADAPTER else row["name"] or "without a key", row) for row in rows]
    for name, row in [*named, ("total", total)]:
        counts = (f"{row[count]:,}" for count in COUNTS[:3])
        table.add_row(name, *counts, f"{row['engine_seconds'] / HOUR:,.2f}", f"{row['cost']:,.4f}")
    console.print(table)
