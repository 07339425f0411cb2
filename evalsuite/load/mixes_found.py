"""What ``make bench-adapters`` has found: its tables and whether the goals are met."""

import argparse
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalsuite.load.faults.direct import ratio_of
from evalsuite.load.streams import Sample, Speed
from evalsuite.load.verdict import Goal

BASE = "base"
THROUGH = 8
"""Adapters of the mix that has the goal and is asked for through the gateway, at most."""
GOAL, GATEWAY_GOAL = 0.90, 0.97


@dataclass(frozen=True)
class Variant:
    """Settings of the engine under a name: further arguments for the vLLM server."""

    name: str
    arguments: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read ``NAME: ARGUMENTS``."""
        name, colon, arguments = text.partition(":")
        if not colon or not name.strip():
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME: ARGUMENTS")
        return cls(name.strip(), tuple(shlex.split(arguments)))


@dataclass(frozen=True)
class Through:
    """Tokens per second through the gateway of those directly, with the 95 % interval; the rounds of both."""

    mix: str
    ratio: float
    low: float
    high: float
    gateway: list[float]
    direct: list[float]
    failed: int

    @classmethod
    def of(cls, mix: str, pairs: Sequence[tuple[Sample, Sample]]) -> "Through":
        """Of two pairs (gateway, direct) or more."""
        gateway = [one.tokens_per_second for one, _ in pairs]
        direct = [other.tokens_per_second for _, other in pairs]
        failed = sum(one.failed + other.failed for one, other in pairs)
        return cls(mix, *ratio_of(gateway, direct), gateway, direct, failed)


@dataclass
class Result:
    """What was measured of one variant; times in seconds. ``hot`` are loads and, with the first token, wholes."""

    variant: Variant
    ready: float = float("nan")
    loads: list[float] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    hot: list[tuple[float, float]] = field(default_factory=list)
    through: Through | None = None
    left_out: list[str] = field(default_factory=list)

    def to_base(self, mix: str) -> float:
        """The tokens per second of a mix, of the base's in the same round, the median; NaN without both."""
        rates = {speed.mix: speed.rates for speed in self.speeds}
        return middle(one / base for one, base in zip(rates.get(mix, ()), rates.get(BASE, ()), strict=False))


def mix_name(adapters: int) -> str:
    """What a mix of so many adapters is called."""
    return f"{adapters} mixed" if adapters > 1 else "1 adapter"


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """What the table of mixes shows."""
    return [
        {
            "engine": result.variant.name,
            "asked": speed.mix,
            "tokens/s": speed.tokens_per_second,
            "to base": result.to_base(speed.mix),
            "TTFT p50, ms": speed.ttft.p50 * 1e3,
            "TTFT p99, ms": speed.ttft.p99 * 1e3,
            "ITL p50, ms": speed.itl.p50 * 1e3,
            "ITL p99, ms": speed.itl.p99 * 1e3,
            "failed": speed.failed,
        }
        for result in results
        for speed in result.speeds
    ]


def more_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """What the table of loads and of the gateway shows."""
    found = []
    for result in results:
        through = result.through
        found.append(
            {
                "engine": result.variant.name,
                "ready after, s": result.ready,
                "load, ms": 1e3 * middle(load for load, _ in result.hot),
                "file to first token, ms": 1e3 * middle(whole for _, whole in result.hot),
                "gateway/direct": through.ratio if through else None,
                "95 % interval": f"{through.low:.3f} to {through.high:.3f}" if through else None,
                "of": through.mix if through else None,
                "failed": through.failed if through else None,
            }
        )
    return found


def middle(numbers: Iterable[float]) -> float:
    """The median; not a number without any."""
    found = list(numbers)
    return statistics.median(found) if found else float("nan")


def goals_of(results: Sequence[Result], gpu: bool) -> list[Goal]:
    """What must be reached: on a GPU by the variant that loses least to the largest mix of up to eight."""
    failed = sum(speed.failed for result in results for speed in result.speeds)
    failed += sum(result.through.failed for result in results if result.through)
    measured = [result for result in results if result.speeds]
    goals = [Goal("failed streams", failed if measured else float("nan"), 0)]
    mix = mix_name(THROUGH)
    if gpu and measured:
        best = max(
            measured, key=lambda result: (result.to_base(mix) == result.to_base(mix), result.to_base(mix))
        )
        name = best.variant.name
        ratio = best.through.ratio if best.through else float("nan")
        goals += [
            Goal(f"{mix}, of the base's tokens/s ({name})", best.to_base(mix), GOAL, at_least=True),
            Goal(f"gateway, of the engine's tokens/s ({name})", ratio, GATEWAY_GOAL, at_least=True),
        ]
    return goals
