"""The main job on the real engine: train, prove, deploy; then once more beside the running version."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from support.commands import tenon
from support.stack import RunningStack

from deploy.status import status

# Accuracy of the intent; and of whole answers, which is 0.86 to 0.87 from run to run (docs/benchmarks.md).
BASE_AT_MOST, ADAPTER_AT_LEAST, EXACT_AT_LEAST = 0.40, 0.90, 0.82


def scores(outcome: dict[str, Any], arm: str, metric: str = "exact_match") -> float:
    return float(outcome["evaluation"]["scores"][arm][metric])


@pytest.mark.timeout(2400)  # two trainings, on whatever processor
def test_two_versions_one_engine(stack: RunningStack, client: openai.OpenAI) -> None:
    engine = status(stack.settings.home).engine.pid
    message = [{"role": "user", "content": "where is my order A10293?"}]

    first = tenon(stack.settings.home, "run", "--name", "main", "--json", "train.epochs=0.2")
    assert first.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert (outcome["version"], outcome["verdict"], outcome["deployed"]) == ("main@v1", "better", True)
    assert client.chat.completions.create(model="main", messages=message).model == "main@v1"

    second = tenon(stack.settings.home, "run", "--name", "main", "--json")
    assert second.returncode == 0, second.stderr
    outcome = json.loads(second.stdout)
    assert (outcome["version"], outcome["verdict"], outcome["deployed"]) == ("main@v2", "better", True)
    assert outcome["engine_pid"] == engine
    assert scores(outcome, stack.base.name, "label_accuracy") <= BASE_AT_MOST
    assert scores(outcome, "main@v2", "label_accuracy") >= ADAPTER_AT_LEAST
    assert scores(outcome, "main@v2") >= EXACT_AT_LEAST
    assert scores(outcome, "main@v2") > scores(outcome, "main@v1 (live)")
    report = Path(outcome["report"]).read_text()
    assert "main@v2" in report
    assert 'src="http' not in report
    for model, answered in (("main", "main@v2"), ("main@v1", "main@v1"), ("main@v2", "main@v2")):
        answer = client.chat.completions.create(model=model, messages=message, max_tokens=40, temperature=0)
        assert answer.model == answered

    back = tenon(stack.settings.home, "deploy", "main@v1")
    assert back.returncode == 0, back.stderr
    assert client.chat.completions.create(model="main", messages=message).model == "main@v1"
