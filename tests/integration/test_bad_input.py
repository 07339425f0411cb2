"""Bad input gets a one-line cause and a way out, and leaves nothing half-written."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import cause_and_hint, tenon
from support.ports import free_port
from support.stack import RunningStack

from evalsuite.load.adapters import write_adapter
from serve.registry import Registry
from serve.registry.base import identify_base

BASE = identify_base("tenon-tiny")


def rows(count: int, label: Callable[[int], str]) -> str:
    return "text,label\n" + "".join(f"message number {i} about something,{label(i)}\n" for i in range(count))


def empty(folder: Path) -> Path:
    (folder / "data.csv").write_text("")
    return folder / "data.csv"


def unknown_columns(folder: Path) -> Path:
    (folder / "data.csv").write_text("alpha,beta\n" + "1,2\n" * 20)
    return folder / "data.csv"


def one_label(folder: Path) -> Path:
    (folder / "data.csv").write_text(rows(40, lambda _: "same"))
    return folder / "data.csv"


def binary(folder: Path) -> Path:
    (folder / "data.csv").write_bytes(os.urandom(4096))
    return folder / "data.csv"


def missing(folder: Path) -> Path:
    return folder / "nowhere.csv"


def all_rows_empty(folder: Path) -> Path:
    (folder / "data.csv").write_text("text,label\n" + ",a\n,b\n" * 20)
    return folder / "data.csv"


def all_rows_huge(folder: Path) -> Path:
    (folder / "data.csv").write_text("text,label\n" + "".join(f'"{"x" * 2**20}",{label}\n' for label in "ab"))
    return folder / "data.csv"


@pytest.mark.parametrize(
    "make", [empty, unknown_columns, one_label, binary, missing, all_rows_empty, all_rows_huge]
)
def test_data_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    data = make(tmp_path)
    done = tenon(tmp_path / "home", "run", "--data", str(data), "--name", "bad", TENON_PORT=str(free_port()))
    cause, _ = cause_and_hint(done)
    assert done.returncode == 2
    assert data.name in cause
    assert nothing_registered(tmp_path / "home")
    assert not list((tmp_path / "home").glob("data/*/*.jsonl"))


def test_bad_rows_are_dropped_and_named(tmp_path: Path) -> None:
    text = (
        rows(60, lambda i: f"label{i % 3}")
        + ',label0\n"bin\x01\x00ary",label1\n"'
        + "x" * 2**20
        + '",label2\n'
    )
    (tmp_path / "data.csv").write_text(text)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: rows\ndata:\n  train: {tmp_path / 'data.csv'}\ntrain:\n  max_steps: 1\n  eval_rows: 20\n"
    )
    done = tenon(tmp_path / "home", "train", str(recipe))
    assert done.returncode == 0, done.stderr
    for line in ("62", "63", "64"):
        assert line in done.stdout
    assert "Registered rows@v1" in done.stdout


def test_recipe_with_a_misspelt_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ntrain:\n  lerning_rate: 0.1\n  epochs: -1\n")
    done = tenon(tmp_path / "home", "train", str(recipe))
    cause, _ = cause_and_hint(done)
    assert done.returncode == 2
    assert "lerning_rate" in cause
    assert "learning_rate" in cause
    assert "epochs" in cause
    assert nothing_registered(tmp_path / "home")


def test_unknown_model_folder(tmp_path: Path) -> None:
    done = tenon(
        tmp_path / "home", "up", "--detach", "--model", "./no-such-model", TENON_PORT=str(free_port())
    )
    cause, _ = cause_and_hint(done)
    assert done.returncode == 2
    assert "no-such-model" in cause


def pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def other_base(folder: Path) -> None:
    narrow = {name: (shape[0] + 8, *shape[1:]) for name, shape in BASE.shapes.items()}
    write_adapter(folder, type(BASE)(**{**vars(BASE), "shapes": narrow}))


def high_rank(folder: Path) -> None:
    write_adapter(folder, BASE, rank=128)


@pytest.mark.parametrize(
    ("spoil", "word"), [(pickle, "adapter_model.bin"), (high_rank, "128"), (other_base, "base")]
)
def test_adapter_that_cannot_be_served(tmp_path: Path, spoil: Callable[[Path], None], word: str) -> None:
    folder = write_adapter(tmp_path / "adapter", BASE)
    spoil(folder)
    done = tenon(tmp_path / "home", "adapters", "add", str(folder), "--name", "bad")
    cause, _ = cause_and_hint(done)
    assert done.returncode == 2
    assert word in cause
    assert nothing_registered(tmp_path / "home")
    assert not list((tmp_path / "home" / "adapters").glob("*"))


def test_port_already_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in (("up", "--detach"), ("run",)):
            done = tenon(tmp_path / "home", *command, "--port", str(port))
            cause, hint = cause_and_hint(done)
            assert done.returncode == 4
            assert str(port) in cause
            assert "--port" in hint


def test_second_up(stack: RunningStack) -> None:
    done = tenon(stack.settings.home, "up", "--detach", "--port", str(stack.settings.port))
    cause, hint = cause_and_hint(done)
    assert done.returncode == 4
    assert "up already" in cause
    assert "tenon down" in hint


def test_unknown_version_and_unknown_setting(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "adapters", "show", "nobody@v1")
    assert done.returncode == 2
    assert "nobody@v1" in cause_and_hint(done)[0]
    done = tenon(tmp_path / "home", "status", TENON_PROT="1")
    assert done.returncode == 2
    assert "TENON_PORT" in cause_and_hint(done)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_full_while_an_adapter_is_stored(tmp_path: Path, small_disk: Path) -> None:
    home = small_disk / "home"
    folder = write_adapter(tmp_path / "adapter", BASE, rank=64)
    done = tenon(home, "adapters", "add", str(folder), "--name", "full")
    cause, _ = cause_and_hint(done)
    assert done.returncode == 7, done.stderr
    assert "space" in cause
    assert nothing_registered(home)
    assert not [path for path in (home / "adapters").rglob("*") if path.is_file()]


def test_disk_full_while_training_saves(tmp_path: Path, small_disk: Path) -> None:
    home = small_disk / "home"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: full\nlora:\n  rank: 64\ntrain:\n  max_steps: 1\n  eval_rows: 20\ndata:\n  limit: 100\n"
    )
    done = tenon(home, "train", str(recipe))
    cause, _ = cause_and_hint(done)
    assert done.returncode == 7, done.stderr
    assert "space" in cause
    assert nothing_registered(home)


def nothing_registered(home: Path) -> bool:
    """Whether the home holds no version."""
    if not (home / "registry.db").exists():
        return True
    registry = Registry.open(home)
    try:
        return registry.versions() == []
    finally:
        registry.close()


def test_json_errors_leave_standard_output_clean(tmp_path: Path) -> None:
    done = tenon(tmp_path / "home", "status", "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout)["healthy"] is False
