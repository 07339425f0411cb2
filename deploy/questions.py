"""Where the questions of an evaluation come from."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from serve.errors import DataError
from serve.registry import Version
from train.data.prepare import DataSpec, Prepared, prepare
from train.data.questions import prepare_questions
from train.data.rows import fingerprint_of


class Questions(NamedTuple):
    """The files of an evaluation: questions with answers, and what kind of answer is expected.

    ``evidence`` says whether they were held out for this version, so that the gate may rely on the outcome.
    """

    questions: Path
    task: Path
    evidence: bool = False


def recorded(version: Version) -> Questions:
    """The held-out split that the version was trained beside, else raise :class:`DataError`."""
    paths = [Path(version.lineage.files.get(name, "")) for name in ("test", "task")]
    for path in paths:
        if not path.is_file():
            gone = f": {path} is gone" if path.name else ""
            raise DataError(
                f"{version.ref} has no held-out questions on record{gone}",
                "give a file with questions with --data",
            )
    if _fingerprint(paths[0].parent) != version.lineage.data_fingerprint:
        raise DataError(
            f"the questions in {paths[0].parent} are no longer those that were held out for {version.ref}",
            "train it again, or give a file with questions with --data",
        )
    return Questions(paths[0], paths[1], evidence=True)


def from_data(home: Path, version: Version, data: Path) -> Questions:
    """Questions from ``data``: a folder that was prepared before, or any file that can be trained on.

    A file is read as the version's own test file would have been, from what was recorded beside that; the data that
    the version was trained on is read again only where this is gone. For an adapter that was not trained here, all of
    the file are questions.
    """
    if data.is_dir():
        if not (data / "test.jsonl").is_file() or not (data / "task.json").is_file():
            raise DataError(
                f"{data} has no test.jsonl and task.json", "give a data file, or a folder of prepared data"
            )
        return Questions(data / "test.jsonl", data / "task.json")
    recipe = version.lineage.recipe
    if recipe is None:
        spec = DataSpec(train=str(data), validation_fraction=0, test_fraction=0)
        prepared = prepare_in(home, spec)
        # Nothing is known of what it was trained on: these are the only questions that it can have.
        return Questions(prepared.file("train"), prepared.folder / "task.json", evidence=True)
    beside = Path(version.lineage.files.get("task", "")).parent
    if all((beside / name).is_file() for name in ("task.json", "data.json")):
        folder = prepare_questions(data, beside, home)
        return Questions(folder / "test.jsonl", folder / "task.json")
    spec = DataSpec.model_validate({**recipe["data"], "test": str(data)})
    prepared = prepare_in(home, spec)
    return Questions(prepared.file("test"), prepared.folder / "task.json")


def _fingerprint(folder: Path) -> str | None:
    try:
        return fingerprint_of(folder)
    except (OSError, ValueError):
        return None


def prepare_in(home: Path, spec: DataSpec) -> Prepared:
    """Clean and split data into a folder of the home that is named by what it was made from."""
    key = hashlib.sha256(spec.model_dump_json().encode())
    for path in (spec.train, spec.validation, spec.test):
        if path is not None and (place := Path(path).expanduser()).is_file():
            with place.open("rb") as file:
                key.update(hashlib.file_digest(file, "sha256").digest())
    return prepare(spec, home / "data" / key.hexdigest()[:12])
