"""Asking over real HTTP, with the faults that a server shows."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest
from aiohttp import web
from chat_server import served

from evalsuite import client
from evalsuite.client import Answer, Asking, ask_all
from evalsuite.tasks import Message, Question
from serve.engine.fake import FakeEngine, Fault
from serve.errors import ConfigError, EngineUnavailable, ModelNotFound

ADAPTER = "support@v1"
QUESTIONS = [Question(f"q{i}", (Message(role="user", content=f"number {i}"),), str(i)) for i in range(20)]


def ignore(question: int, arm: int, answer: Answer) -> None:
    del question, arm, answer


async def ask(
    engine: FakeEngine, models: tuple[str, ...] = ("base", ADAPTER), **how: object
) -> list[list[Answer]]:
    return await ask_all(engine.url, models, QUESTIONS, Asking(**how), ignore)  # type: ignore[arg-type]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine([ADAPTER]) as running:
        yield running


async def test_every_arm_answers_every_question_in_its_place(engine: FakeEngine) -> None:
    seen: list[tuple[int, int]] = []
    models = ("base", ADAPTER)
    answers = await ask_all(engine.url, models, QUESTIONS, Asking(), lambda q, arm, _: seen.append((q, arm)))
    for model, row in zip(models, answers, strict=True):
        assert [answer.text for answer in row] == [f"{model} heard: number {i}" for i in range(20)]
        assert all(answer.seconds > 0 and answer.completion_tokens > 0 and not answer.error for answer in row)
    assert sorted(seen) == [(question, arm) for question in range(20) for arm in range(2)]


async def test_requests_are_greedy_bounded_and_take_turns(engine: FakeEngine) -> None:
    await ask(engine, concurrency=1, max_tokens=7)
    assert {(body["temperature"], body["max_tokens"]) for body in engine.bodies} == {(0, 7)}
    assert [body["model"] for body in engine.bodies[:6]] == [
        "base",
        ADAPTER,
        ADAPTER,
        "base",
        "base",
        ADAPTER,
    ]
    assert engine.bodies[0]["messages"] == [{"role": "user", "content": "number 0"}]


async def test_tools_are_shown_but_no_call_is_asked_for(engine: FakeEngine) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"maximum": 2**70}}}
    question = QUESTIONS[0]._replace(tools=(tool,))
    (row,) = await ask_all(engine.url, ["base"], [question], Asking(), ignore)
    assert row[0].error is None
    assert (engine.bodies[0]["tools"][0]["type"], engine.bodies[0]["tool_choice"]) == ("function", "none")


async def test_an_answer_that_reached_its_limit_says_so(engine: FakeEngine) -> None:
    answers = await ask(engine, max_tokens=2)
    assert all(answer.cut_short for row in answers for answer in row)


async def test_a_busy_server_is_asked_again(engine: FakeEngine) -> None:
    engine.faults = [Fault("error", status=503, message="restarting", times=3)]
    answers = await ask(engine, concurrency=2)
    assert not any(answer.error for row in answers for answer in row)
    assert sum(answer.tries - 1 for row in answers for answer in row) == 3


async def test_a_server_that_restarts_is_waited_for(engine: FakeEngine) -> None:
    async def restart() -> None:
        await asyncio.sleep(0.3)
        await engine.start()

    await engine.stop(forget=False)
    restarting = asyncio.create_task(restart())
    answers = await ask(engine, patience=20)
    await restarting
    assert not any(answer.error for row in answers for answer in row)


async def test_a_broken_answer_is_missing_and_the_rest_go_on(engine: FakeEngine) -> None:
    engine.faults = [Fault("error", ADAPTER, status=500, message="out of cheese", times=1)]
    base, adapter = await ask(engine)
    assert not any(answer.error for answer in base)
    failed = [answer.error for answer in adapter if answer.error]
    assert len(failed) == 1
    assert "out of cheese" in failed[0]


async def test_a_server_that_is_gone_for_good_is_given_up() -> None:
    async with FakeEngine() as stopped:
        pass
    with pytest.raises(EngineUnavailable, match="answered nothing"):
        await ask(stopped, ("base",), patience=0.5, concurrency=4)


async def test_an_arm_that_stays_busy_is_missing_and_the_other_goes_on(engine: FakeEngine) -> None:
    engine.faults = [Fault("error", ADAPTER, status=503, message="not this one", times=-1)]
    began = time.monotonic()
    base, adapter = await ask(engine, patience=0.6)
    assert not any(answer.error for answer in base)
    assert all("not this one" in (answer.error or "") for answer in adapter)
    assert time.monotonic() - began >= 0.6


async def test_an_arm_that_answers_nothing_for_long_costs_its_questions_no_more_patience(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed, perf_counter=time.perf_counter)
    monkeypatch.setattr(client, "time", clock)
    engine.faults = [Fault("error", ADAPTER, status=503, message="not this one", times=-1)]
    asking = asyncio.create_task(ask(engine, patience=60, concurrency=1))
    await until(lambda: engine.stats.by_model.get(ADAPTER, 0) > 1)
    passed = 60.0
    base, adapter = await asking
    assert not any(answer.error for answer in base)
    assert adapter[0].tries > 1
    assert [answer.tries for answer in adapter[1:]] == [1] * 19


async def test_an_unknown_model_ends_it_at_once(engine: FakeEngine) -> None:
    with pytest.raises(ModelNotFound, match="support@v9"):
        await ask(engine, ("base", "support@v9"))


async def test_cancelling_ends_every_request(engine: FakeEngine) -> None:
    engine.faults = [Fault("hang", times=-1)]
    asking = asyncio.create_task(ask(engine, concurrency=8))
    await until(lambda: engine.stats.running == 8)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: engine.stats.running == 0)
    assert engine.stats.finished == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": None}]}, [1], "text"])
async def test_a_reply_that_is_no_completion_is_a_missing_answer(reply: object) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(reply)

    async with served(handler) as url:
        (row,) = await ask_all(url, ["base"], QUESTIONS[:1], Asking(), ignore)
    assert "no chat completion" in (row[0].error or "")


async def test_the_key_is_sent_and_a_refused_one_is_named() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == "Bearer right":
            return web.json_response(
                {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
            )
        return web.json_response({"error": {"message": "no such key"}}, status=401)

    async with served(handler) as url:
        (row,) = await ask_all(url, ["base"], QUESTIONS[:1], Asking(api_key="right"), ignore)
        assert row[0].text == "hello"
        with pytest.raises(ConfigError, match="no such key"):
            await ask_all(url, ["base"], QUESTIONS[:1], Asking(api_key="wrong"), ignore)
