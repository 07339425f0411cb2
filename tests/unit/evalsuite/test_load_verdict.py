"""What benchmarks compute from their numbers, and that the commands run from end to end at tiny sizes."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalsuite.load import gateway
from evalsuite.load.connection import Answer
from evalsuite.load.faults import __main__ as command
from evalsuite.load.faults.cuts import ending
from evalsuite.load.faults.direct import ratio_of
from evalsuite.load.subjects import executable_of
from evalsuite.load.verdict import Goal, Spread, quantile, report

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


def test_quantile_is_the_nearest_rank() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2
    assert quantile(list(range(100)), 0.99) == 98
    assert quantile([7], 0.99) == 7
    assert math.isnan(quantile([], 0.5))


@given(numbers, st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_quantile_agrees_with_numpy(values: list[float], share: float) -> None:
    ordered = sorted(values)
    assert quantile(ordered, share) == np.quantile(ordered, share, method="inverted_cdf")


def test_spread_of_nothing_meets_no_goal() -> None:
    spread = Spread.of([])
    assert not Goal("p99", spread.p99, 1.0).met
    assert not Goal("p50", spread.p50, 1.0, at_least=True).met


def test_report_says_by_its_code_whether_all_goals_are_met(tmp_path: Path) -> None:
    rows = [{"proxy": "a", "µs": 12.5, "none": math.nan}]
    file = tmp_path / "numbers.json"
    assert report("title", {"x": (1, math.inf)}, rows, [Goal("g", 1, 2)], file) == 0
    assert report("title", {}, rows, [Goal("g", 1, 2), Goal("h", 1, 2, at_least=True)], None) == 1
    stored = json.loads(file.read_text())
    assert stored["x"] == [1, None]
    assert stored["rows"] == [{"proxy": "a", "µs": 12.5, "none": None}]
    assert stored["goals"][0] == {"what": "g", "measured": 1, "limit": 2, "at_least": False, "met": True}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b'data: {"choices":[]}\n\ndata: {"error":{"message":"m"}}\n\n', "error event"),
        (200, b'data: {"choices":[]}\n\ndata: [DONE]\n\n', "clean"),
        (200, b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', "clean"),
        (200, b'data: {"choices":[{"finish_reason":null}]}\n\n', "broken off"),
        (503, b'{"error":{}}', "refused"),
        (0, b"", "broken off"),
    ],
)
def test_endings_are_told_apart(status: int, body: bytes, kind: str) -> None:
    assert ending(Answer(status, parts=[body])) == kind


def test_no_answer_at_all_is_broken_off() -> None:
    assert ending(None) == "broken off"


@given(st.floats(0.1, 10), st.lists(st.floats(1, 1000), min_size=2, max_size=16))
def test_ratio_that_is_the_same_in_each_round_is_sure(ratio: float, rates: list[float]) -> None:
    found = ratio_of([ratio * rate for rate in rates], rates)
    assert found == pytest.approx((ratio, ratio, ratio))


def test_interval_of_the_ratio_is_students() -> None:
    middle, low, high = ratio_of([math.e, 1.0], [1.0, 1.0])
    assert math.log(middle) == pytest.approx(0.5)
    assert math.log(high) - math.log(low) == pytest.approx(2 * 12.71 * 0.5, rel=1e-3)


def test_an_executable_that_is_not_there_is_absent(tmp_path: Path) -> None:
    assert executable_of(tmp_path / "nothing", "sh") is None
    assert executable_of(None, "no-such-command-anywhere") is None
    assert executable_of(None, "sh") is not None


def test_gateway_is_measured_and_who_is_absent_is_said_to_be() -> None:
    options = argparse.Namespace(
        seconds=0.2, rounds=1, litellm=Path("/nowhere/litellm"), vllm_router=Path("/nowhere/vllm-router")
    )
    found, absent = gateway.compare(options)
    assert absent == [
        "LiteLLM proxy: not installed, not measured",
        "vllm-router: not installed, not measured",
    ]
    (ours,) = found
    assert ours.failures == 0
    assert ours.us_per_request > 0
    assert ours.us_per_event_busy > 0
    assert ours.us_per_event_alone > 0
    assert math.isfinite(ours.p99_added_ms)


@pytest.mark.parametrize("words", [["disconnects", "--requests", "8"], ["cuts", "--cuts", "6"]])
def test_faults_meet_their_goals(words: list[str], tmp_path: Path) -> None:
    code = command.main([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["scenario"] == words[0]
    missed = [goal for goal in found["goals"] if not goal["met"]]
    assert code == bool(missed)
    # How soon depends on what else the machine does; here, that it happens at all.
    assert all("seconds" in goal["what"] and goal["measured"] is not None for goal in missed), found


def test_direct_must_know_whom_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["direct", "--gateway", "http://127.0.0.1:1"])
    assert "--engine" in capsys.readouterr().err
