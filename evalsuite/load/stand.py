"""A real engine of the benchmarks' own, and a gateway in front of it."""

import argparse
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from evalsuite.load import house
from evalsuite.load.adapters import write_adapter
from evalsuite.load.connection import request_to
from evalsuite.load.traffic import until_answered
from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess
from serve.engine.spec import EngineSpec
from serve.errors import EngineUnavailable
from serve.registry.base import BaseIdentity

START_TIMEOUT = 600.0
ANSWER_SECONDS = 60.0
SENTENCE = "Where is my parcel? I ordered a kettle last week and it has not come yet. "
TOKENS, RUNNING = "vllm:generation_tokens_total", "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
"""Counters of vLLM: tokens that it has generated, requests that it computes now, and those that wait for it."""


class Loaded(NamedTuple):
    """An engine that holds one adapter: the home whose gateway uses it, its URL, its name for the adapter, a key."""

    home: Path
    url: str
    engine_name: str
    key: str


def add_engine_options(parser: argparse.ArgumentParser, *, max_rank: int = 64) -> None:
    """Let the command say how the engine is started; see :func:`engine_spec`."""
    parser.add_argument(
        "--engine-args", default="", help="further arguments for the vLLM server, as one text"
    )
    parser.add_argument(
        "--engine-command", default="", help="what runs instead of it, such as the fake engine"
    )
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument(
        "--max-rank", type=int, default=max_rank, help="highest rank that the engine can load"
    )


def engine_spec(
    options: argparse.Namespace, base: BaseIdentity, *arguments: str, **limits: int | None
) -> EngineSpec:
    """The engine that the options ask for, with further ``arguments``; ``limits`` are fields of the spec."""
    command = {"command": tuple(shlex.split(options.engine_command))} if options.engine_command else {}
    given = (*shlex.split(options.engine_args), *arguments)
    fields: dict[str, Any] = {**limits, **command, "max_lora_rank": options.max_rank, "extra_args": given}
    return EngineSpec(base.path, base.name, **fields)


def question(number: int, sentences: int) -> str:
    """A question of so many sentences, which begins with its number, so that no answer comes from the prefix cache."""
    return f"{number}. " + SENTENCE * sentences


def chat(model: str, number: int, *, sentences: int, tokens: int, instruction: int = 0) -> dict[str, object]:
    """A streamed chat of just so many tokens, after a system instruction of so many sentences."""
    asked = {"role": "user", "content": question(number, sentences)}
    start = [{"role": "system", "content": (SENTENCE * instruction).strip()}] if instruction else []
    return {
        "model": model,
        "messages": [*start, asked],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }


def write_adapters(folder: Path, base: BaseIdentity, names: Sequence[str], rank: int) -> dict[str, Path]:
    """Write an adapter of random weights for each name below ``folder``; numpy draws them side by side."""

    def write(number: int) -> Path:
        return write_adapter(folder / names[number], base, rank=rank, seed=number)

    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(write, range(len(names))), strict=True))


@contextlib.asynccontextmanager
async def engine(spec: EngineSpec, log: Path, timeout: float = START_TIMEOUT) -> AsyncIterator[EngineProcess]:
    """An engine that answers, and ends with the block; raises EngineStartFailed."""
    process = await EngineProcess.start(spec, log)
    try:
        await process.wait_ready(timeout)
        yield process
    finally:
        await process.stop()


@contextlib.asynccontextmanager
async def loaded(options: argparse.Namespace, base: BaseIdentity, folder: Path) -> AsyncIterator[Loaded]:
    """An engine that holds one adapter, deployed in ``folder / "home"``; a gateway of that home knows of it."""
    home = folder / "home"
    made = write_adapters(folder / "made", base, [house.ADAPTER], options.rank)
    [version], key = house.deploy(home, base, made)
    spec = engine_spec(options, base)
    async with engine(spec, folder / "engine.log") as process:
        async with EngineClient(process.url) as client:
            await client.load(version.engine_name, version.path)
        introduce(home, spec, base, process.url)
        yield Loaded(home, process.url, version.engine_name, key)


@contextlib.contextmanager
def gateway(home: Path, spec: EngineSpec, base: BaseIdentity, engine_url: str) -> Iterator[str]:
    """A gateway process of a home whose adapters (:func:`house.deploy`) the engine holds; its URL."""
    introduce(home, spec, base, engine_url)
    with house.gateway(home) as (_, url):
        yield url


def introduce(home: Path, spec: EngineSpec, base: BaseIdentity, engine_url: str) -> None:
    """Tell a home of the engine that its gateway shall use."""
    longest = spec.max_model_len or base.max_length
    house.tell_engine(home, engine_url, base_name=spec.base_name, max_model_len=longest, limits=spec.limits)


async def wait_for(url: str, models: Sequence[str], key: str | None = None) -> None:
    """Wait until each of the models has answered; raises Broken with the last answer of one that does not."""
    for number, model in enumerate(models):
        request = request_to(url, chat(model, number, sentences=1, tokens=2), key=key)
        await until_answered(url, request, ANSWER_SECONDS, lambda: True)


async def counters(url: str) -> Mapping[str, float]:
    """The engine's Prometheus metrics by name, summed over their labels; raises EngineUnavailable."""
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
            return read_counters(await reply.text())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineUnavailable(f"the engine at {url} tells no metrics: {error}", "see its log") from error


def read_counters(text: str) -> dict[str, float]:
    """Prometheus' text form, summed over the labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^([a-z_:]+)(?:\{[^\n]*\})? ([^ \n]+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found
