"""Data files become a folder of clean splits that training and evaluation read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.errors import DataError
from train.data import clean
from train.data.examples import Example
from train.data.load import Loaded, Source, load, outcome
from train.data.report import DropReport, Ledger, some
from train.data.rows import fingerprint, rows
from train.data.spec import MIN_ROWS, SPLITS, DataSpec, SplitName
from train.data.split import order, split
from train.data.tasks import Task, detect_task, instruction
from train.data.write import write_folder

__all__ = ["DataSpec", "DropReport", "Prepared", "Source", "Task", "describe", "prepare"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What :func:`prepare` wrote: a ``.jsonl`` file per split, ``task.json`` and ``data.json`` (the report).

    ``counts`` are rows by split; ``fingerprint`` is the SHA-256 of all rows, the same for the same rows; ``longest`` is
    the size of the longest row to train on, in bytes of its line.
    """

    folder: Path
    task: Task
    counts: Mapping[str, int]
    report: DropReport
    fingerprint: str
    longest: int
    sources: tuple[Source, ...] = ()

    def file(self, name: SplitName) -> Path:
        """The file of one split, one JSON object per line."""
        return self.folder / f"{name}.jsonl"


def prepare(spec: DataSpec, out: Path) -> Prepared:
    """Read, clean, split and write the data that ``spec`` names into the folder ``out``; all files or none.

    A test file that the user gives stays what it is, in its order, repeats and contradictions included, so
    that a score on a public test set compares with other scores on it; only rows that cannot be asked at all
    are dropped (empty, binary, too long). Rows of the other splits with a text of the test are dropped
    instead. A validation file is treated so too, but yields to the test.
    What was dropped, and why, is in the report. Raises :class:`DataError` where the data cannot be used, and
    :class:`serve.errors.StorageError` where it cannot be written.
    """
    ledger = Ledger()
    loaded = load(spec, ledger)
    form = loaded["train"].form
    task = detect_task(form, [example for part in loaded.values() for example in part.examples])
    _clean(loaded, task, ledger)
    _sample(loaded["train"], spec, ledger)
    labels = _check(loaded["train"], task, ledger)
    parts = _split(loaded, task, spec, ledger)
    _note(parts, task, ledger)
    system = instruction(spec.system, form, task, labels)
    lines: dict[str, list[str]] = {name: rows(parts[name], system) for name in SPLITS}
    prepared = Prepared(
        out,
        task,
        {name: len(lines[name]) for name in SPLITS},
        ledger.report(),
        fingerprint(lines),
        max((len(line.encode()) for line in lines["train"]), default=0),
        tuple(part.source for part in loaded.values()),
    )
    files = {f"{name}.jsonl": "".join(f"{line}\n" for line in lines[name]) for name in SPLITS}
    files |= {"task.json": pretty(task.to_json()), "data.json": pretty(_about(prepared, spec, system))}
    write_folder(out, files)
    return prepared


def describe(prepared: Prepared) -> list[str]:
    """Lines for the terminal: what was read, what was dropped and why, what is left."""
    report, task, counts = prepared.report, prepared.task, prepared.counts
    lines = []
    for source in prepared.sources:
        dropped = report.dropped(source.name)
        lines.append(f"{source.split}: {source.name}, {source.rows:,} rows as {source.layout}")
        if dropped:
            lines.append(f"  dropped {dropped:,}:")
            lines += [f"    {drop}" for drop in report.drops if drop.source == source.name]
    lines.append("splits: " + ", ".join(f"{name} {counts[name]:,}" for name in SPLITS))
    kind = {"label": "label", "json": "JSON object", "text": "text"}[task.kind]
    details = []
    if task.labels:
        values = "labels" if task.label_field is None else f"values of {task.label_field}"
        details.append(f"{len(task.labels):,} {values}")
    if task.fields:
        details.append(f"fields {some(task.fields)}")
    details.append(f"the longest of {task.longest_answer_chars:,} characters")
    lines.append(f"answer: {kind} ({', '.join(details)})")
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"fingerprint: {prepared.fingerprint[:12]}")
    return lines


def _clean(loaded: Mapping[SplitName, Loaded], task: Task, ledger: Ledger) -> None:
    """Drop contradictions, repeats and leaks; the test wins over validation, both win over train."""
    train = loaded["train"]
    name = train.source.name
    if task.kind != "text":
        train.examples = clean.drop_contradictions(train.examples, task.meaning, name, ledger)
    train.examples = clean.drop_repeats(train.examples, name, ledger)
    held_out: list[SplitName] = [split for split in ("test", "validation") if split in loaded]
    for index, held in enumerate(held_out):
        keys = {example.key for example in loaded[held].examples}
        clean.note_repeats(loaded[held].examples, loaded[held].source.name, ledger)
        for other in (*held_out[index + 1 :], "train"):
            part = loaded[other]
            part.examples = clean.drop_leaks(part.examples, keys, held, part.source.name, ledger)


def _sample(train: Loaded, spec: DataSpec, ledger: Ledger) -> None:
    rows = len(train.examples)
    if spec.limit is not None and rows > spec.limit:
        train.examples = order(train.examples, spec.seed, "limit")[: spec.limit]
        ledger.notes.append(f"data.limit: a sample of {spec.limit:,} of {rows:,} usable rows is taken")


def _check(train: Loaded, task: Task, ledger: Ledger) -> list[str]:
    """The labels (or answers) to learn, sorted; raises DataError where there is too little to learn from."""
    name, count = train.source.name, len(train.examples)
    if count < MIN_ROWS:
        raise DataError(
            f"{name} has {count} usable row{'s' if count != 1 else ''}, but {MIN_ROWS} are needed "
            f"({outcome(train.source, ledger)})",
            "add rows, or correct those that were dropped",
        )
    answers = sorted({task.meaning(example.answer) for example in train.examples})
    if len(answers) == 1:
        what = "label" if task.kind == "label" else "answer"
        raise DataError(
            f"{name} has one {what} only ({some(answers)}), so there is nothing to learn "
            f"({outcome(train.source, ledger)})",
            f"add rows with other {what}s, or check which column holds the {what}",
        )
    return answers


def _split(
    loaded: Mapping[SplitName, Loaded], task: Task, spec: DataSpec, ledger: Ledger
) -> dict[SplitName, list[Example]]:
    """The examples of each split: those the user gave, and shares of the training file for the others."""
    result = split(
        loaded["train"].examples,
        task.label,
        validation=0 if "validation" in loaded else spec.validation_fraction,
        test=0 if "test" in loaded else spec.test_fraction,
        seed=spec.seed,
    )
    texts = len({example.key for example in loaded["train"].examples})
    if texts < MIN_ROWS:
        ledger.notes.append(
            f"train has {texts} different text{'s' if texts != 1 else ''} only, system messages aside; "
            "put what tells rows apart into the user messages"
        )
    if result.single and ("test" not in loaded or "validation" not in loaded):
        ledger.notes.append(
            f"{len(result.single):,} labels have one text only, which is in train: {some(result.single)}"
        )
    parts: dict[SplitName, list[Example]] = {
        "train": result.train,
        "validation": result.validation,
        "test": result.test,
    }
    return parts | {name: part.examples for name, part in loaded.items() if name != "train"}


def _note(parts: Mapping[SplitName, Sequence[Example]], task: Task, ledger: Ledger) -> None:
    """Note what a user should know about the splits."""
    seen = {task.label(example.answer) for example in parts["train"]}
    for name in ("validation", "test"):
        if not parts[name]:
            ledger.notes.append(f"{name} has no rows")
        unseen = sorted({task.label(example.answer) for example in parts[name]} - seen)
        if unseen:
            ledger.notes.append(f"{len(unseen):,} {name} labels are not in train: {some(unseen)}")
    by_case: dict[str, list[str]] = {}
    for label in task.labels or ():
        by_case.setdefault(label.casefold(), []).append(label)
    alike = [" / ".join(labels) for labels in by_case.values() if len(labels) > 1]
    if alike:
        ledger.notes.append(f"labels differ in case only: {some(alike)}")
    turns = sum(any(item["role"] == "assistant" for item in example.prompt) for example in parts["train"])
    if turns:
        ledger.notes.append(f"{turns:,} conversations of train have earlier answers; only the last is learnt")


def _about(prepared: Prepared, spec: DataSpec, system: str) -> dict[str, Any]:
    return {
        "fingerprint": prepared.fingerprint,
        "counts": prepared.counts,
        "system": system,
        "sources": [asdict(source) for source in prepared.sources],
        **asdict(prepared.report),
        "spec": spec.model_dump(),
    }


def pretty(value: Mapping[str, Any]) -> str:
    """``value`` as JSON for a file that people may read."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
