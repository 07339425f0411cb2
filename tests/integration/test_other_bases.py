"""Bases other than the built-in one: a folder in hub format, and a hub id."""

import json
import shutil
from pathlib import Path

import pytest
from support.commands import cause_and_hint, tenon

from serve.registry.base import identify_base, resolve_model

BUILT_IN = resolve_model("tenon-tiny")
RECIPE = "name: elsewhere\ndata:\n  limit: 60\nlora:\n  rank: 2\ntrain:\n  max_steps: 2\n  eval_rows: 20\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def base_folder(folder: Path) -> Path:
    """A folder in hub format: the built-in base, but for one byte of its weights."""
    shutil.copytree(BUILT_IN, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(8 + header)
        file.write(b"\x01")
    return folder


def test_a_folder_that_is_called_as_the_built_in_base(tmp_path: Path, recipe: Path) -> None:
    """It is the base, as the command was told; the built-in base refuses what was trained on it."""
    other = base_folder(tmp_path / "Tenon-Tiny")
    done = tenon(tmp_path / "home", "train", str(recipe), "base=./Tenon-Tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(tenon(tmp_path / "home", "adapters", "show", "elsewhere@v1", "--json").stdout)
    assert (shown["base"], shown["base_digest"]) == ("tenon-tiny", identify_base(str(other)).digest)
    config = json.loads((Path(shown["path"]) / "adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)

    folder = tmp_path / "adapter"
    shutil.copytree(shown["path"], folder)
    folder.chmod(0o755)
    (folder / "adapter_config.json").chmod(0o644)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    refused = tenon(tmp_path / "home", "adapters", "add", str(folder), "--name", "foreign")
    assert refused.returncode == 2
    assert "base" in cause_and_hint(refused)[0]


def test_hub_id(tmp_path: Path, recipe: Path) -> None:
    """The hub's own library finds the model in its cache, laid out as a download leaves it."""
    repository = tmp_path / "hub" / "models--acme--Tiny-Base"
    base_folder(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = tenon(tmp_path / "home", "train", str(recipe), "base=acme/Tiny-Base", cwd=tmp_path, **offline)
    assert done.returncode == 0, done.stderr
    content = json.loads(tenon(tmp_path / "home", "adapters", "show", "elsewhere@v1", "--json").stdout)
    assert content["base"] == "tiny-base"
    config = json.loads((Path(content["path"]) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/Tiny-Base"
    missing = tenon(tmp_path / "home", "train", str(recipe), "base=acme/absent", cwd=tmp_path, **offline)
    assert missing.returncode == 2
    assert "acme/absent" in cause_and_hint(missing)[0]
