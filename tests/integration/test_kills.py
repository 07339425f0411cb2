"""Processes are killed without warning; what must come back comes back, and nobody is told a lie."""

import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest
from support.stack import RunningStack, healthy, until

from deploy import stack as stacks
from deploy.status import status

ASK = [{"role": "user", "content": "Hello"}]
RECOVERY = 180


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def text_of(client: openai.OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=8, temperature=0)
    return answer.choices[0].message.content or ""


def answers(client: openai.OpenAI, model: str) -> bool:
    try:
        text_of(client, model)
    except openai.APIError:
        return False
    return True


@pytest.mark.timeout(600)
def test_engine_killed_while_idle_returns_with_all_adapters(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    for name, seed in (("idle-a", 31), ("idle-b", 32)):
        if stack.registry.alias(name) is None:
            stack.serve(name, seed=seed)
    before = {name: text_of(client, name) for name in ("idle-a", "idle-b")}
    engine = status(stack.settings.home).engine
    kill(engine.pid)
    until(lambda: not answers(client, "idle-a"), 10)
    until(lambda: all(answers(client, name) for name in before), RECOVERY)
    assert {name: text_of(client, name) for name in before} == before
    after = status(stack.settings.home).engine
    assert after.pid != engine.pid
    assert "restarted" in after.detail


@pytest.mark.timeout(600)
def test_engine_killed_while_streaming_ends_in_an_error(stack: RunningStack, client: openai.OpenAI) -> None:
    if stack.registry.alias("cut") is None:
        stack.serve("cut", seed=33)
    pid = status(stack.settings.home).engine.pid
    body = {"model": "cut", "messages": ASK, "max_tokens": 700, "stream": True, "ignore_eos": True}
    by_client = client.chat.completions.create(
        model="cut", messages=ASK, max_tokens=700, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(by_client).choices
    lines: list[str] = []
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if not line:
                continue
            lines.append(line)
            if len(lines) == 5:
                kill(pid)
    assert '"error"' in lines[-1]
    assert "data: [DONE]" not in lines
    with pytest.raises(openai.APIError):
        list(by_client)
    until(lambda: answers(client, "cut"), RECOVERY)


@pytest.mark.timeout(300)
def test_gateway_killed_is_told_and_recovered(stack: RunningStack, client: openai.OpenAI) -> None:
    killed = status(stack.settings.home)
    kill(killed.gateway.pid)
    until(lambda: "last one" in status(stack.settings.home).gateway.detail, 30)
    told = subprocess.run(
        [sys.executable, "-m", "deploy", "status"],
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "last one" in told.stdout, told.stdout
    up = subprocess.run(
        [sys.executable, "-m", "deploy", "up", "--detach"],
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # The controller may have been as quick as we were; in no other case is the command refused.
    assert up.returncode == 0 or (up.returncode == 4 and "is up already" in up.stderr), up.stderr
    assert answers(client, stack.base.name)
    now = status(stack.settings.home)
    assert now.gateway.pid != killed.gateway.pid
    assert now.engine.pid == killed.engine.pid


@pytest.mark.timeout(300)
def test_controller_killed_leaves_requests_alone_and_is_recovered(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    killed = status(stack.settings.home)
    kill(killed.controller.pid)
    until(lambda: not status(stack.settings.home).controller.running)
    assert answers(client, stack.base.name)
    stacks.up(stack.settings, lambda _: None)
    now = healthy(stack.settings.home)
    assert now.engine.pid == killed.engine.pid
    assert now.gateway.pid == killed.gateway.pid
