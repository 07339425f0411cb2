"""Folders of prepared data: whole, and untouched where they hold the same already."""

import multiprocessing
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from support.interrupts import ctrl_c_works

from serve.errors import StorageError
from train.data.write import write_folder

FILES = {"train.jsonl": "ä\n" * 100, "task.json": "{}\n"}
ROUNDS = 30


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_the_same_files_again_touch_nothing(tmp_path: Path) -> None:
    out = tmp_path / "data" / "abc"
    write_folder(out, FILES)
    before = out.stat().st_ino
    write_folder(out, FILES)
    assert out.stat().st_ino == before
    assert held(out) == FILES
    write_folder(out, {**FILES, "task.json": "[]\n"})
    assert held(out)["task.json"] == "[]\n"
    assert list(out.parent.iterdir()) == [out]


def test_files_of_another_origin_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(StorageError, match="other files"):
        write_folder(tmp_path, FILES)
    assert held(tmp_path) == {"mine": "x"}


def _write_often(out: Path, name: str, together: Barrier) -> None:
    for number in range(ROUNDS):
        together.wait(60)
        write_folder(out, {"train.jsonl": f"{name}{number}\n"})


def test_two_that_write_at_once_both_succeed(tmp_path: Path) -> None:
    out = tmp_path / "data" / "abc"
    spawned = multiprocessing.get_context("spawn")
    together = spawned.Barrier(2)
    writers = [spawned.Process(target=_write_often, args=(out, name, together)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(90)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert held(out)["train.jsonl"] in {f"a{ROUNDS - 1}\n", f"b{ROUNDS - 1}\n"}
    assert list(out.parent.iterdir()) == [out]


def test_an_interrupt_between_old_and_new_leaves_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data" / "abc"
    write_folder(out, FILES)
    really = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        moved = really(path, target)
        signal.raise_signal(signal.SIGINT)
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with ctrl_c_works(), pytest.raises(KeyboardInterrupt):
        write_folder(out, {"task.json": "[]\n", "train.jsonl": "new\n"})
    assert held(out) == {"task.json": "[]\n", "train.jsonl": "new\n"}
    assert list(out.parent.iterdir()) == [out]
