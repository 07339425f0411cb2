import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.errors import DataError, StorageError
from train.data.clean import CONTRADICTION, REPEAT, leak
from train.data.examples import BINARY, EMPTY_TEXT, too_long
from train.data.prepare import DataSpec, Prepared, describe, prepare
from train.data.rows import fingerprint
from train.data.text import fold

SHARED = Path(__file__).parents[4] / "shared" / "data"
SPLITS = ("train", "validation", "test")
FILES = {"train.jsonl", "validation.jsonl", "test.jsonl", "task.json", "data.json"}

Pairs = list[tuple[str, str]]


def pairs(count: int = 40, start: int = 0) -> Pairs:
    return [
        (f"Message number {number}", "odd" if number % 2 else "even")
        for number in range(start, start + count)
    ]


def write(path: Path, rows: Pairs) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def rows(prepared: Prepared, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (prepared.folder / f"{split}.jsonl").read_text().splitlines()]


def texts(prepared: Prepared, split: str) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows(prepared, split)]


def run(tmp_path: Path, train: Pairs, **spec: Any) -> Prepared:
    return prepare(DataSpec(train=write(tmp_path / "train.jsonl", train), **spec), tmp_path / "out")


def test_writes_rows_task_and_report(tmp_path: Path) -> None:
    prepared = run(tmp_path, pairs())
    assert {path.name for path in prepared.folder.iterdir()} == FILES
    assert prepared.counts == {"train": 32, "validation": 4, "test": 4}
    system = {"role": "system", "content": "Classify the message. Answer with one label. Labels: even, odd."}
    ids = set()
    for split in SPLITS:
        for row in rows(prepared, split):
            assert list(row) == ["id", "prompt", "completion"]
            assert row["prompt"][0] == system
            number = int(row["prompt"][1]["content"].split()[-1])
            assert row["completion"] == [{"role": "assistant", "content": "odd" if number % 2 else "even"}]
            ids.add(row["id"])
    assert len(ids) == 40
    task = json.loads((prepared.folder / "task.json").read_text())
    assert task["kind"] == "label"
    assert task["labels"] == ["even", "odd"]
    about = json.loads((prepared.folder / "data.json").read_text())
    assert about["fingerprint"] == prepared.fingerprint
    assert about["spec"]["seed"] == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_reports_what_is_dropped_and_where(tmp_path: Path) -> None:
    bad = [
        ("", "odd"),
        ("\0\1", "odd"),
        ("x" * 1_000_000, "odd"),
        ("Message  number 0".replace("  ", " "), "even"),
    ]
    prepared = run(tmp_path, [*bad[:3], *pairs(), bad[3]])
    assert {(drop.reason, drop.rows) for drop in prepared.report.drops} == {
        (EMPTY_TEXT, (1,)),
        (BINARY, (2,)),
        (too_long(32_000), (3,)),
        (REPEAT, (44,)),
    }
    assert sum(prepared.counts.values()) == 40
    lines = describe(prepared)
    assert lines[0] == "train: train.jsonl, 44 rows as labelled (text, label)"
    assert "    1 that repeat another row (line 44)" in lines
    assert "splits: train 32, validation 4, test 4" in lines
    assert lines[-1] == f"fingerprint: {prepared.fingerprint[:12]}"


def test_text_with_two_answers_follows_the_majority_and_a_tie_drops_it(tmp_path: Path) -> None:
    votes = [("most", "odd"), ("most", "odd"), ("most", "even"), ("tie", "odd"), ("tie", "even")]
    prepared = run(tmp_path, [*pairs(), *votes], test_fraction=0, validation_fraction=0)
    assert prepared.report.dropped(reason=CONTRADICTION) == 3
    assert prepared.report.dropped(reason=REPEAT) == 1
    kept = {row["prompt"][-1]["content"]: row["completion"][0]["content"] for row in rows(prepared, "train")}
    assert kept["most"] == "odd"
    assert "tie" not in kept


def test_free_text_may_have_two_answers(tmp_path: Path) -> None:
    data = [{"prompt": f"q{number}", "completion": f"an answer, the {number}th"} for number in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [*data, {"prompt": "q1", "completion": "another answer"}])))
    prepared = prepare(DataSpec(train=str(path)), tmp_path / "out")
    assert prepared.task.kind == "text"
    assert sum(prepared.counts.values()) == 21
    assert prepared.report.drops == ()
    assert [message["role"] for message in rows(prepared, "train")[0]["prompt"]] == ["user"]


def test_given_test_stays_what_it_is_and_train_yields(tmp_path: Path) -> None:
    test = [("MESSAGE number 3", "odd"), ("new", "odd"), ("new", "odd"), ("new", "even"), ("third", "other")]
    prepared = run(tmp_path, pairs(), test=write(tmp_path / "test.jsonl", test))
    assert texts(prepared, "test") == [text for text, _ in test]
    assert len({row["id"] for row in rows(prepared, "test")}) == 5
    assert prepared.report.dropped("train.jsonl", leak("test")) == 1
    assert "Message number 3" not in texts(prepared, "train") + texts(prepared, "validation")
    assert prepared.counts["train"] + prepared.counts["validation"] == 39
    assert prepared.task.labels == ("even", "odd", "other")
    assert "test.jsonl: 2 with a text that came before (lines 3, 4), kept as given" in prepared.report.notes
    assert "1 test labels are not in train: other" in prepared.report.notes
    system = {row["prompt"][0]["content"] for split in SPLITS for row in rows(prepared, split)}
    assert system == {"Classify the message. Answer with one label. Labels: even, odd."}


def test_given_validation_yields_to_the_test_and_wins_over_train(tmp_path: Path) -> None:
    prepared = run(
        tmp_path,
        pairs(),
        validation=write(tmp_path / "v.jsonl", [("Message number 1", "odd"), ("shared", "odd")]),
        test=write(tmp_path / "t.jsonl", [("Shared", "odd"), ("other", "even")]),
    )
    assert prepared.counts == {"train": 39, "validation": 1, "test": 2}
    assert prepared.report.dropped("v.jsonl", leak("test")) == 1
    assert prepared.report.dropped("train.jsonl", leak("validation")) == 1


def chats(path: Path, rows: list[tuple[str, str, str]]) -> str:
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "system", "content": system},
                        {"role": "user", "content": text},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
            + "\n"
            for system, text, answer in rows
        )
    )
    return str(path)


def test_a_dated_system_message_does_not_make_another_text(tmp_path: Path) -> None:
    data = [
        (f"It is day {day}.", f"Question {number}?", f"On day {day} it is {number}")
        for day in range(10)
        for number in range(20)
    ]
    prepared = prepare(DataSpec(train=chats(tmp_path / "train.jsonl", data)), tmp_path / "out")
    assert prepared.counts == {"train": 160, "validation": 20, "test": 20}
    asked = [set(texts(prepared, split)) for split in SPLITS]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 20
    test = chats(tmp_path / "test.jsonl", [("It is tomorrow.", "question 3?", "Three")])
    prepared = prepare(DataSpec(train=str(tmp_path / "train.jsonl"), test=test), tmp_path / "out")
    assert prepared.report.dropped("train.jsonl", leak("test")) == 10


def test_repeats_and_contradictions_see_the_system_message(tmp_path: Path) -> None:
    data = [(f"Say {word}.", f"Question {number}?", word) for number in range(20) for word in ("a", "b", "b")]
    prepared = prepare(DataSpec(train=chats(tmp_path / "train.jsonl", data)), tmp_path / "out")
    assert prepared.task.kind == "label"
    assert prepared.report.dropped() == prepared.report.dropped(reason=REPEAT) == 20
    assert sum(prepared.counts.values()) == 40


def test_texts_that_only_the_system_message_tells_apart_are_noted(tmp_path: Path) -> None:
    data = [(f"Passage {number}", "Sum it up.", f"This is about {number}") for number in range(20)]
    prepared = prepare(DataSpec(train=chats(tmp_path / "train.jsonl", data)), tmp_path / "out")
    assert prepared.counts["train"] == 20
    assert any(note.startswith("train has 1 different text only") for note in prepared.report.notes)


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    train = write(tmp_path / "a" / "data.jsonl", pairs())
    test = write(tmp_path / "b" / "data.jsonl", [("", "odd"), ("new", "odd")])
    prepared = prepare(DataSpec(train=train, test=test), tmp_path / "out")
    assert [drop.source for drop in prepared.report.drops] == [test]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_files_do_not_depend_on_row_order(tmp_path: Path, chance: random.Random) -> None:
    data = [
        *pairs(30),
        ("message NUMBER 7", "odd"),
        ("tie", "odd"),
        ("tie", "even"),
        ("Message number 2", "even"),
    ]
    one = run(tmp_path, data)
    before = {name: (one.folder / f"{name}.jsonl").read_bytes() for name in SPLITS}
    chance.shuffle(data)
    two = run(tmp_path, data)
    assert two.fingerprint == one.fingerprint
    assert {name: (two.folder / f"{name}.jsonl").read_bytes() for name in SPLITS} == before
    folded = [{fold(text) for text in texts(two, split)} for split in SPLITS]
    assert sum(map(len, folded)) == len(set.union(*folded))


def test_fingerprint_sees_content_seed_and_instruction(tmp_path: Path) -> None:
    prints = {
        run(tmp_path, pairs()).fingerprint,
        run(tmp_path, pairs(), seed=1).fingerprint,
        run(tmp_path, pairs(), system="Sort into {labels}").fingerprint,
        run(tmp_path, [*pairs(), ("more", "odd")]).fingerprint,
    }
    assert len(prints) == 4
    assert run(tmp_path, pairs()).fingerprint in prints


def test_fingerprint_sees_every_row_and_its_split_but_not_the_order() -> None:
    same = fingerprint({"train": ["a", "b"], "test": ["c"]})
    assert fingerprint({"test": ["c"], "train": ["b", "a"]}) == same
    assert fingerprint({"train": ["a", "x"], "test": ["c"]}) != same
    assert fingerprint({"train": ["a"], "test": ["b", "c"]}) != same


def test_limit_takes_a_sample_that_does_not_depend_on_order(tmp_path: Path) -> None:
    one = run(tmp_path, pairs(200), limit=50)
    assert sum(one.counts.values()) == 50
    assert run(tmp_path, pairs(200)[::-1], limit=50).fingerprint == one.fingerprint
    assert one.report.notes == ("data.limit: a sample of 50 of 200 usable rows is taken",)


def test_notes_on_labels(tmp_path: Path) -> None:
    prepared = run(tmp_path, [*pairs(), ("rare text", "rare"), ("case", "Odd")])
    assert "2 labels have one text only, which is in train: Odd, rare" in prepared.report.notes
    assert "labels differ in case only: Odd / odd" in prepared.report.notes


def test_builtin_dataset_keeps_its_splits(tmp_path: Path) -> None:
    prepared = prepare(DataSpec(), tmp_path / "out")
    assert prepared.task.kind == "json"
    assert prepared.task.label_field == "intent"
    assert min(prepared.counts.values()) > 0
    assert prepared.report.dropped() == 0


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (pairs(9), r"train\.jsonl has 9 usable rows, but 10 are needed \(9 rows read\)"),
        (
            [pairs(1)[0]] * 20,
            r"has 1 usable row, but 10 are needed \(20 rows read: 19 that repeat another row\)",
        ),
        ([("", "odd")] * 20, r"no usable row \(20 rows read: 20 with an empty text\)"),
        (
            [(f"text {n}", "same") for n in range(20)],
            r"one label only \(same\), so there is nothing to learn \(20 rows read\)",
        ),
        (
            [*[(f"text {n}", "same") for n in range(20)], *[(f"\0 {n}", "other") for n in range(12)]],
            r"one label only \(same\), so there is nothing to learn \(32 rows read: 12 with binary data",
        ),
    ],
)
def test_too_little_to_learn_from(tmp_path: Path, train: Pairs, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, train)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_too_little_is_left_after_the_leak_check(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", pairs())
    with pytest.raises(DataError, match=r"has 0 usable rows.*40 with a text that is in the test data too"):
        run(tmp_path, pairs(), test=test)


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs())
    (tmp_path / "chat.csv").write_text("question,answer\nwho,me\n")
    for spec, message in [
        (DataSpec(train=train, test=str(tmp_path / "chat.csv")), "chat.csv is of the form question_answer"),
        (DataSpec(train=train, test=f"{tmp_path}/./train.jsonl"), "given as both train and test data"),
        (DataSpec(train="builtin:nothing"), "no built-in dataset 'builtin:nothing'"),
        (DataSpec(train=train, test=str(tmp_path / "none.csv")), "does not exist"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            prepare(spec, tmp_path / "new" / "out")
        assert caught.value.hint
    assert not (tmp_path / "new").exists()


def test_replaces_its_own_files_only(tmp_path: Path) -> None:
    run(tmp_path, pairs())
    second = run(tmp_path, pairs(60))
    assert len(rows(second, "train")) == second.counts["train"] == 48
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="holds other files"):
        run(tmp_path, pairs())
    assert (tmp_path / "out" / "thesis.txt").exists()
    assert len(rows(second, "train")) == 48


def test_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs(400))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pathlib import Path; from serve.errors import StorageError\n"
        "from train.data.prepare import DataSpec, prepare\n"
        "try: prepare(DataSpec(train=sys.argv[1]), Path(sys.argv[2]))\n"
        "except StorageError as error: sys.exit(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, train, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "out cannot be written: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_reading_text_files_imports_nothing_heavy(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs())
    code = (
        "import sys; from pathlib import Path; from train.data.prepare import DataSpec, prepare\n"
        "prepare(DataSpec(train=sys.argv[1]), Path(sys.argv[2]))\n"
        "print([name for name in ('torch', 'datasets', 'pandas', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, train, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not (SHARED / "banking77").is_dir(), reason="the public data set is not here")
def test_banking77(tmp_path: Path) -> None:
    folder = SHARED / "banking77"
    prepared = prepare(
        DataSpec(train=str(folder / "train.csv"), test=str(folder / "test.csv")), tmp_path / "out"
    )
    assert prepared.counts["test"] == 3080
    assert sum(prepared.counts.values()) + prepared.report.dropped() == 10_003 + 3080
    assert prepared.task.kind == "label"
    assert len(prepared.task.labels or ()) == 77
    folded = [{fold(text) for text in texts(prepared, split)} for split in SPLITS]
    assert len(set.union(*folded)) == sum(map(len, folded))
