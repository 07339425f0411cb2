"""Reads what a :class:`DataSpec` names: up to three files, or a built-in dataset."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.errors import DataError
from train.data import forms
from train.data.examples import Example
from train.data.read import Table, from_rows, read
from train.data.report import Ledger
from train.data.spec import SPLITS, DataSpec, FormName, SplitName

_BUILTIN = "builtin:"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read: for which split, how its columns were understood, how many rows it had."""

    split: SplitName
    name: str
    layout: str
    rows: int


@dataclass(slots=True)
class Loaded:
    """A source with those of its rows that are left."""

    source: Source
    form: FormName
    examples: list[Example]


def load(spec: DataSpec, ledger: Ledger) -> dict[SplitName, Loaded]:
    """Read every source of ``spec``; what cannot be used goes into ``ledger``.

    Raises :class:`DataError` where a file cannot be read, none of its rows can be used, or its form is not
    that of the training file.
    """
    loaded: dict[SplitName, Loaded] = {}
    for split, table in _tables(spec).items():
        ledger.open(table.name, table.unit)
        layout = forms.detect(table, spec)
        form = layout.form.name
        usable = forms.examples(table, layout, spec, ledger)
        source = Source(split, table.name, str(layout), len(table.records))
        if not usable:
            raise DataError(
                f"{table.name} has no usable row ({outcome(source, ledger)})",
                "correct the rows, or name the right columns in data.columns",
            )
        loaded[split] = Loaded(source, form, usable)
        train = loaded["train"]
        if form != train.form:
            raise DataError(
                f"{table.name} is of the form {form}, but {train.source.name} of {train.form}",
                "give both the same columns, or set data.format",
            )
    return loaded


def outcome(source: Source, ledger: Ledger) -> str:
    """``12 rows read: 9 that repeat another row, 1 with an empty text``."""
    reasons: Counter[str] = Counter()
    for drop in ledger.report().drops:
        if drop.source == source.name:
            reasons[drop.reason] += drop.count
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return f"{source.rows:,} row{'s' if source.rows != 1 else ''} read{': ' if dropped else ''}{dropped}"


def _tables(spec: DataSpec) -> dict[SplitName, Table]:
    """The table of each split that has a source of its own, train first."""
    given: dict[SplitName, str | None] = {
        "train": spec.train,
        "validation": spec.validation,
        "test": spec.test,
    }
    tables: dict[SplitName, Table] = {}
    if spec.train.startswith(_BUILTIN):
        tables = _builtin(spec.train, spec.seed)
        del given["train"]
    paths = {split: Path(path).expanduser() for split, path in given.items() if path}
    _check_distinct(paths)
    names = Counter(path.name for path in paths.values())
    for split, path in paths.items():
        tables[split] = read(path, path.name if names[path.name] == 1 else str(path))
    return tables


def _check_distinct(paths: Mapping[SplitName, Path]) -> None:
    seen: dict[Path, SplitName] = {}
    for split, path in paths.items():
        other = seen.setdefault(path.resolve(), split)
        if other != split:
            raise DataError(
                f"{path} is given as both {other} and {split} data",
                f"leave out data.{split}, so that a part of the {other} data is held out for it",
            )


def _builtin(name: str, seed: int) -> dict[SplitName, Table]:
    if name != "builtin:support":
        raise DataError(f"there is no built-in dataset {name!r}", "the built-in dataset is builtin:support")
    # The phrasings are read only when they are asked for.
    from train.data.builtin import generate

    rows = generate(seed)
    return {split: from_rows(f"{name} {split}", rows[split]) for split in SPLITS}
