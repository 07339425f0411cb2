"""The benchmark of processes, on the cheaper kind."""

import json
from pathlib import Path

import pytest

from deploy import bench_processes


def test_processes_are_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    code = bench_processes.main(["--kinds", "command", "--rounds", "1", "--json", str(found)])
    content = json.loads(found.read_text())
    assert [(row["process"], row["way"]) for row in content["rows"]] == [
        ("command", "plain"),
        ("command", "ours"),
    ]
    assert all(0 < row["from"] <= row["s"] <= row["to"] < 60 for row in content["rows"])
    assert all(row["s computed"] > 0.1 for row in content["rows"])
    assert code == (0 if content["goals"][0]["met"] else 1)
    assert "s computed" in capsys.readouterr().out
