"""What became of the rows: which were dropped, from which file, why, and where they stand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["line", "row"]

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Drop:
    """Rows of one file that were dropped for one reason; ``rows`` are the first few of them, from 1."""

    source: str
    reason: str
    count: int
    unit: Unit
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.count:,} {self.reason} ({spell(self.unit, self.rows, self.count)})"


@dataclass(frozen=True, slots=True)
class DropReport:
    """Every drop, and notes on what was kept but is worth knowing."""

    drops: tuple[Drop, ...] = ()
    notes: tuple[str, ...] = ()

    def dropped(self, source: str | None = None, reason: str | None = None) -> int:
        """How many rows were dropped, of one file or for one reason where given."""
        return sum(
            drop.count
            for drop in self.drops
            if source in (None, drop.source) and reason in (None, drop.reason)
        )


@dataclass(slots=True)
class Ledger:
    """Collects drops and notes while the data is prepared."""

    _rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _units: dict[str, Unit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def open(self, source: str, unit: Unit) -> None:
        """Say what the numbers of ``source`` count."""
        self._units[source] = unit

    def drop(self, source: str, reason: str, number: int) -> None:
        """Record that row ``number`` of ``source`` was dropped."""
        self._rows.setdefault((source, reason), []).append(number)

    def unit(self, source: str) -> Unit:
        """What the numbers of ``source`` count."""
        return self._units[source]

    def report(self) -> DropReport:
        """All of it, the largest drop of each file first."""
        drops = [
            Drop(source, reason, len(rows), self._units[source], tuple(sorted(rows)[:_EXAMPLES]))
            for (source, reason), rows in self._rows.items()
        ]
        order = list(self._units)
        drops.sort(key=lambda drop: (order.index(drop.source), -drop.count, drop.reason))
        return DropReport(tuple(drops), tuple(self.notes))


def spell(unit: Unit, rows: Sequence[int], count: int) -> str:
    """``lines 3, 8, …``: the row numbers for a reader, with a mark that ``count`` has more."""
    numbers = ", ".join(map(str, rows))
    return f"{unit}{'s' if count > 1 else ''} {numbers}{', …' if count > len(rows) else ''}"


def some(names: Iterable[str], most: int = 6) -> str:
    """The first few of ``names`` in a list for a reader, each cut to 40 characters."""
    shown = [name if len(name) <= 40 else name[:39] + "…" for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most:,} more" if len(shown) > most else "")
