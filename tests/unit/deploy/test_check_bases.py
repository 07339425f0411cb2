"""The check of bases: what it makes and scores; engines are for ``make check-bases``."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import check_bases
from evalsuite.load.adapters import write_adapter
from serve.registry.base import identify_base
from train.families import FAMILIES


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "train.families", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_base_is_made_and_an_adapter_scored(tmp_path: Path) -> None:
    run("make", "llama", str(tmp_path / "base"))
    base = identify_base(str(tmp_path / "base"))
    assert base.architecture == "LlamaForCausalLM"
    adapter = write_adapter(tmp_path / "adapter", base, seed=1, scale=4.0)
    told = json.loads(run("score", str(tmp_path / "base"), str(adapter), "5", "6", "7", "8"))
    assert {name: len(values) for name, values in told.items()} == {"base": 3, "adapter": 3}
    assert all(-30 < value < 0 for values in told.values() for value in values)
    assert told["base"][0] == pytest.approx(-math.log(base.vocab_size), abs=1)
    assert told["base"] != told["adapter"]


def test_a_difference_and_a_refusal_miss_their_goals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(family: str, folder: Path) -> dict[str, object]:
        rows = {
            "llama": {"base": 0.0, "adapter": 0.0, "effect": 2.0, "told": ""},
            "glm4": {"base": 0.0, "adapter": 0.5, "effect": 2.0, "told": ""},
            "stablelm": {
                "base": "",
                "adapter": "",
                "effect": "",
                "told": "error: it does not support LoRA yet",
            },
            "phi3": {"base": "", "adapter": "", "effect": "", "told": "error: refused"},
        }
        return {"family": family, **rows[family]}

    monkeypatch.setattr(check_bases, "check", told)
    found = tmp_path / "found.json"
    assert check_bases.main(["--families", "llama", "stablelm"]) == 0
    assert check_bases.main(["--families", "llama", "glm4", "phi3", "--json", str(found)]) == 1
    missed = [goal["what"] for goal in json.loads(found.read_text())["goals"] if not goal["met"]]
    assert missed == ["glm4: nats between engine and PEFT", "phi3: refused"]
    assert math.isnan(check_bases.furthest([0.0, 1.0, 2.0], [0.0, math.nan, 9.0]))
    assert check_bases.furthest([0.0, 1.0], [0.5, 1.25]) == 0.5
    assert "error: refused" in capsys.readouterr().out


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_has_each_family(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    assert hasattr(transformers, FAMILIES[name][0])
