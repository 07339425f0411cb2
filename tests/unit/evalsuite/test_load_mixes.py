"""What adapters cost: reading the variants, the tables, the goals, and the whole command on the fake engine."""

import argparse
import json
import math
import sys
from pathlib import Path

import pytest

from evalsuite.load import mixes
from evalsuite.load.mixes_found import Result, Through, Variant, goals_of, more_rows, rows
from evalsuite.load.stand import RUNNING, TOKENS, read_counters
from evalsuite.load.streams import Sample, Speed, chat

METRICS = f"""# HELP {TOKENS} Number of generation tokens processed.
# TYPE {TOKENS} counter
{TOKENS}{{engine="0",model_name="tenon-tiny"}} 40.0
{TOKENS}{{engine="1",model_name="tenon-tiny"}} 2.5
{RUNNING}{{engine="0",model_name="a b"}} 3.0
python_gc_objects_collected_total{{generation="0"}} 1.2e+06
process_open_fds 44
"""


def sample(rate: float, failed: int = 0) -> Sample:
    return Sample(rate, [0.01, 0.02], [0.001], failed)


def speed(mix: str, *rates: float) -> Speed:
    return Speed.of(mix, [sample(rate) for rate in rates])


def test_counters_are_summed_over_their_labels() -> None:
    found = read_counters(METRICS)
    assert (found[TOKENS], found[RUNNING]) == (42.5, 3.0)
    assert found["process_open_fds"] == 44
    assert not any(name.startswith("#") for name in found)


def test_variant_is_a_name_and_arguments() -> None:
    found = Variant.parse("8 slots: --max-loras 8 --compilation-config '{\"a\": 1}'")
    assert found == Variant("8 slots", ("--max-loras", "8", "--compilation-config", '{"a": 1}'))
    assert Variant.parse("plain:") == Variant("plain")
    for text in ("--max-loras 8", ": --eager"):
        with pytest.raises(argparse.ArgumentTypeError):
            Variant.parse(text)


def test_chats_share_an_instruction_and_nothing_more() -> None:
    options = mixes.parser().parse_args(["--instruction", "2", "--sentences", "1"])
    one, other = (chat(options, "base", number, 4)["messages"] for number in (17, 28))
    assert [message["role"] for message in one] == ["system", "user"]
    assert one[0] == other[0]
    assert len(one[0]["content"]) > 1.9 * len(one[1]["content"].removeprefix("17. "))
    assert (one[1]["content"][:3], other[1]["content"][:3]) == ("17.", "28.")
    options.instruction = 0
    assert [message["role"] for message in chat(options, "base", 17, 4)["messages"]] == ["user"]


def test_samples_of_a_mix_are_seen_together() -> None:
    found = Speed.of("base", [sample(100.0), sample(300.0, failed=2), sample(120.0)])
    assert (found.tokens_per_second, found.failed, found.rates) == (120.0, 2, [100.0, 300.0, 120.0])
    assert (found.ttft.count, found.ttft.p50, found.itl.p99) == (6, 0.01, 0.001)


def test_a_slow_minute_of_the_machine_hits_base_and_mix_alike() -> None:
    result = Result(Variant("one"), speeds=[speed("base", 200.0, 100.0), speed("8 mixed", 180.0, 90.0)])
    assert result.to_base("8 mixed") == pytest.approx(0.9)


def test_mixes_are_compared_with_the_base_of_the_same_engine() -> None:
    first = Result(Variant("one"), speeds=[speed("base", 200.0), speed("8 mixed", 150.0)])
    second = Result(Variant("two"), speeds=[speed("base", 100.0), speed("8 mixed", 95.0)])
    assert [row["to base"] for row in rows([first, second])] == [1.0, 0.75, 1.0, 0.95]
    assert math.isnan(Result(Variant("none")).to_base("8 mixed"))


def test_goals_are_those_of_a_gpu_and_of_the_best_variant() -> None:
    pairs = [(sample(98.0), sample(100.0)), (sample(99.0, failed=1), sample(100.0))]
    first = Result(Variant("one"), speeds=[speed("base", 200.0), speed("8 mixed", 150.0)])
    second = Result(Variant("two"), speeds=[speed("base", 100.0), speed("8 mixed", 95.0)])
    second.through = Through.of("8 mixed", pairs)
    cut_off = Result(Variant("three"), speeds=[speed("base", 100.0)])
    failures, ratio, gateway = goals_of([cut_off, first, second], gpu=True)
    assert failures.measured == 1
    assert ("two" in ratio.what, ratio.measured, ratio.met) == (True, 0.95, True)
    assert gateway.measured == pytest.approx(0.985, abs=1e-3)
    assert len(goals_of([first], gpu=False)) == 1
    assert not goals_of([Result(Variant("none"))], gpu=True)[0].met, "nothing measured is nothing reached"


def test_what_was_not_measured_is_empty_in_the_tables() -> None:
    [row] = more_rows([Result(Variant("one"))])
    assert math.isnan(row["file to first token, ms"])
    assert row["gateway/direct"] is None


async def test_command_measures_every_variant_on_the_fake_engine(fake_command: str, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = ["--engine-command", fake_command, "--rank", "2", "--adapters", "1", "2", "--at-once", "3"]
    words += ["--warm", "0.05", "--window", "0.2", "--hot", "1", "--rounds", "2", "--json", str(file)]
    words += ["--variant", "one:", "--variant", "two: --max-loras 1"]
    study = mixes.Study(mixes.parser().parse_args(words), tmp_path)
    await study.run()
    assert study.notes == []
    for result in study.results:
        assert result.left_out == []
        assert [one.mix for one in result.speeds] == ["base", "1 adapter", "2 mixed"]
        assert all(one.tokens_per_second > 0 and one.failed == 0 and one.ttft.count for one in result.speeds)
        assert all(0 < load < whole for load, whole in result.hot)
        assert result.through is not None
        assert (result.through.mix, result.through.failed) == ("2 mixed", 0)
    stored = json.loads(file.read_text())
    assert [result["variant"]["name"] for result in stored["results"]] == ["one", "two"]
    assert stored["results"][1]["variant"]["arguments"] == ["--max-loras", "1"]


async def test_without_the_gateways_packages_the_engine_alone_is_measured(
    fake_command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU machine that can fetch nothing may have what the engine needs, and no more."""
    monkeypatch.setitem(sys.modules, "alembic", None)
    words = ["--engine-command", fake_command, "--rank", "2", "--adapters", "1", "--at-once", "1"]
    words += ["--warm", "0.05", "--window", "0.2", "--hot", "1", "--variant", "one:"]
    study = mixes.Study(mixes.parser().parse_args(words), tmp_path)
    await study.run()
    assert "the gateway was not measured" in study.notes[0]
    assert "alembic" in study.notes[0]
    assert [one.mix for one in study.results[0].speeds] == ["base", "1 adapter"]
    assert len(study.results[0].hot) == 1


async def test_what_does_not_fit_into_the_time_is_left_out(fake_command: str, tmp_path: Path) -> None:
    words = ["--engine-command", fake_command, "--rank", "2", "--adapters", "1", "--at-once", "1"]
    words += ["--warm", "0.1", "--window", "0.2", "--hot", "0", "--seconds", "0"]
    study = mixes.Study(
        mixes.parser().parse_args([*words, "--variant", "one:", "--variant", "two:"]), tmp_path
    )
    await study.run()
    one, two = study.results
    assert one.speeds == two.speeds == []
    assert one.left_out
    assert "everything" in two.left_out[0]


async def test_settings_that_the_engine_does_not_take_are_said(tmp_path: Path) -> None:
    words = ["--engine-command", "false", "--rank", "2", "--adapters", "1", "--hot", "0", "--variant", "one:"]
    study = mixes.Study(mixes.parser().parse_args(words), tmp_path)
    await study.run()
    assert "the engine ended before it was ready" in study.results[0].left_out[0]
