"""Parquet files: a column becomes Python objects when it is first asked for, so that unused ones may hold anything."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow  # type: ignore[import-untyped]
from datasets import ClassLabel, Features, LargeList, List
from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

from serve.errors import DataError
from train.data.report import some

# What pyarrow raises for a broken file, and what Python's dates, zones and numbers raise for a value beyond them.
_UNREADABLE = (
    pyarrow.ArrowException,
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RecursionError,
)


class Columns:
    """The columns of one file by name; class labels are given by their names, maps as objects."""

    def __init__(self, name: str, table: Any, features: Mapping[str, object]) -> None:
        self.name = name
        self.names: tuple[str, ...] = tuple(table.column_names)
        self.rows: int = table.num_rows
        self._table = table
        self._features = features
        self._values: dict[str, list[Any]] = {}

    @classmethod
    def read(cls, name: str, raw: bytes) -> "Columns":
        """Read a file; raises :class:`DataError` where it is none, or two of its columns have one name."""
        try:
            # Dataset.from_parquet would copy the file into a cache and take brackets in its name for a pattern.
            file = ParquetFile(pyarrow.BufferReader(raw))
            names = list(file.schema_arrow.names)
            twice = sorted({column for column in names if names.count(column) > 1})
            if not twice:
                table = file.read()
                return cls(name, table, _features(table.schema.metadata or {}))
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{name} is no parquet file: {reason}", "write it anew or give another"
            ) from error
        raise DataError(f"{name} has two columns named {some(twice)}", "rename one of them")

    def column(self, name: str) -> list[Any]:
        """The values of a column; raises :class:`DataError` where Python cannot hold them."""
        if name not in self._values:
            try:
                values = self._table.column(name).to_pylist(maps_as_pydicts="lossy")
            except _UNREADABLE as error:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{self.name}: column {name} cannot be read: {reason}",
                    "write that column as text, or name another one in data.columns",
                ) from error
            feature = self._features.get(name)
            self._values[name] = [_named(feature, value) for value in values] if feature else values
        return self._values[name]

    def row(self, index: int) -> "Row":
        """One row; nothing is converted yet."""
        return Row(self, index)


class Row(Mapping[str, Any]):
    """A row of :class:`Columns`."""

    __slots__ = ("_columns", "_index")

    def __init__(self, columns: Columns, index: int) -> None:
        self._columns = columns
        self._index = index

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns.names:
            raise KeyError(name)
        return self._columns.column(name)[self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, object]:
    """What ``datasets`` wrote about the columns; nothing for those that it cannot read, or did not write."""
    try:
        written = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        columns = list(written.items())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    found: dict[str, object] = {}
    for name, value in columns:
        try:
            found[name] = Features.from_dict({name: value})[name]
        except _UNREADABLE:
            continue
    return found


def _named(feature: object, value: Any) -> Any:
    """``value`` with the names of class labels in the place of their numbers."""
    match feature:
        case ClassLabel(names=names) if isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        case List() | LargeList() if isinstance(value, list):
            return [_named(feature.feature, item) for item in value]
        case dict() if isinstance(value, dict):
            return {key: _named(feature.get(key), item) for key, item in value.items()}
    return value
