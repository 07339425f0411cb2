"""The benchmark of engine starts, on the fake engine, which has no core."""

import json
import sys
from pathlib import Path

import pytest

from evalsuite.load import starts
from evalsuite.load.starts import SpawnedSpec
from serve.engine.spec import PLUGIN, START_PLUGIN


def test_the_spawned_core_differs_by_our_plugin_alone() -> None:
    ours, other = (
        kind(Path("/models/tiny"), "tiny", device="cpu") for kind in (starts.EngineSpec, SpawnedSpec)
    )
    assert ours.environment({})["VLLM_PLUGINS"] == f"{PLUGIN},{START_PLUGIN}"
    assert other.environment({}) == {**ours.environment({}), "VLLM_PLUGINS": PLUGIN}
    assert other.argv() == ours.argv()


def test_starts_are_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"{sys.executable} -m serve.engine.fake"
    code = starts.main(["--engine-command", command, "--rounds", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["server, core"] for row in found["rows"]] == [
        "vLLM's, spawned",
        "ours, spawned",
        "ours, forked",
    ]
    assert all(0 < row["from"] <= row["s until ready"] <= row["to"] < 60 for row in found["rows"])
    # The fake engine may end within five milliseconds, which are rounded to none.
    assert all(0 <= row["s to end"] < 60 and row["MiB"] > 5 for row in found["rows"])
    assert len(found["goals"]) == 4
    assert code == (0 if all(goal["met"] for goal in found["goals"]) else 1)
    assert "s until ready" in capsys.readouterr().out
