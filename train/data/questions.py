"""Other questions for what was trained on prepared data: they are read as its own test file would have been."""

import hashlib
import json
from pathlib import Path

from serve.errors import DataError
from serve.records import read_json
from train.data.load import load
from train.data.prepare import pretty
from train.data.report import Ledger
from train.data.rows import rows
from train.data.spec import DataSpec
from train.data.tasks import Task
from train.data.write import write_folder


def prepare_questions(file: Path, prepared: Path, home: Path) -> Path:
    """Write the questions of ``file`` and their task into a new folder below ``home``, and return that.

    ``prepared`` is the folder of the data that was trained on: its columns, its system instruction and its kind of
    answer hold for ``file``, too. The training file itself is not read. Raises :class:`DataError` where ``file`` has
    no question of that form, or where ``prepared`` does not say what is needed.
    """
    about, task = read_json(prepared / "data.json"), read_json(prepared / "task.json")
    try:
        form = about["sources"][0]["layout"].split()[0]
        given = {"train": str(file), "validation": None, "test": None, "format": form, "limit": None}
        spec = DataSpec.model_validate({**about["spec"], **given})
        system = str(about["system"])
        recorded = Task.from_json(task)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{prepared} does not say how its data was prepared", "train the version again"
        ) from error
    found = load(spec, Ledger())["train"].examples
    lines = rows(found, system)
    asked = recorded.including(example.answer for example in found)
    files = {
        "test.jsonl": "".join(f"{line}\n" for line in lines),
        "task.json": pretty(asked.to_json()),
    }
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    write_folder(home / "questions" / key, files)
    return home / "questions" / key
