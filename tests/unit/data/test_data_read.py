import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from serve.errors import DataError
from train.data.read import TOO_MANY_FIELDS, read


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return [(record.number, dict(record.fields)) for record in read(path).records]


def test_csv_with_mark_quotes_newlines_and_line_numbers(tmp_path: Path) -> None:
    text = '\ufefftext,label\r\n"a ""quoted"", two\r\nlines",x\r\n\r\nlast,y\r\n'
    path = write(tmp_path / "a.csv", text)
    assert rows(path) == [
        (2, {"text": 'a "quoted", two\r\nlines', "label": "x"}),
        (5, {"text": "last", "label": "y"}),
    ]
    assert read(path).columns == ("text", "label")


def test_csv_keeps_words_and_numbers_as_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nNA,12345678901234567890123\nnull,007\n")
    assert [fields for _, fields in rows(path)] == [
        {"text": "NA", "label": "12345678901234567890123"},
        {"text": "null", "label": "007"},
    ]


def test_csv_with_semicolons_and_an_index_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.CSV", ";text;label\n0;hello, you;greet\n")
    assert rows(path) == [(2, {"text": "hello, you", "label": "greet"})]


def test_csv_with_carriage_returns_alone_tells_its_separator_by_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text;label\rhello, you;greet\r")
    assert [fields for _, fields in rows(path)] == [{"text": "hello, you", "label": "greet"}]


@pytest.mark.parametrize("said", ["sep=;", "\ufeffSEP=;", '"sep=;"'])
def test_csv_with_the_first_line_that_excel_writes(tmp_path: Path, said: str) -> None:
    path = write(tmp_path / "a.csv", f"{said}\r\ntext;label\r\nhello, you;greet\r\n")
    assert rows(path) == [(3, {"text": "hello, you", "label": "greet"})]


def test_csv_with_a_separator_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sep=|\ntext|label\na;b, c|greet\n")
    assert rows(path) == [(3, {"text": "a;b, c", "label": "greet"})]


def test_json_objects_one_after_another_have_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Extra data") as caught:
        read(write(tmp_path / "a.json", '{\n "a": 1\n}\n{\n "a": 2\n}\n'))
    assert "jq -c" in caught.value.hint


def test_csv_marks_a_row_with_too_many_fields(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "a.csv", "text,label\na,b,c\nd\n")).records
    assert first.problem == TOO_MANY_FIELDS
    assert (second.problem, dict(second.fields)) == ("", {"text": "d"})


def test_csv_with_a_field_beyond_the_default_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{'x' * 1_000_000},a\n")
    assert len(rows(path)[0][1]["text"]) == 1_000_000


def test_tsv_with_and_without_quoting(tmp_path: Path) -> None:
    quoted = write(tmp_path / "q.tsv", 'text\tlabel\n"a\tb"\tx\n')
    assert rows(quoted) == [(2, {"text": "a\tb", "label": "x"})]
    bare = write(tmp_path / "b.tsv", 'text\tlabel\n"hi" she said\tx\nplain\ty\n')
    assert rows(bare) == [(2, {"text": '"hi" she said', "label": "x"}), (3, {"text": "plain", "label": "y"})]


def test_jsonl_with_mixed_types_blank_lines_and_large_integers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"a": 1}\n\n{"b": "x", "a": 123456789012345678901234}\r\n{"a": NaN}\n'
    )
    assert rows(path) == [
        (1, {"a": 1}),
        (3, {"b": "x", "a": 123456789012345678901234}),
        (4, {"a": None}),
    ]
    assert read(path).columns == ("a", "b")


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": 2}]', '{"version": "1", "data": [{"a": 1}, {"a": 2}]}', '{"a": 1}\n{"a": 2}\n'],
)
def test_json_as_list_in_an_object_or_as_lines(tmp_path: Path, text: str) -> None:
    assert rows(write(tmp_path / "a.json", text)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_json_that_is_spread_over_lines(tmp_path: Path) -> None:
    value = {"data": [{"a": {"b": 1}}]}
    assert rows(write(tmp_path / "a.json", json.dumps(value, indent=1))) == [(1, {"a": {"b": 1}})]


def test_parquet_names_class_labels_and_keeps_messages(tmp_path: Path) -> None:
    path = tmp_path / "part[1].parquet"
    data = Dataset.from_dict(
        {"text": ["a", None], "label": [1, None], "messages": [[{"role": "user"}], None]},
        features=Features(
            {
                "text": Value("string"),
                "label": ClassLabel(names=["no", "yes"]),
                "messages": List({"role": Value("string")}),
            }
        ),
    )
    with path.open("wb") as file:
        data.to_parquet(file)
    assert rows(path) == [
        (1, {"text": "a", "label": "yes", "messages": [{"role": "user"}]}),
        (2, {"text": None, "label": None, "messages": None}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "hello", r"a\.txt: extension \.txt is not known"),
        ("a", "hello", r"extension \(none\) is not known"),
        ("a.jsonl.gz", "hello", r"extension \.gz is not known"),
        ("a.csv", "", r"a\.csv is empty"),
        ("a.jsonl", " \n\n", r"a\.jsonl is empty"),
        ("a.csv", "text,label\n", r"a\.csv has no rows"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.csv", b"text,label\nok,a\ncaf\xe9,b\n", r"not UTF-8 text \(byte 0xe9 in line 3\)"),
        ("a.csv", "text,label\n".encode("utf-16"), r"not UTF-8 text \(byte 0xff in line 1\)"),
        ("a.csv", b"\0\1\2\3\n\4,\5\n", r"a\.csv is binary"),
        ("a.csv", "text,text\na,b\n", r"two columns named text"),
        ("a.csv", 'text,label\na,b\n"open,c\nd,e\n', r"row that starts in line 3 cannot be read"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"invalid JSON in line 2, column \d+"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"line 2 is a list, not an object"),
        ("a.jsonl", "[" * 200_000, r"JSON in line 1 cannot be read"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', r"invalid JSON in line 2"),
        ("a.json", '[{"a": 1}, 5]', r"row 2 is a int, not an object"),
        ("a.json", '{"a": 1, "b": [1]}', r"without one list of rows \(keys: a, b\)"),
        ("a.json", '"text"', r"is a str, not a list"),
        ("a.parquet", "PAR1 nothing PAR1", r"a\.parquet is no parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("encoding", "name"), [("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("windows-1252", "WINDOWS-1252")]
)
def test_another_encoding_is_named_in_the_hint(tmp_path: Path, encoding: str, name: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.csv", f"{mark}text,label\ncafé,b\n".encode(encoding)))
    assert f"iconv -f {name} -t UTF-8" in caught.value.hint


def test_a_text_file_beyond_its_share_of_memory_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "hello,greet\n" * 100)
    size = path.stat().st_size
    with pytest.raises(DataError, match=r"a\.csv has 1,211 bytes, but 1,210 bytes is the most") as caught:
        read(path, memory=size * 90 - 1)
    assert "sample" in caught.value.hint
    assert len(read(path, memory=size * 90).records) == 100


def test_parquet_may_be_larger(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"text": ["a"]}).to_parquet(path)
    assert len(read(path, memory=0).records) == 1


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "missing.csv")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "nul\0byte.csv")


def parquet(path: Path, columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> Path:
    """A file with a usable text and label beside ``columns``."""
    table = pa.table({"text": ["hello", "bye"], "label": ["a", "b"], **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array([2**60, 0], pa.timestamp("us")),
        pa.array([0, 1], pa.timestamp("us", "Nowhere/Town")),
    ],
    ids=["map", "beyond year 9999", "unknown zone"],
)
def test_parquet_column_that_is_not_used_may_hold_anything(tmp_path: Path, column: pa.Array) -> None:
    table = read(parquet(tmp_path / "a.parquet", {"more": column}))
    assert table.columns == ("text", "label", "more")
    assert [(row.fields["text"], row.fields["label"]) for row in table.records] == [
        ("hello", "a"),
        ("bye", "b"),
    ]


def test_parquet_column_that_is_used_but_cannot_be_read_is_named_on_one_line(tmp_path: Path) -> None:
    table = read(parquet(tmp_path / "a.parquet", {"more": pa.array([2**60, 0], pa.timestamp("us"))}))
    with pytest.raises(DataError, match=r"a\.parquet: column more cannot be read: ") as caught:
        table.records[1].fields.get("more")
    assert "\n" not in caught.value.message


def test_parquet_maps_are_objects(tmp_path: Path) -> None:
    column = pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))
    assert read(parquet(tmp_path / "a.parquet", {"more": column})).records[0].fields["more"] == {"a": 1}


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has two columns named text"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "written",
    [
        b"garbage",
        b"[1]",
        b'{"info": {"features": 5}}',
        b'{"info": {"features": {"label": {"_type": "FromTheFuture"}, "text": {"dtype": "string"}}}}',
    ],
)
def test_parquet_with_metadata_that_datasets_cannot_read(tmp_path: Path, written: bytes) -> None:
    path = parquet(tmp_path / "a.parquet", {}, {b"huggingface": written})
    assert rows(path) == [(1, {"text": "hello", "label": "a"}), (2, {"text": "bye", "label": "b"})]


def test_parquet_names_the_labels_of_a_list(tmp_path: Path) -> None:
    names = List(ClassLabel(names=["joy", "fear"]))
    data = Dataset.from_dict(
        {"text": ["x"], "label": [[1, 0]]}, features=Features({"text": Value("string"), "label": names})
    )
    data.to_parquet(tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, {"text": "x", "label": ["fear", "joy"]})]


def test_an_arrow_error_of_several_lines_becomes_one(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"more": ["x" * 100] * 2})
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + b"\xff" * 60 + raw[64:])
    with pytest.raises(DataError, match="is no parquet file") as caught:
        read(path)
    assert "\n" not in caught.value.message
