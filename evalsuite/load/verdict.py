"""Goals of a benchmark and whether they were met; how its numbers are shown and stored."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 140
"""Columns that a table may take where there is no terminal to say."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of sorted numbers; not a number without any."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True)
class Spread:
    """How numbers are spread; all are NaN where there was none."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        """Nearest-rank quantiles."""
        ordered = sorted(numbers)
        return cls(len(ordered), quantile(ordered, 0.5), quantile(ordered, 0.99), quantile(ordered, 1.0))


@dataclass(frozen=True)
class Goal:
    """Something that a measurement must reach: at least or at most ``limit``; NaN reaches nothing."""

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Its fields and whether it is met."""
        return {**asdict(self), "met": self.met}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the same keys, which are the columns' names."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(rows[0] if rows else ()):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*(_written(value) for value in row.values()))
    return made


def _written(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else (
            f"{value:,.0f}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        )
    )


def goals_table(goals: Sequence[Goal]) -> Table:
    """One line per goal."""
    return table(
        [
            {
                "goal": goal.what,
                "measured": goal.measured,
                "must be": f"{'≥' if goal.at_least else '≤'} {goal.limit:g}",
                "met": "yes" if goal.met else "NO",
            }
            for goal in goals
        ]
    )


def report(
    title: str,
    content: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    goals: Sequence[Goal],
    path: Path | None,
) -> int:
    """Print rows and goals, store everything as JSON where asked to; the exit code, 1 if a goal is missed."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(f"[bold]{title}[/bold]")
    console.print(table(rows))
    console.print(goals_table(goals))
    whole = {**content, "rows": list(rows), "goals": [goal.to_json() for goal in goals]}
    if path is not None:
        path.write_text(json.dumps(finite(whole), indent=2) + "\n")
    return 0 if all(goal.met for goal in goals) else 1


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")
