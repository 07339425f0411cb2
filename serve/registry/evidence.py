"""Whether a version may answer users under a name: what its evaluations say for and against it."""

from collections.abc import Iterable

from serve.errors import GateRefused
from serve.names import VersionRef
from serve.registry.fleet import FRESH_SECONDS
from serve.registry.records import Alias, EvaluationRecord, Version
from serve.registry.registry import Registry


def latest_evaluation(registry: Registry, version: Version) -> EvaluationRecord | None:
    """The latest evaluation of a version against its own base that counts as evidence, or None."""
    records = [
        record
        for record in registry.evaluations(version.ref)
        if record.base_digest == version.base_digest and record.result.get("gate", {}).get("evidence")
    ]
    return records[-1] if records else None


def why_not(
    record: EvaluationRecord | None, alias: Alias | None, version: Version, *, answers: bool = False
) -> str | None:
    """What speaks against letting ``version`` take ``alias`` on the evidence of ``record``; None if nothing.

    A version that passed may always come back to a name that it had just before, or has. To replace another
    one, it must have been compared with that one, unless that could not answer then and does not now (``answers``).
    """
    if record is None:
        return "it has not been evaluated on all of its held-out questions"
    gate = record.result["gate"]
    if not gate["allowed"]:
        return str(gate["reason"])
    if alias is None or version.ref in (alias.target.ref, alias.previous, alias.way_back):
        return None
    if str(alias.target.ref) not in (gate["live"], None if answers else gate.get("silent")):
        return f"it was not compared with {alias.target.ref}, which answers users now"
    return None


def answered(registry: Registry, ref: VersionRef) -> bool:
    """Whether an engine tells that it answers for a version; where machines share the registry, one that is alive."""
    ready = {row.engine for row in registry.loaded() if row.ref == ref and row.state == "ready"}
    if registry.shared:
        ready &= {engine.name for engine in registry.engines(within=FRESH_SECONDS)}
    return bool(ready)


def check_gate(
    registry: Registry, name: str, versions: Iterable[Version], *, overruled: bool, force: str
) -> bool:
    """Whether something speaks against letting each of these versions answer users under a name.

    Raises GateRefused for the first, unless that is ``overruled``; ``force`` is how a caller overrules it.
    """
    alias, against = registry.alias(name), False
    answers = alias is not None and answered(registry, alias.target.ref)
    for version in versions:
        objection = why_not(latest_evaluation(registry, version), alias, version, answers=answers)
        if objection is not None and not overruled:
            raise GateRefused(
                f"{version.ref} may not take the name {name}: {objection}",
                f"run `tenon eval {version.ref}`, or overrule the gate with {force} (this is recorded)",
            )
        against |= objection is not None
    return against


def verdict_of(registry: Registry, version: Version) -> str | None:
    """The verdict of the latest evaluation of a version that counts as evidence."""
    record = latest_evaluation(registry, version)
    return record.verdict if record is not None else None
