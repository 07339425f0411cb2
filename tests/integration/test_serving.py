"""Deploying, sampling defaults, metrics and hanging up, on the real engine."""

import json
import time
import urllib.request

import httpx
import openai
import pytest
from support.commands import cause_and_hint, tenon
from support.stack import RunningStack, until

from deploy.net import get_json
from evalsuite.load.adapters import write_adapter
from serve.errors import SilentAdapter
from serve.records import read_json
from serve.registry import Lineage
from train.methods.tokens import load_tokenizer, stop_tokens, tokenize
from train.runs import Run

ASK = [{"role": "user", "content": "Hello there"}]


def engine_metric(stack: RunningStack, name: str) -> float:
    """The sum of a metric's series, as the engine says it."""
    url = read_json(stack.settings.state / "engine.json")["url"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def gateway_metrics(stack: RunningStack) -> dict[str, float]:
    """Every series of the gateway by name and labels."""
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {key: float(value) for key, value in (x.rsplit(" ", 1) for x in lines if not x.startswith("#"))}


def test_gate_refuses_what_was_not_evaluated_unless_forced(stack: RunningStack) -> None:
    version = stack.add("gated", seed=41)
    refused = tenon(stack.settings.home, "deploy", str(version.ref))
    assert refused.returncode == 3
    cause, hint = cause_and_hint(refused)
    assert "not been evaluated" in cause
    assert "--force" in hint
    assert stack.registry.alias("gated") is None
    forced = tenon(stack.settings.home, "deploy", str(version.ref), "--force", "--json")
    assert forced.returncode == 0, forced.stderr
    assert json.loads(forced.stdout)["alias"] == "gated"
    assert [change.forced for change in stack.registry.history("gated")] == [True]


def test_eval_of_a_random_adapter_is_not_better_and_exits_with_3(stack: RunningStack) -> None:
    version = stack.add("noise", seed=42)
    done = tenon(stack.settings.home, "run", "--help")
    assert done.returncode == 0
    folder = stack.folder / "noise-questions.csv"
    rows = [f'"how do I do thing {i}?",{"yes" if i % 2 else "no"}' for i in range(40)]
    folder.write_text("text,label\n" + "\n".join(rows) + "\n")
    done = tenon(stack.settings.home, "eval", str(version.ref), "--data", str(folder), "--json")
    assert done.returncode == 3, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["verdict"] in ("inconclusive", "worse")
    assert [record.verdict for record in stack.registry.evaluations(version.ref)] == [outcome["verdict"]]
    refused = tenon(stack.settings.home, "deploy", str(version.ref))
    assert refused.returncode == 3


@pytest.mark.parametrize("alike", [True, False])
def test_an_engine_that_writes_prompts_otherwise_than_training_did_is_told(
    stack: RunningStack, alike: bool
) -> None:
    system = [{"role": "system", "content": "Classify."}]
    row = {"prompt": [*system, *ASK], "completion": [{"role": "assistant", "content": "yes"}]}
    data = stack.folder / "train.jsonl"
    data.write_text(json.dumps(row))
    tokenizer = load_tokenizer(stack.base.path)
    rows = tokenize(data, tokenizer, stop_tokens(tokenizer, stack.base.path), 256)
    tokens = rows.first_prompt if alike else rows.first_prompt[:-1]
    run = Run(stack.settings.runs / f"prompts-{alike}")
    run.folder.mkdir(parents=True)
    asked = {"messages": row["prompt"], "tools": None, "tokens": tokens, "day": None}
    run.asked.write_text(json.dumps(asked))
    name = f"prompts-{alike}".lower()
    files = write_adapter(stack.folder / name, stack.base, seed=61, scale=2.0)
    lineage = Lineage(run=run.folder.name)
    version = stack.registry.register(files, name, stack.base, max_rank=64, lineage=lineage)
    questions = stack.folder / "prompts.csv"
    lines = [f"is it {number}?,{'yes' if number % 2 else 'no'}" for number in range(12)]
    questions.write_text("\n".join(["text,label", *lines]))
    done = tenon(stack.settings.home, "eval", str(version.ref), "--data", str(questions), "--json")
    assert done.returncode == 3, done.stderr
    told = " ".join(done.stderr.split())
    assert ("the engine writes prompts otherwise than training did" in told) != alike


def test_all_zero_adapter_is_refused_by_the_probe(stack: RunningStack) -> None:
    version = stack.add("zero", seed=43, zero=True)
    done = tenon(stack.settings.home, "deploy", str(version.ref), "--force")
    assert done.returncode == SilentAdapter.exit_code
    assert "zero" in cause_and_hint(done)[0]
    assert stack.registry.alias("zero") is None


def test_sampling_defaults_apply_and_a_request_overrides_them(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    version = stack.add("sampled", seed=44)
    set_defaults = ("--set", "temperature=0", "--set", "max_tokens=5")
    done = tenon(stack.settings.home, "deploy", str(version.ref), "--force", *set_defaults)
    assert done.returncode == 0, done.stderr
    texts = set()
    for _ in range(3):
        answer = client.chat.completions.create(
            model="sampled", messages=ASK, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        texts.add(answer.choices[0].message.content)
    assert len(texts) == 1
    own = client.chat.completions.create(
        model="sampled", messages=ASK, max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert own.usage is not None
    assert own.usage.completion_tokens == 3
    bad = tenon(stack.settings.home, "deploy", str(version.ref), "--force", "--set", "temprature=1")
    assert bad.returncode == 2
    assert "temperature" in cause_and_hint(bad)[0]


def hangs_up_in_time(stack: RunningStack, client: httpx.Client, body: dict[str, object]) -> bool:
    """Begin to read a stream, and hang up once the engine is seen to write it, unless it was quicker than we."""
    with client.stream("POST", f"{stack.url}/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()  # kept: with the last reference to it httpx hangs up
        next(lines)
        begun = time.monotonic()
        while time.monotonic() - begun < 2:
            if engine_metric(stack, "vllm:num_requests_running") == 1:
                return True
            time.sleep(0.01)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_hangs_up_frees_the_engine(stack: RunningStack, stream: bool) -> None:
    body = {
        "model": stack.base.name,
        "messages": ASK,
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": stream,
    }
    with httpx.Client(timeout=60) as client:
        if stream:
            until(lambda: hangs_up_in_time(stack, client, body), 60)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{stack.url}/v1/chat/completions", json=body, timeout=0.5)
    gone = time.monotonic()
    while engine_metric(stack, "vllm:num_requests_running") > 0:
        assert time.monotonic() - gone < 5
        time.sleep(0.05)


def test_metrics_count_by_adapter(stack: RunningStack, client: openai.OpenAI) -> None:
    if stack.registry.alias("counted") is None:
        stack.serve("counted", seed=45)
    before = gateway_metrics(stack)
    for _ in range(3):
        client.chat.completions.create(
            model="counted", messages=ASK, max_tokens=4, extra_body={"ignore_eos": True}
        )
    stream = client.chat.completions.create(
        model="counted", messages=ASK, max_tokens=4, stream=True, extra_body={"ignore_eos": True}
    )
    # A token may have no text of its own: what clients get are events.
    events = sum(bool(choice.delta.content) for chunk in stream for choice in chunk.choices)
    after = gateway_metrics(stack)

    def grown(name: str) -> float:
        return sum(
            value - before.get(key, 0)
            for key, value in after.items()
            if key.startswith(name) and "counted" in key
        )

    assert grown("tenon_requests_total") == 4
    assert grown("tenon_completion_tokens_total") == 16
    assert grown("tenon_request_duration_seconds_count") == 4
    assert grown("tenon_time_to_first_token_seconds_count") == 1
    assert grown("tenon_inter_token_latency_seconds_count") == events - 1 > 0
    assert after["tenon_engine_up"] == 1
    assert any(key.startswith("tenon_adapter_load_seconds") and "counted" in key for key in after)


def test_health_routes(stack: RunningStack) -> None:
    assert get_json(f"{stack.url}/healthz")["revision"] >= 0
    assert httpx.get(f"{stack.url}/readyz").status_code == 200
    assert httpx.post(f"{stack.url}/v1/load_lora_adapter", json={}).status_code == 404
