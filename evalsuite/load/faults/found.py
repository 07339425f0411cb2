"""What a fault scenario found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalsuite.load.verdict import Goal


@dataclass
class Found:
    """A scenario's numbers: ``rows`` for people, all of the same columns, ``goals``, and more for a script."""

    title: str
    rows: list[dict[str, Any]]
    goals: list[Goal]
    more: Mapping[str, Any] = field(default_factory=dict)
