"""The main job on the real engine: train, prove, deploy; then once more beside the running version."""

import json
from pathlib import Path

import openai
import pytest
from support.commands import tenon
from support.stack import RunningStack

from deploy.status import status

BASE_AT_MOST = 0.40
# The built-in task is to be learnt to 0.90; the present base gets to about 0.7 (docs/benchmarks.md).
ADAPTER_AT_LEAST = 0.55


@pytest.mark.timeout(900)
def test_two_versions_one_engine(stack: RunningStack, client: openai.OpenAI) -> None:
    engine = status(stack.settings.home).engine.pid
    first = tenon(stack.settings.home, "run", "--name", "main", "--json")
    assert first.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert outcome["version"] == "main@v1"
    assert outcome["verdict"] == "better"
    assert outcome["deployed"]
    scores = outcome["evaluation"]["scores"]
    assert scores[stack.base.name]["exact_match"] <= BASE_AT_MOST
    assert scores["main@v1"]["exact_match"] >= ADAPTER_AT_LEAST
    report = Path(outcome["report"]).read_text()
    assert "main@v1" in report
    assert 'src="http' not in report

    message = [{"role": "user", "content": "where is my order A10293?"}]
    answer = client.chat.completions.create(model="main", messages=message, temperature=0)
    assert answer.model == "main@v1"

    second = tenon(stack.settings.home, "run", "--name", "main", "--json", "train.seed=1", "train.epochs=0.5")
    outcome = json.loads(second.stdout)
    assert outcome["version"] == "main@v2", second.stderr
    assert outcome["engine_pid"] == engine
    alias = stack.registry.alias("main")
    assert alias is not None
    assert str(alias.target.ref) == ("main@v2" if outcome["deployed"] else "main@v1")
    assert second.returncode == (0 if outcome["deployed"] else 3)
    for version in ("main@v1", "main@v2"):
        assert client.chat.completions.create(model=version, messages=message, max_tokens=4).model == version
