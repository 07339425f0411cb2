"""The report: one self-contained HTML page that needs no network and works without scripts."""

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evalsuite import words
from evalsuite.evaluate import Evaluation
from evalsuite.gate import GateDecision
from evalsuite.report.plot import forest
from evalsuite.report.view import examples, label_rows, shared_context, speeds
from evalsuite.stats import RESAMPLES
from serve.errors import StorageError

MOST_EXTREME_LABELS = 5


@dataclass(frozen=True)
class Provenance:
    """Where the arms and the questions come from; what is not known stays empty and is not shown."""

    base: str = ""
    base_digest: str = ""
    adapter: str = ""
    adapter_digest: str = ""
    data_fingerprint: str = ""
    run: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(
    evaluation: Evaluation,
    path: Path,
    provenance: Provenance | None = None,
    decision: GateDecision | None = None,
) -> Path:
    """Write the page to ``path`` whole or not at all, and return the path; StorageError when it cannot be."""
    page = render_report(evaluation, provenance, decision)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=".report-", delete=False
        ) as part:
            try:
                part.write(page)
                part.flush()
                Path(part.name).chmod(0o644)
                os.replace(part.name, path)  # noqa: PTH105 - the same, and mypy knows part.name as str
            except OSError:
                Path(part.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", "free some space or choose another folder"
        ) from error
    return path


def render_report(
    evaluation: Evaluation, provenance: Provenance | None = None, decision: GateDecision | None = None
) -> str:
    """The page as text. Everything that comes from data or models is escaped."""
    environment = _environment()
    style, script = (_asset(environment, name) for name in ("report.css", "report.js"))
    labels, pace = label_rows(evaluation), speeds(evaluation)
    comparison = evaluation.against("base")
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        comparison=comparison,
        forests=[(item, forest(item.metrics)) for item in evaluation.comparisons],
        labels=labels,
        widest=max((abs(row.difference) for row in labels), default=0.0) or 1.0,
        shared_context=shared_context(evaluation),
        losses=[row for row in labels if row.difference < 0][:MOST_EXTREME_LABELS],
        gains=[row for row in reversed(labels) if row.difference > 0][:MOST_EXTREME_LABELS],
        examples=examples(evaluation),
        totals={"broken": comparison.broken, "fixed": comparison.fixed, "both_wrong": comparison.both_wrong},
        speeds=pace,
        median={speed.arm.label: speed.p50 for speed in pace},
        provenance=provenance or Provenance(),
        recipe=yaml.safe_dump(dict(provenance.recipe), sort_keys=False)
        if provenance and provenance.recipe
        else "",
        decision=decision,
        resamples=RESAMPLES,
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evalsuite.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "points", "interval", "p_value", "seconds", "thousands"):
        environment.filters[name] = getattr(words, name)
    environment.filters["breakable"] = _breakable
    environment.globals.update(
        headline=words.headline, evidence=words.evidence, sensitivity=words.sensitivity
    )
    return environment


def _breakable(name: str) -> Markup:
    """A long_label_name that may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _asset(environment: Environment, name: str) -> Markup:
    """A file of ours, put into the page as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0].strip())
