"""Where the questions of an evaluation come from, after a run is over."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pipeline import register
from deploy.questions import from_data, prepare_in, recorded
from evalsuite.load.adapters import write_adapter
from evalsuite.tasks import read_questions, read_task
from serve.config import Settings
from serve.errors import AdapterRejected, DataError, StorageError, TenonError
from serve.registry import Registry, Version
from serve.registry.base import identify_base
from train import runs
from train.data.spec import DataSpec
from train.launch import TrainResult
from train.recipe import Recipe


def write_rows(path: Path, count: int = 20) -> None:
    lines = [f"message {number},{'ab'[number % 2]}" for number in range(count)]
    path.write_text("\n".join(["text,label", *lines]))


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Version]:
    """A version that was registered in a folder of its own, from a file that was named relative to it."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    write_rows(Path("train.csv"))
    settings = Settings.read(home=tmp_path / "home")
    recipe = Recipe.load(None, ["data.train=train.csv", "data.system='One of: {labels}'"])
    base = identify_base("tenon-tiny")
    prepared = prepare_in(settings.home, recipe.data)
    adapter = write_adapter(tmp_path / "adapter", base, seed=0)
    result = TrainResult(tmp_path / "run", adapter, 1, None, {}, 1.0)
    with Registry.of(settings) as registry:
        yield register(settings, recipe, registry, prepared, base, result)


def test_questions_are_read_from_any_folder_without_the_training_file(
    tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert version.lineage.recipe is not None
    assert version.lineage.recipe["data"]["train"] == str(tmp_path / "there" / "train.csv")
    (tmp_path / "there" / "train.csv").unlink()
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("text,label\nnew one,b\nanother,c\nnew one,b\n")
    asked = from_data(tmp_path / "home", version, Path("q.csv"))
    assert not asked.evidence
    task = read_task(asked.task)
    assert task.labels == ("a", "b", "c")
    questions = read_questions(asked.questions, task)
    assert [(question.text, question.expected) for question in questions] == [
        ("new one", "b"),
        ("another", "c"),
        ("new one", "b"),
    ]
    assert questions[0].messages[0].content == "One of: a, b"


def test_questions_of_another_form_name_what_is_missing(tmp_path: Path, version: Version) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "x", "answer": "a"}\n')
    with pytest.raises(DataError, match=r"q\.jsonl has no columns for the form labelled"):
        from_data(tmp_path / "home", version, path)


def test_held_out_questions_are_those_of_the_lineage(version: Version) -> None:
    asked = recorded(version)
    assert asked.evidence
    assert len(read_questions(asked.questions, read_task(asked.task))) == 2


def test_data_below_the_home_folder_has_a_folder_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = []
    for count in (20, 40):
        write_rows(tmp_path / "train.csv", count)
        folders.append(prepare_in(tmp_path / "home", DataSpec(train="~/train.csv")).folder)
    assert folders[0] != folders[1]
    assert all((folder / "test.jsonl").is_file() for folder in folders)


@pytest.mark.parametrize(
    ("refusal", "resumable"),
    [(StorageError("no space left", "free some"), True), (AdapterRejected("no", "train"), False)],
)
def test_a_run_that_could_not_be_registered_is_kept_for_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: TenonError, resumable: bool
) -> None:
    settings = Settings.read(home=tmp_path / "home")
    write_rows(tmp_path / "train.csv")
    recipe = Recipe.load(None, [f"data.train={tmp_path / 'train.csv'}"])
    base, prepared = identify_base("tenon-tiny"), prepare_in(settings.home, recipe.data)
    trained = runs.create(settings.runs, recipe.name, "key")
    trained.update(status="finished", resumable=True)
    adapter = write_adapter(tmp_path / "adapter", base, seed=0)
    result = TrainResult(trained.folder, adapter, 1, None, {}, 1.0)

    def refuse(*_: object, **__: object) -> Version:
        raise refusal

    def unfinished() -> bool:
        return runs.find_unfinished(settings.runs, recipe.name, "key") is not None

    with Registry.of(settings) as registry:
        with monkeypatch.context() as patch:
            patch.setattr(registry, "register", refuse)
            with pytest.raises(type(refusal)):
                register(settings, recipe, registry, prepared, base, result)
        assert unfinished() == resumable
        first = register(settings, recipe, registry, prepared, base, result)
        assert not unfinished()
        # Interrupted between the two, it is found finished again, and registered already.
        again = dataclasses.replace(result, resumed_from=result.steps)
        assert register(settings, recipe, registry, prepared, base, again).ref == first.ref
        assert register(settings, recipe, registry, prepared, base, result).ref != first.ref


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rows_that_were_changed_are_no_evidence(version: Version, split: str) -> None:
    path = Path(version.lineage.files["test"]).with_name(f"{split}.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["completion"][0]["content"] = "b" if rows[0]["completion"][0]["content"] == "a" else "a"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no longer those that were held out"):
        recorded(version)


def test_a_row_that_was_taken_away_is_missed(version: Version) -> None:
    path = Path(version.lineage.files["test"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="no longer those that were held out"):
        recorded(version)
