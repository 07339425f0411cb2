"""``make bench-gateway``: what the gateway costs, and what it adds to the time of an answer, beside other proxies.

The proxy has one core for itself; the client and an engine of canned answers share the others. Measured are the
processor time of the proxy per JSON request and per server-sent event, how many requests per second it answers,
and how much later an answer comes than from the engine directly when half as many are asked.

An event's cost depends on how many there are to do at once, so it is measured twice: as requests are, with streams
that come as fast as they can (``busy``), and with as many slow ones as leave the proxy idle for most of the time, so
that nearly each event wakes it (``alone``).
"""

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from evalsuite.load.connection import Broken, Tally, request_to
from evalsuite.load.machine import child, cpu_seconds, describe, on_cores, split_cores
from evalsuite.load.subjects import START_SECONDS, Running, Start, executable_of, litellm, tenon, vllm_router
from evalsuite.load.traffic import OpenLoop, ask_once, closed_loop, until_answered
from evalsuite.load.verdict import Goal, Spread, add_json_option, report

AT_ONCE = 64
EVENTS = 100
PAUSE = 0.02
"""Seconds between the events of one stream: 50 tokens per second."""
WARM = 1.0
PATIENCE = 10.0
STREAM_SHARE = 0.4
"""How much of its core a proxy may be busy with while events are counted that come alone."""
MOST_STREAMS = 200
MOST_RATE = 4000.0
"""Requests per second that the client can send on its own core without being late itself."""
QUESTION = "Where is my parcel? I ordered a kettle last week and it has not come yet. " * 4
PACKAGES = ("uvicorn", "uvloop", "httptools", "aiohttp", "orjson")


@dataclass(frozen=True)
class Window:
    """A stretch of a load: what was answered in it and what that cost the proxy."""

    answers: int
    events: int
    failures: int
    seconds: float
    cpu: float

    @property
    def share(self) -> float:
        """How much of one core the proxy was busy with."""
        return self.cpu / self.seconds

    @property
    def us_per_request(self) -> float:
        """Processor time of the proxy, in microseconds."""
        return self.cpu / max(self.answers, 1) * 1e6

    @property
    def us_per_event(self) -> float:
        """The same for an event."""
        return self.cpu / max(self.events, 1) * 1e6


@dataclass(frozen=True)
class Measured:
    """One proxy; times in microseconds or milliseconds as the names say, medians over the rounds."""

    name: str
    version: str
    note: str
    us_per_request: float
    requests_per_second: float
    share_of_core: float
    us_per_event_busy: float
    us_per_event_alone: float
    events_per_second: float
    streams_alone: int
    rate: float
    p50_added_ms: float
    p99_added_ms: float
    p99_ms: float
    p99_direct_ms: float
    failures: int
    rounds: dict[str, list[float]]

    def row(self) -> dict[str, Any]:
        """What the table shows."""
        return {
            "proxy": f"{self.name} {self.version}",
            "µs/request": self.us_per_request,
            "requests/s": self.requests_per_second,
            "of its core": self.share_of_core,
            "µs/event, busy": self.us_per_event_busy,
            "µs/event, alone": self.us_per_event_alone,
            "events/s": self.events_per_second,
            "p50 added, ms": self.p50_added_ms,
            "p99 added, ms": self.p99_added_ms,
            "at requests/s": self.rate,
            "failed": self.failures,
        }


async def watch(load: AbstractAsyncContextManager[Tally], pid: int, seconds: float) -> Window:
    """Let a load run warm, then count for ``seconds``, and on until there is something to divide, a while at most."""
    async with load as tally:
        await asyncio.sleep(min(WARM, seconds))
        before, cpu, began = (tally.answers, tally.events), cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(seconds)
        while sum(before) == tally.answers + tally.events or cpu_seconds(pid) == cpu:
            if time.perf_counter() - began > seconds + PATIENCE:
                break
            await asyncio.sleep(0.05)
        spent, lasted = cpu_seconds(pid) - cpu, time.perf_counter() - began
        return Window(tally.answers - before[0], tally.events - before[1], tally.failures, lasted, spent)


def chat(proxy: Running, **fields: Any) -> bytes:
    """The request that a proxy is asked."""
    body = {
        "model": proxy.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        **fields,
    }
    return request_to(proxy.url, body, key=proxy.key)


async def set_pause(upstream: str, seconds: float) -> None:
    """Have the engine of canned answers pause so long before each event of the streams to come."""
    body = f"{seconds}"
    await ask_once(upstream, f"PUT / HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())


async def latencies(url: str, request: bytes, rate: float, seconds: float, seed: int) -> OpenLoop:
    """Requests at a rate, whatever becomes of them."""
    load = OpenLoop(url, lambda _: request, rate, seconds, seed)
    await load.run()
    return load


async def measure(proxy: Running, upstream: str, options: argparse.Namespace) -> Measured:
    """All measurements of one proxy, in rounds; the engine itself takes turns with it."""
    whole, stream = chat(proxy), chat(proxy, stream=True, max_tokens=EVENTS)
    direct = request_to(upstream, {"model": proxy.model, "messages": [{"role": "user", "content": QUESTION}]})
    pid, seconds = proxy.process.pid, options.seconds
    await until_answered(proxy.url, whole, START_SECONDS, lambda: proxy.process.poll() is None)
    await set_pause(upstream, PAUSE)
    trial = await watch(closed_loop(proxy.url, stream, 4), pid, max(1.0, seconds / 2))
    cost = max(trial.cpu, 0.01) / max(trial.events, 1)
    streams = max(1, min(MOST_STREAMS, int(STREAM_SHARE * PAUSE / cost)))

    requests, alone, busy = list[Window](), list[Window](), list[Window]()
    added = list[tuple[Spread, Spread]]()
    failures = trial.failures
    for turn in range(options.rounds):
        requests.append(await watch(closed_loop(proxy.url, whole, AT_ONCE), pid, seconds))
        await set_pause(upstream, PAUSE)
        alone.append(await watch(closed_loop(proxy.url, stream, streams), pid, seconds))
        await set_pause(upstream, 0.0)
        busy.append(await watch(closed_loop(proxy.url, stream, AT_ONCE), pid, seconds))
        rate = min(MOST_RATE, statistics.median(window.answers / window.seconds for window in requests) / 2)
        without = await latencies(upstream, direct, rate, seconds, turn)
        through = await latencies(proxy.url, whole, rate, seconds, turn)
        added.append((Spread.of(without.latencies), Spread.of(through.latencies)))
        failures += sum(windows[-1].failures for windows in (requests, alone, busy))
        failures += len(through.failures) + len(without.failures)
    per_request = [window.us_per_request for window in requests]
    per_event_busy = [window.us_per_event for window in busy]
    per_event_alone = [window.us_per_event for window in alone]
    per_second = [window.answers / window.seconds for window in requests]
    p50 = [(proxied.p50 - plain.p50) * 1e3 for plain, proxied in added]
    p99 = [(proxied.p99 - plain.p99) * 1e3 for plain, proxied in added]
    middle = statistics.median
    return Measured(
        name=proxy.name,
        version=proxy.version,
        note=proxy.note,
        us_per_request=middle(per_request),
        requests_per_second=middle(per_second),
        share_of_core=middle(window.share for window in requests),
        us_per_event_busy=middle(per_event_busy),
        us_per_event_alone=middle(per_event_alone),
        events_per_second=middle(window.events / window.seconds for window in busy),
        streams_alone=streams,
        rate=min(MOST_RATE, middle(per_second) / 2),
        p50_added_ms=middle(p50),
        p99_added_ms=middle(p99),
        p99_ms=middle(proxied.p99 * 1e3 for _, proxied in added),
        p99_direct_ms=middle(plain.p99 * 1e3 for plain, _ in added),
        failures=failures,
        rounds={
            "us_per_request": per_request,
            "us_per_event_busy": per_event_busy,
            "us_per_event_alone": per_event_alone,
            "p99_added_ms": p99,
        },
    )


@contextlib.contextmanager
def canned_engine(folder: Path) -> Iterator[str]:
    """The engine of canned answers in a process of its own; its URL."""
    log = folder / "upstream.log"
    with child([sys.executable, "-m", "evalsuite.load.upstream"], log) as process:
        deadline = time.monotonic() + 30
        while not log.read_text().endswith("\n"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Broken(f"the engine did not start: {log.read_text()}")
            time.sleep(0.02)
        yield log.read_text().splitlines()[-1]


def compare(options: argparse.Namespace) -> tuple[list[Measured], list[str]]:
    """Measure every proxy that there is, one after the other; and say which are absent or did not work."""
    known: dict[str, Start | None] = {"tenon": tenon, "LiteLLM proxy": None, "vllm-router": None}
    if path := executable_of(options.litellm, "litellm"):
        known["LiteLLM proxy"] = litellm(path)
    if path := executable_of(options.vllm_router, "vllm-router"):
        known["vllm-router"] = vllm_router(path)
    core, others = split_cores()
    found, absent = [], []
    with tempfile.TemporaryDirectory() as name, on_cores(others), canned_engine(Path(name)) as upstream:
        for number, (label, start) in enumerate(known.items()):
            if start is None:
                absent.append(f"{label}: not installed, not measured")
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            with start(upstream, folder, core) as proxy:
                try:
                    found.append(uvloop.run(measure(proxy, upstream, options)))
                except Broken as error:
                    if start is tenon:
                        raise
                    absent.append(f"{label} {proxy.version}: did not answer: {error}; {tail(proxy.log)}")
    return found, absent


def tail(log: Path) -> str:
    """The last words of a log."""
    return log.read_text(errors="replace")[-600:].strip()


def goals_of(found: list[Measured]) -> list[Goal]:
    """What the gateway must reach; those against LiteLLM only where it was measured."""
    ours = found[0]
    goals = [
        Goal("CPU µs per JSON request", ours.us_per_request, 180),
        Goal("CPU µs per server-sent event, busy", ours.us_per_event_busy, 30),
        Goal("CPU µs per server-sent event, alone", ours.us_per_event_alone, 30),
        Goal("ms added at the 99th percentile, at half of its capacity", ours.p99_added_ms, 5),
        Goal("failed requests", ours.failures, 0),
    ]
    for other in found[1:]:
        if other.name.startswith("LiteLLM"):
            times = ours.requests_per_second / other.requests_per_second
            goals.append(Goal("requests/s on one core, times LiteLLM's", times, 30, at_least=True))
    return goals


def main() -> int:
    """Compare, print, and say by the exit code whether the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.gateway", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind; medians count")
    parser.add_argument("--litellm", type=Path, metavar="PATH", help="LiteLLM's executable")
    parser.add_argument("--vllm-router", type=Path, metavar="PATH", help="vllm-router's executable")
    add_json_option(parser)
    options = parser.parse_args()
    gc.disable()  # in the client, whose pauses would be taken for the proxy's
    machine = describe()
    found, absent = compare(options)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    for line in absent:
        sys.stdout.write(f"{line}\n")
    title = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {machine['date']}"
    content = {
        "machine": machine,
        "packages": packages,
        "absent": absent,
        "seconds": options.seconds,
        "measured": [asdict(one) for one in found],
    }
    return report(title, content, [one.row() for one in found], goals_of(found), options.json)


if __name__ == "__main__":
    sys.exit(main())
