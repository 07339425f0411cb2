"""Engines that die in the middle of a stream: every client must be told, none may take its answer for whole."""

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path

from evalsuite.load import house
from evalsuite.load.connection import Answer, Broken, Connection, request_to
from evalsuite.load.faults.found import Found
from evalsuite.load.faults.witness import Witness, question
from evalsuite.load.traffic import until_answered
from evalsuite.load.verdict import Goal
from serve.engine.fake import Fault

AT_ONCE = 10
WORDS = 40
"""Tokens, at least, that an answer would have."""


def ending(answer: Answer | None) -> str:
    """How an answer that should have been cut ended, as the client sees it.

    ``error event``: the last event says so. ``clean``: ``[DONE]``, a finish reason or whole JSON came. ``refused``: an
    error before any event. ``broken off``: neither, the connection just ended.
    """
    if answer is None or not answer.status:
        return "broken off"
    body = answer.body
    if answer.status != 200:
        return "refused"
    events = [event for event in body.split(b"\n\n") if event]
    if any(b"[DONE]" in event or b'"finish_reason":"' in event for event in events):
        return "clean"
    if events and events[-1].startswith(b'data: {"error":'):
        return "error event"
    return "broken off"


async def run(options: argparse.Namespace) -> Found:
    """``--cuts`` streams, each cut after some tokens."""
    drawn = random.Random(1)
    endings: Counter[str] = Counter()
    tokens = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        made = house.furnish(home)
        async with Witness(made.engine_name, 0.002) as engine:
            house.tell_engine(home, engine.url)
            with house.gateway(home) as (process, url):
                body = {"model": made.model, "messages": question(1, WORDS)}
                await until_answered(
                    url, request_to(url, body, key=made.key), 30, lambda: process.poll() is None
                )
                request = request_to(url, {**body, "stream": True}, key=made.key)
                for start in range(0, options.cuts, AT_ONCE):
                    count = min(AT_ONCE, options.cuts - start)
                    engine.faults = [
                        Fault("die_mid_stream", after=drawn.randint(1, WORDS)) for _ in range(count)
                    ]
                    answers = await asyncio.gather(*(stream(url, request) for _ in range(count)))
                    endings.update(ending(answer) for answer in answers)
                    tokens += sum(answer.events for answer in answers if answer is not None)
    rows = [{"ending": kind, "streams": count} for kind, count in sorted(endings.items())]
    goals = [
        Goal("streams that ended with an error event", endings["error event"], options.cuts, at_least=True),
        Goal("streams that ended as if they were whole", endings["clean"], 0),
    ]
    return Found("Engines that are cut off mid-stream", rows, goals, {"events": tokens})


async def stream(url: str, request: bytes) -> Answer | None:
    """What came of one stream, whole or not."""
    try:
        connection = await Connection.open(url)
        try:
            return await connection.ask(request)
        finally:
            connection.hang_up()
    except Broken as error:
        return error.answer
