"""Numbers and verdicts as people read them, the same in the gate's reasons, on the page and in the terminal."""

from evalsuite.compare import Comparison, MetricComparison
from evalsuite.stats import ALPHA, POWER

MINUS = "\N{MINUS SIGN}"


def percent(value: float) -> str:
    """A share as ``93.2 %``."""
    return f"{value * 100:.1f}\N{NO-BREAK SPACE}%".replace("-", MINUS)


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed: ``+62.2``."""
    rounded = round(difference * 100, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def interval(metric: MetricComparison) -> str:
    """The 95 % interval in points: ``+58.1 to +66.2``."""
    return f"{points(metric.low)} to {points(metric.high)}"


def p_value(p: float) -> str:
    """A p-value with the digits that mean something: ``0.034``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """A p-value in a sentence: ``p = 0.034``, ``p < 0.001``."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def seconds(value: float) -> str:
    """A time: ``84 ms``, ``1.27 s``, ``3 min 20 s``."""
    if value < 1:
        return f"{value * 1000:.0f}\N{NO-BREAK SPACE}ms"
    if value < 60:
        return f"{value:.3g}\N{NO-BREAK SPACE}s"
    return f"{int(value // 60)}\N{NO-BREAK SPACE}min {int(value % 60)}\N{NO-BREAK SPACE}s"


def thousands(value: int) -> str:
    """A count: ``3,080``."""
    return f"{value:,}"


def headline(comparison: Comparison) -> str:
    """The verdict as one sentence."""
    arms = comparison.candidate, comparison.baseline
    if comparison.verdict == "better":
        return "{} is better than {}".format(*arms)
    if comparison.verdict == "worse":
        return "{} is worse than {}".format(*arms)
    return "{} was not shown to differ from {}".format(*arms)


def evidence(comparison: Comparison) -> str:
    """What the verdict rests on, as one sentence."""
    metric = comparison.primary
    moves = "rises" if metric.difference > 0 else "falls" if metric.difference < 0 else "stays"
    return (
        f"{metric.title} {moves} from {percent(metric.baseline)} to {percent(metric.candidate)} on "
        f"{thousands(comparison.questions)} held-out questions: {points(metric.difference)} points, 95 % interval "
        f"{interval(metric)}, {p_equals(metric.p_adjusted)}."
    )


def sensitivity(comparison: Comparison) -> str:
    """How small a difference the test could have seen, as one sentence."""
    effect = comparison.minimum_detectable_effect
    return (
        f"With {thousands(comparison.questions)} questions, a true difference of {effect * 100:.1f} points or more "
        f"would be found by {POWER * 100:.0f} % of such tests at the {ALPHA * 100:.0f} % level; "
        "a smaller one could go unseen."
    )
