"""Files become tables: records of named fields, each with its line or row number.

Parquet is in a module of its own. The CSV reader of ``datasets`` takes the texts "NA" and "null" for missing, turns a
column of integers with one gap into floats, fails on integers over 64 bits; its JSON reader fails where a field is a
string in one row and a number in another; both forget line numbers. These we read with the standard library.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from serve.errors import DataError
from train.data.report import Unit, some
from train.data.text import is_binary

TOO_MANY_FIELDS = "with more fields than the header"

# Rows as Python objects, cleaned copies and written text: measured 35 on rows of 60 bytes, 10 on 500.
_MEMORY_PER_BYTE = 30
# Training and serving need the rest.
_MEMORY_SHARE = 1 / 3
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Excel's own first line of a CSV file; it is no row.
_SEPARATOR_LINE = re.compile(r'"?sep=(?P<separator>[^\r\n"])"?[,;\t]*(\r\n|\r|\n)', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file; ``problem`` says why it cannot be used, if it cannot."""

    number: int
    fields: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows; ``columns`` in the order in which they first appear."""

    name: str
    unit: Unit
    columns: tuple[str, ...]
    records: list[Record]


def read(path: Path, name: str = "", memory: int | None = None) -> Table:
    """Read ``path`` by its extension, else raise :class:`DataError`; ``name`` is what messages call it.

    Files are read whole, so text that would take more than a third of ``memory`` (bytes, by default what is
    available now) is refused.
    """
    name = name or path.name
    if path.is_dir():
        raise DataError(f"{path} is a folder", "name one file in it")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{name}: extension {path.suffix or '(none)'} is not known",
            f"give a file that ends in {', '.join(_READERS)} (unpacked)",
        )
    try:
        if reader is not _read_parquet:
            available = psutil.virtual_memory().available if memory is None else memory
            _check_size(name, path.stat().st_size, available)
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path to the data file") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", "check the file"
        ) from error
    if not raw.strip():
        raise DataError(f"{name} is empty", "give a file with rows in it")
    table = reader(name, raw)
    if not table.records:
        raise DataError(f"{name} has no rows", "give a file with rows below the header")
    return table


def _check_size(name: str, size: int, available: int) -> None:
    most = int(available * _MEMORY_SHARE / _MEMORY_PER_BYTE)
    if size > most:
        raise DataError(
            f"{name} has {_spell_size(size)}, but {_spell_size(most)} is the most that can be read with "
            f"{_spell_size(available)} of memory available (files are read whole)",
            "train on a sample of it (such as: shuf -n 100000), split it, or write the columns that are needed "
            "to a .parquet file",
        )


def _spell_size(size: int) -> str:
    if size < 2**20:
        return f"{size:,} bytes"
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def from_rows(name: str, rows: list[dict[str, Any]]) -> Table:
    """Rows that are in memory already."""
    return _table(name, "row", [Record(number, row) for number, row in enumerate(rows, 1)])


def _table(name: str, unit: Unit, records: list[Record]) -> Table:
    columns: dict[str, None] = {}
    for record in records:
        columns.update(dict.fromkeys(record.fields))
    return Table(name, unit, tuple(columns), records)


def _decode(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        utf16 = raw.startswith(_UTF16_MARKS)
        encoding = "UTF-16" if utf16 else "WINDOWS-1252"
        archive = "" if utf16 else "; unpack it if it is an archive"
        raise DataError(
            f"{name} is not UTF-8 text (byte 0x{raw[error.start]:02x} in line {line})",
            f"save it as UTF-8, such as with: iconv -f {encoding} -t UTF-8{archive}",
        ) from None


def _parse(name: str, text: str, line: int) -> Any:
    try:
        # NaN and Infinity are no JSON, but Python writes them where a value is missing.
        return json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        hint = "correct that line"
        if error.msg == "Extra data":
            hint = "put the objects into one list, [ … , … ], or each on one line (jq -c . FILE > FILE.jsonl)"
        raise DataError(f"{name}: invalid JSON in {where}: {error.msg}", hint) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{name}: JSON in line {line} cannot be read: {error}", "correct that line") from None


def _read_jsonl(name: str, raw: bytes) -> Table:
    records = []
    for number, line in enumerate(_decode(name, raw).split("\n"), 1):
        if not line.strip():
            continue
        value = _parse(name, line, number)
        if not isinstance(value, dict):
            hint = "rename it to .json" if isinstance(value, list) else "write one JSON object in each line"
            raise DataError(f"{name}: line {number} is {_kind(value)}, not an object", hint)
        records.append(Record(number, value))
    return _table(name, "line", records)


def _read_json(name: str, raw: bytes) -> Table:
    text = _decode(name, raw)
    if _is_jsonl(text):
        return _read_jsonl(name, raw)
    value = _parse(name, text, 1)
    if isinstance(value, dict):
        lists = [rows for rows in value.values() if _is_rows(rows)]
        if len(lists) != 1:
            raise DataError(
                f"{name} is {_kind(value)} without one list of rows (keys: {some(value)})",
                "write a list of objects, one object for each row",
            )
        value = lists[0]
    if not isinstance(value, list):
        raise DataError(f"{name} is {_kind(value)}, not a list", "write a list of objects, one for each row")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise DataError(f"{name}: row {number} is {_kind(row)}, not an object", "correct that row")
    return from_rows(name, value)


def _is_jsonl(text: str) -> bool:
    """Whether the first of several lines is an object by itself: JSON lines that are called ``.json``."""
    first, _, rest = text.strip().partition("\n")
    if not (first.lstrip().startswith("{") and rest.lstrip().startswith("{")):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else f"a {type(value).__name__}"


def _read_csv(name: str, raw: bytes) -> Table:
    text = _decode(name, raw)
    if said := _SEPARATOR_LINE.match(text):
        # A blank line in its place keeps the line numbers.
        return _read_delimited(name, "\n" + text[said.end() :], said["separator"])
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    # Spreadsheets of many countries write semicolons, as the comma is their decimal point.
    delimiter = "," if "," in header else ";" if ";" in header else "\t" if "\t" in header else ","
    return _read_delimited(name, text, delimiter)


def _read_tsv(name: str, raw: bytes) -> Table:
    text = _decode(name, raw)
    try:
        return _read_delimited(name, text, "\t")
    except DataError:
        # Many TSV files quote nothing, so a quotation mark is part of the text.
        return _read_delimited(name, text, "\t", quoting=csv.QUOTE_NONE)


def _read_delimited(
    name: str, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Table:
    lines = _csv_lines(name, text, delimiter, quoting)
    _, header = next(lines, (0, []))
    columns = [column.strip() for column in header]
    if any(is_binary(column) for column in columns):
        raise DataError(f"{name} is binary, not text", "give a text file")
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise DataError(f"{name} has two columns named {some(twice)}", "rename one of them")
    records = []
    for number, values in lines:
        # pandas writes its index as a first column without a name.
        fields = {column: value for column, value in zip(columns, values, strict=False) if column}
        records.append(Record(number, fields, TOO_MANY_FIELDS if len(values) > len(columns) else ""))
    return Table(name, "line", tuple(column for column in columns if column), records)


def _csv_lines(
    name: str, text: str, delimiter: str, quoting: Literal[0, 3]
) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of the line on which it starts."""
    # The default limit of 128 KiB would end the reading at a row that we want to drop and report.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=quoting,
        strict=True,
    )
    start = 1
    try:
        for values in reader:
            if values:
                yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}: the row that starts in line {start} cannot be read: {error}",
            "put fields that hold quotation marks in quotation marks, and double those inside",
        ) from None


def _read_parquet(name: str, raw: bytes) -> Table:
    # Imported here, as pyarrow and datasets take a while and most files are text.
    from train.data.parquet import Columns

    columns = Columns.read(name, raw)
    records = [Record(number, columns.row(number - 1)) for number in range(1, columns.rows + 1)]
    return Table(name, "row", columns.names, records)


_READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
