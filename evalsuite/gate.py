"""May this version answer users? Only what was shown to be better may, unless somebody insists."""

from dataclasses import dataclass
from typing import Literal

from evalsuite.evaluate import Evaluation
from evalsuite.stats import Verdict
from evalsuite.words import interval, percent

MOST_MISSING = 0.01


@dataclass(frozen=True)
class GateDecision:
    """``allowed`` by the evidence, or ``forced`` against it; ``reason`` is what to tell and to record."""

    allowed: bool
    forced: bool
    reason: str
    verdict: Verdict


def gate(evaluation: Evaluation, *, force: bool = False) -> GateDecision:
    """Decide from ``evaluation`` whether the candidate may take the alias.

    It must be *better* than the base, must not be *worse* than the live version where one took part, and no
    arm may lack more than 1 % of its answers: missing evidence never promotes. Nor may most questions have been left
    out as longer than the base can read. ``force`` allows what was refused and says so.
    """
    objections = [
        *_missing(evaluation),
        *_left_out(evaluation),
        *_against_base(evaluation),
        *_against_live(evaluation),
    ]
    if not objections:
        return GateDecision(True, False, _praise(evaluation), evaluation.verdict)
    reason = "; ".join(objections)
    if force:
        return GateDecision(True, True, f"forced although {reason}", evaluation.verdict)
    return GateDecision(False, False, reason, evaluation.verdict)


def _missing(evaluation: Evaluation) -> list[str]:
    asked = len(evaluation.questions)
    return [
        f"{arm.label} did not answer {evaluation.missing(arm)} of {asked} questions, "
        f"more than {percent(MOST_MISSING)}: missing evidence never promotes"
        for arm in evaluation.arms
        if evaluation.missing(arm) > MOST_MISSING * asked
    ]


def _left_out(evaluation: Evaluation) -> list[str]:
    left, kept = evaluation.conditions.too_long, len(evaluation.questions)
    if left <= kept:
        return []
    return [
        f"{left:,} of {left + kept:,} questions are longer than the base can read: those that are left stand for few"
    ]


def _against_base(evaluation: Evaluation) -> list[str]:
    comparison = evaluation.against("base")
    primary = comparison.primary
    if primary.verdict == "worse":
        return [f"{comparison.candidate} is worse than the base ({_difference(evaluation, 'base')})"]
    if primary.verdict == "inconclusive":
        return [
            f"{comparison.candidate} was not shown to be better than the base "
            f"({_difference(evaluation, 'base')}; "
            f"{comparison.questions:,} questions reliably show a difference of "
            f"{comparison.minimum_detectable_effect * 100:.1f} points or more)"
        ]
    return []


def _against_live(evaluation: Evaluation) -> list[str]:
    comparison = evaluation.live
    if comparison is None or comparison.verdict != "worse":
        return []
    return [
        f"{comparison.candidate} is worse than {comparison.baseline}, which answers users now "
        f"({_difference(evaluation, 'live')})"
    ]


def _praise(evaluation: Evaluation) -> str:
    comparison = evaluation.against("base")
    praise = f"{comparison.candidate} is better than the base ({_difference(evaluation, 'base')})"
    live = evaluation.live
    return praise if live is None else f"{praise} and not worse than {live.baseline}"


def _difference(evaluation: Evaluation, role: Literal["base", "live"]) -> str:
    metric = evaluation.against(role).primary
    return (
        f"{metric.title} {percent(metric.baseline)} → {percent(metric.candidate)}, "
        f"95 % interval {interval(metric)} points"
    )
