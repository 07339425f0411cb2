"""``kill -9`` of the controller under load: requests must not notice, and ``tenon up`` must bring a new one."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from evalsuite.load.connection import Answer, request_to
from evalsuite.load.faults.found import Found
from evalsuite.load.faults.witness import question, until
from evalsuite.load.machine import child, without_settings
from evalsuite.load.traffic import OpenLoop, until_answered
from evalsuite.load.verdict import Goal, Spread
from serve.net import free_port
from serve.records import ProcessIdentity, read_json
from serve.registry import Registry
from serve.registry.base import BUILTIN, identify_base

TOKEN_SECONDS = 0.02
PAUSE = 1.0
"""Seconds of load before each kill, and after the last controller is back."""
UP_SECONDS = 120.0


class Stack:
    """A stack that ``tenon up`` brought up, attached to a fake engine."""

    def __init__(self, home: Path, engine_url: str) -> None:
        self.home, self.port = home, free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self._environ = without_settings() | {
            "TENON_HOME": str(home),
            "TENON_ENGINE_URL": engine_url,
            "TENON_PORT": str(self.port),
        }

    async def tenon(self, *words: str) -> int:
        """Run a command; its exit code. What it says goes to ``commands.log``."""
        with (self.home / "commands.log").open("ab") as log:
            command = [sys.executable, "-m", "deploy", *words]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, env=self._environ
            )
            return await asyncio.wait_for(process.wait(), UP_SECONDS)

    def controller(self) -> ProcessIdentity | None:
        """The controller that lives, if one does."""
        identity = ProcessIdentity.read(read_json(self.home / "run" / "controller.json"))
        return identity if identity is not None and identity.alive else None


def good(answer: Answer) -> bool:
    """Whether an answer came whole."""
    return answer.status == 200 and (answer.body.endswith(b"data: [DONE]\n\n") or answer.body.endswith(b"}"))


async def run(options: argparse.Namespace) -> Found:
    """``--kills`` kills while ``--rate`` requests per second run, every second one streamed."""
    base = identify_base(BUILTIN)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "serve.engine.fake", "--port", str(port), "--model", str(base.path)]
    command += ["--served-model-name", base.name, "--seconds-per-token", str(TOKEN_SECONDS)]
    with ExitStack() as stuff:
        home = Path(stuff.enter_context(tempfile.TemporaryDirectory()))
        with Registry.open(home) as registry:
            key = registry.create_key("bench").secret
        stuff.enter_context(child(command, home / "engine.log"))
        stack = Stack(home, f"http://127.0.0.1:{port}")
        body = {"model": base.name, "messages": question(1, 10)}
        kinds = [request_to(stack.url, {**body, "stream": streamed}, key=key) for streamed in (False, True)]
        try:
            if await stack.tenon("up", "--detach") != 0:
                raise SystemExit(f"tenon up failed: {(home / 'commands.log').read_text()[-2000:]}")
            await until_answered(stack.url, kinds[0], 30, lambda: True)
            load = OpenLoop(stack.url, lambda number: kinds[number % 2], options.rate, 3600.0, good=good)
            back = await kill_again_and_again(stack, load, options.kills)
        finally:
            await stack.tenon("down")
    return verdict(load, back, options.kills)


async def kill_again_and_again(stack: Stack, load: OpenLoop, kills: int) -> list[float]:
    """Kill while the load runs; the seconds after which each new controller was there."""
    loop, stop, back = asyncio.get_running_loop(), asyncio.Event(), []
    running = asyncio.create_task(load.run(stop))
    try:
        for _ in range(kills):
            await asyncio.sleep(PAUSE)
            controller = stack.controller()
            if controller is None:
                break
            os.kill(controller.pid, signal.SIGKILL)
            killed = loop.time()
            await until(lambda: stack.controller() is None, 5)
            if await stack.tenon("up", "--detach") == 0 and stack.controller() is not None:
                back.append(loop.time() - killed)
        await asyncio.sleep(PAUSE)
    finally:
        stop.set()
        await running
    return back


def verdict(load: OpenLoop, back: list[float], kills: int) -> Found:
    """The table and the goals."""
    times, spread = Spread.of(load.latencies), Spread.of(back)
    rows = [
        {"what": "inferences answered", "value": times.count},
        {"what": "failed", "value": len(load.failures)},
        {"what": "their time, p50, ms", "value": times.p50 * 1e3},
        {"what": "their time, p99, ms", "value": times.p99 * 1e3},
        {"what": "controllers killed and replaced", "value": len(back)},
        {"what": "seconds until the new one, p50", "value": spread.p50},
        {"what": "seconds until the new one, longest", "value": spread.longest},
    ]
    goals = [
        Goal("failed inferences", len(load.failures), 0),
        Goal("controllers that came back", len(back), kills, at_least=True),
    ]
    return Found("kill -9 of the controller under load", rows, goals, {"failures": Counter(load.failures)})
