"""An evaluation from files to verdict, and the gate that reads it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from chat_server import served
from evaluations import BASE, CANDIDATE, CONDITIONS, LABELS, LIVE, TASK, answer, evaluation, questions

from evalsuite.evaluate import Arm, Evaluation, Progress, answer_room, assemble, evaluate
from evalsuite.gate import gate
from evalsuite.stats import mcnemar_exact
from evalsuite.tasks import Task, read_questions
from serve.engine.fake import FakeEngine, Fault
from serve.errors import ConfigError, DataError, Unavailable


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rows = [
        {
            "id": f"q{i}",
            "prompt": [{"role": "user", "content": f"{i} {LABELS[i % 3]}"}],
            "completion": [{"role": "assistant", "content": LABELS[i % 3]}],
        }
        for i in range(60)
    ]
    test, task = tmp_path / "test.jsonl", tmp_path / "task.json"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task.write_text(TASK.model_dump_json())
    return test, task


def knows_labels(model: str, prompt: str) -> str:
    return prompt.split()[-1] if model == CANDIDATE.model else "refund"


async def test_an_adapter_that_knows_is_better_than_a_base_that_guesses(files: tuple[Path, Path]) -> None:
    seen: list[Progress] = []
    async with FakeEngine([CANDIDATE.model], base_name=BASE.model, answer=knows_labels) as engine:
        result = await evaluate(engine.url, [BASE, CANDIDATE], *files, on_progress=seen.append)
    assert result.verdict == "better"
    assert result.scores[CANDIDATE.label]["accuracy"] == 1
    assert result.scores[BASE.label]["accuracy"] == pytest.approx(1 / 3)
    comparison = result.against("base")
    assert (comparison.fixed, comparison.broken, comparison.both_right, comparison.both_wrong) == (
        40,
        0,
        20,
        0,
    )
    assert comparison.primary.p_value == mcnemar_exact(0, 40)
    assert [progress.done for progress in seen] == list(range(1, 121))
    assert seen[-1].total == 120
    assert seen[-1].scores == pytest.approx({BASE.label: 1 / 3, CANDIDATE.label: 1})
    assert gate(result).allowed


async def test_a_limit_asks_fewer(files: tuple[Path, Path]) -> None:
    async with FakeEngine([CANDIDATE.model], base_name=BASE.model, answer=knows_labels) as engine:
        result = await evaluate(engine.url, [BASE, CANDIDATE], *files, limit=9, max_tokens=5)
        assert engine.stats.requests == 18
    assert len(result.questions) == 9
    assert result.conditions.max_tokens == 5


async def test_an_arm_that_never_answers_is_no_evidence(files: tuple[Path, Path]) -> None:
    async with FakeEngine([CANDIDATE.model], base_name=BASE.model) as engine:
        engine.faults = [Fault("error", CANDIDATE.model, status=500, message="kaput", times=-1)]
        with pytest.raises(Unavailable, match=r"support@v2 answered none of 60 questions.*kaput"):
            await evaluate(engine.url, [BASE, CANDIDATE], *files)


async def test_questions_that_do_not_fit_are_left_out_and_counted(files: tuple[Path, Path]) -> None:
    too_long: set[str] = set()

    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        if prompt in too_long:
            error = {
                "message": "maximum context length is 1024 tokens. However, your prompt contains 2000 input tokens"
            }
            return web.json_response({"error": error}, status=400)
        message = {"role": "assistant", "content": knows_labels(body["model"], prompt)}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})

    asked = read_questions(files[0], TASK)
    async with served(handler) as url:
        too_long |= {question.text for question in asked[:20]}
        result = await evaluate(url, [BASE, CANDIDATE], *files)
        assert (len(result.questions), result.conditions.too_long) == (40, 20)
        assert result.summary()["conditions"]["too_long"] == 20
        assert {question.text for question in result.questions}.isdisjoint(too_long)
        assert gate(result).allowed, "what nobody could ask is no missing answer"
        most = replace(result, conditions=replace(result.conditions, too_long=41))
        assert "41 of 81 questions are longer" in gate(most).reason
        assert not gate(most).allowed
        too_long |= {question.text for question in asked}
        with pytest.raises(DataError, match=r"all 60 questions are longer .*maximum context length"):
            await evaluate(url, [BASE, CANDIDATE], *files)


async def test_bad_files_and_arms_are_named_before_anything_is_asked(files: tuple[Path, Path]) -> None:
    test, task = files
    with pytest.raises(DataError):
        await evaluate("http://127.0.0.1:9", [BASE, CANDIDATE], task, task)
    for arms in ([BASE], [CANDIDATE], [BASE, BASE, CANDIDATE], [BASE, replace(CANDIDATE, label=BASE.label)]):
        with pytest.raises(ConfigError):
            await evaluate("http://127.0.0.1:9", arms, test, task)


def test_no_common_question_is_no_evidence() -> None:
    rows = [[answer("refund"), answer("", "gone")], [answer("", "gone"), answer("refund")]]
    with pytest.raises(Unavailable, match="nothing to compare"):
        assemble(TASK, [BASE, CANDIDATE], questions(["refund", "refund"]), rows, CONDITIONS)


def test_a_missing_answer_leaves_its_question_out_for_all_arms() -> None:
    result = evaluation(0.5, 0.9, missing=2)
    assert len(result.complete) == result.against("base").questions == 298
    assert result.missing(result.candidate) == 2
    assert len(result.marks[BASE.label]) == 298


def test_json_in_and_out() -> None:
    result = evaluation(0.4, 0.8, 0.6, missing=1)
    text = json.dumps(result.to_dict())
    assert Evaluation.from_dict(json.loads(text)) == result
    summary = result.summary()
    assert summary["verdict"] == "better"
    assert summary["missing"] == {BASE.label: 0, CANDIDATE.label: 1, LIVE.label: 0}
    assert "answers" not in json.loads(json.dumps(summary))


def test_two_comparisons_cost_each_other_power_but_metrics_do_not() -> None:
    alone, both = evaluation(0.5, 0.6), evaluation(0.5, 0.6, 0.5)
    assert alone.against("base").primary.p_adjusted == alone.against("base").primary.p_value
    p_values = [item.primary.p_value for item in both.comparisons]
    assert min(item.primary.p_adjusted for item in both.comparisons) == pytest.approx(2 * min(p_values))


@pytest.mark.parametrize(
    ("chars", "size", "room"),
    [(0, 0, 256), (0, None, 256), (9, 27, 43), (10, None, 56), (10, 10, 26), (50_000, 50_000, 8192)],
)
def test_answers_get_the_room_they_need(chars: int, size: int | None, room: int) -> None:
    task = Task(kind="text", longest_answer_chars=chars, longest_answer_bytes=size)
    assert answer_room(task) == room


def test_the_gate_lets_the_better_through() -> None:
    decision = gate(evaluation(0.3, 0.9))
    assert decision.allowed
    assert not decision.forced
    assert "support@v2 is better than the base" in decision.reason


@pytest.mark.parametrize(
    ("base", "candidate", "verdict", "telling"),
    [(0.9, 0.3, "worse", "is worse than the base"), (0.5, 0.5, "inconclusive", "was not shown to be better")],
)
def test_the_gate_refuses_what_was_not_shown(
    base: float, candidate: float, verdict: str, telling: str
) -> None:
    result = evaluation(base, candidate)
    refused, forced = gate(result), gate(result, force=True)
    assert (refused.allowed, refused.forced, refused.verdict) == (False, False, verdict)
    assert telling in refused.reason
    assert (forced.allowed, forced.forced) == (True, True)
    assert refused.reason in forced.reason


def test_the_gate_refuses_what_is_worse_than_the_live_version() -> None:
    decision = gate(evaluation(0.3, 0.6, 0.9))
    assert not decision.allowed
    assert decision.verdict == "better"
    assert "worse than support@v1, which answers users now" in decision.reason
    assert gate(evaluation(0.3, 0.9, 0.9)).allowed


def test_missing_evidence_never_promotes() -> None:
    assert gate(evaluation(0.3, 0.9, missing=3)).allowed
    decision = gate(evaluation(0.3, 0.9, missing=4))
    assert not decision.allowed
    assert "did not answer 4 of 300 questions" in decision.reason


def test_force_is_recorded_only_where_it_was_needed() -> None:
    assert not gate(evaluation(0.3, 0.9), force=True).forced


def test_an_evaluation_without_a_live_arm_says_so() -> None:
    result = evaluation(0.3, 0.9)
    assert result.live is None
    with pytest.raises(LookupError):
        result.against("live")
    assert Arm("tenon-tiny", "tenon-tiny", "base") == result.arm("base")
