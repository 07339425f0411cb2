"""``tenon usage``: who used what, and what it costs."""

import re
from datetime import date
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from deploy.cli_stack import Json, settings_of
from deploy.console import console, print_json
from serve.costs import AMOUNTS, amounts_by, total_of
from serve.errors import InputError
from serve.prices import HOUR, Prices
from serve.registry import Registry
from serve.registry.usage import today


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
    if by is By.ADAPTER:
        rows = [
            {"adapter": adapter, **used} for (adapter,), used in amounts_by(["adapter"], sums, prices).items()
        ]
    else:
        rows = []
        for (number,), used in amounts_by(["key_id"], sums, prices).items():
            key = keys.get(number)
            who = {"key": number, "name": key.name if key else None, "tenant": key.tenant if key else None}
            rows.append({**who, **used})
    total = total_of(rows)
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


def show(rows: list[dict[str, Any]], total: dict[str, Any], by: By, currency: str) -> None:
    """Print the rows and their total for a person."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(by)
    cost = f"cost {currency}".strip()
    for column in ("requests", "prompt tokens", "completion tokens", "engine hours", cost):
        table.add_column(column, justify="right")
    named = [(row["adapter"] if by is By.ADAPTER else row["name"] or "without a key", row) for row in rows]
    for name, row in [*named, ("total", total)]:
        counts = (f"{row[count]:,}" for count in AMOUNTS[:3])
        table.add_row(name, *counts, f"{row['engine_seconds'] / HOUR:,.2f}", f"{row['cost']:,.4f}")
    console.print(table)
