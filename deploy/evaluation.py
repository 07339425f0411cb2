"""Judges a version on the running stack: base, version and what is live answer the same questions."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.console import note, step
from deploy.prompts import written_otherwise
from deploy.questions import Questions
from deploy.serving import base_served, wait_until_loaded, why_silent
from deploy.status import require_up
from evalsuite.evaluate import Arm, Evaluation, evaluate
from evalsuite.gate import GateDecision, gate
from evalsuite.report.html import Provenance, write_report
from serve.config import Settings
from serve.operator import operator_secret
from serve.records import write_json
from serve.registry import Registry, Version
from train.runs import Run


@dataclass(frozen=True)
class Judgement:
    """An evaluation, what the gate made of it, and where the report is."""

    evaluation: Evaluation
    decision: GateDecision
    report: Path

    @property
    def verdict(self) -> str:
        """*better*, *worse* or *inconclusive*, against the base."""
        return str(self.evaluation.verdict)


def judge(
    settings: Settings,
    registry: Registry,
    version: Version,
    asked: Questions,
    *,
    limit: int | None = None,
    force: bool = False,
) -> Judgement:
    """Load, question, compare, report and record; prints a line per step. The caller wants the version."""
    with step("load") as current:
        seconds = wait_until_loaded(registry, settings, version.ref, current.say)
        current.result = f"{version.engine_name} ready in {seconds:.1f} s, probed: it answers as itself"
    warn_of_prompts(settings, version)
    with step("evaluate") as current:
        base, context = base_served(settings, version)
        arms, silent = arms_of(settings, registry, version, base)
        advance = current.bar()
        evaluation = asyncio.run(
            evaluate(
                str(require_up(settings.home).url),
                arms,
                asked.questions,
                asked.task,
                context=context,
                limit=limit,
                on_progress=lambda progress: advance(progress.done, progress.total),
                api_key=operator_secret(settings.state),
            )
        )
        current.result = f"{len(evaluation.questions):,} questions × {len(arms)} arms"
    if too_long := evaluation.conditions.too_long:
        note(f"questions left out, as they are longer than {arms[0].label} can read: {too_long:,}", "yellow")
    if silent:
        note(
            f"not asked, as it cannot answer: {silent[0]}, which users are sent to now ({silent[1]})",
            "yellow",
        )
    decision = gate(evaluation, force=force)
    folder = settings.evals / f"{version.ref}-{time.strftime('%Y%m%d-%H%M%S')}"
    report = folder / "report.html"
    write_report(evaluation, report, provenance_of(version), decision)
    write_json(folder / "evaluation.json", evaluation.to_dict())
    record(
        registry,
        version,
        evaluation,
        decision,
        report,
        evidence=asked.evidence and limit is None,
        silent=silent[0] if silent else None,
    )
    return Judgement(evaluation, decision, report)


def warn_of_prompts(settings: Settings, version: Version) -> None:
    """Say where the engine writes prompts otherwise than they were trained; the evaluation asks as users do anyway."""
    if version.lineage.run is None:
        return
    url, key = str(require_up(settings.home).url), operator_secret(settings.state)
    asked = Run(settings.runs / version.lineage.run).asked
    if (differ := written_otherwise(url, key, str(version.ref), asked)) is not None:
        trained, now = differ
        note(
            f"the engine writes prompts otherwise than training did: {now!r}, where it was {trained!r}; see "
            "docs/training.md, What is learnt",
            "yellow",
        )


def record(
    registry: Registry,
    version: Version,
    evaluation: Evaluation,
    decision: GateDecision,
    report: Path,
    *,
    evidence: bool,
    silent: str | None = None,
) -> None:
    """Keep an evaluation; ``evidence`` says whether the gate may later rely on it.

    ``silent`` is the live version where it could not be asked.
    """
    live = next((arm.model for arm in evaluation.arms if arm.role == "live"), None)
    gate_record = {
        "allowed": decision.allowed and not decision.forced,
        "reason": decision.reason,
        "live": live,
        "evidence": evidence,
        "silent": silent,
    }
    registry.record_evaluation(
        version.ref,
        base_digest=version.base_digest,
        result={**evaluation.summary(), "gate": gate_record},
        verdict=evaluation.verdict,
        report=str(report),
    )


def arms_of(
    settings: Settings, registry: Registry, version: Version, base: str
) -> tuple[list[Arm], tuple[str, str] | None]:
    """Base and candidate, and the live version where another one answers users now.

    A live version that no engine can serve, as its base is not served any more or its files are damaged, is told with
    the reason instead: users have no answers of it either, and its successor is how they get some.
    """
    arms = [Arm(base, base, "base"), Arm(str(version.ref), str(version.ref), "candidate")]
    alias = registry.alias(version.ref.name)
    if alias is None or alias.target.ref == version.ref:
        return arms, None
    live = alias.target.ref
    if reason := why_silent(registry, settings, live):
        return arms, (str(live), reason)
    return [*arms, Arm(f"{live} (live)", str(live), "live")], None


def provenance_of(version: Version) -> Provenance:
    """Where base, adapter and questions come from, for the report."""
    lineage = version.lineage
    return Provenance(
        base=version.base_name,
        base_digest=version.base_digest,
        adapter=str(version.ref),
        adapter_digest=version.digest,
        data_fingerprint=lineage.data_fingerprint or "",
        run=lineage.run or "",
        recipe=lineage.recipe or {},
        versions={"Tenon": lineage.code_version} if lineage.code_version else {},
    )
