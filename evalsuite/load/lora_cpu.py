"""``make bench-lora-cpu``: LoRA on a CPU with vLLM's stock code and with ours, each beside the bare base.

Starts the real engine twice, without and with our plugin, and has many chats answered at once by the base, by one
adapter and by several mixed: short questions with longer answers (the engine mostly decodes) and long questions
with the shortest answers (it mostly reads). What counts are the ratios to the base of the same engine: of requests
per second, and, as other work on the machine changes that more, of the processor time that a request takes.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from evalsuite.load.adapters import write_adapter
from evalsuite.load.bases import SHAPES, write_base
from evalsuite.load.machine import cpu_seconds
from evalsuite.load.stand import question
from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess
from serve.engine.spec import EngineSpec
from serve.registry.base import BaseIdentity, identify_base

START_TIMEOUT = 600.0
TIMEOUT = aiohttp.ClientTimeout(total=3600)


@dataclass(frozen=True)
class Load:
    """Chats of one kind: how long the question is, in sentences, and the answer, in tokens."""

    name: str
    sentences: int
    tokens: int

    def body(self, model: str, number: int) -> dict[str, object]:
        """A request."""
        return {
            "model": model,
            "messages": [{"role": "user", "content": question(number, self.sentences)}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "temperature": 0,
        }


@dataclass(frozen=True)
class UnpluggedSpec(EngineSpec):
    """The engine with vLLM's own CPU code for LoRA."""

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours, without plugins."""
        return {**super().environment(inherited), "VLLM_PLUGINS": ""}


CODES: Mapping[str, type[EngineSpec]] = {"stock": UnpluggedSpec, "ours": EngineSpec}


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Let the command say which base is measured; see :func:`chosen_base`."""
    parser.add_argument("--model", default="tenon-tiny", help="base model")
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="a base of this shape with random weights instead"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="what the engines compute in, if not what we choose"
    )


def type_option(options: argparse.Namespace) -> tuple[str, ...]:
    """The engine's option for the type that the options name, if they do."""
    return ("--dtype", options.dtype) if options.dtype else ()


def loads(options: argparse.Namespace) -> list[Load]:
    """Those that the options name: short questions with long answers, long questions with the shortest."""
    all_of_them = (Load("decode", 1, options.tokens), Load("prefill", options.sentences, 2))
    return [load for load in all_of_them if load.name in options.loads]


def chosen_base(options: argparse.Namespace, folder: Path) -> BaseIdentity:
    """The base that the options name; one of random weights is written into ``folder``."""
    if options.shape:
        return identify_base(str(write_base(folder / options.shape, SHAPES[options.shape])))
    return identify_base(options.model)


@dataclass(frozen=True)
class Rate:
    """Answered requests per second, and seconds of processor time that the engine took for each."""

    per_second: float
    cpu: float


async def throughput(
    engine: EngineProcess,
    load: Load,
    models: Sequence[str],
    numbers: Iterator[int],
    *,
    requests: int,
    at_once: int,
) -> Rate:
    """How fast the engine answers, ``models`` taking turns."""
    gate = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=TIMEOUT) as session:

        async def ask(turn: int) -> None:
            body = load.body(models[turn % len(models)], next(numbers))
            async with gate, session.post(f"{engine.url}/v1/chat/completions", json=body) as reply:
                reply.raise_for_status()
                await reply.read()

        started, cpu = time.perf_counter(), cpu_seconds(engine.record.pid)
        await asyncio.gather(*(ask(turn) for turn in range(requests)))
        lasted, spent = time.perf_counter() - started, cpu_seconds(engine.record.pid) - cpu
        return Rate(requests / lasted, spent / requests)


async def measure(
    spec: EngineSpec, adapters: Mapping[str, Path], options: argparse.Namespace
) -> dict[tuple[str, str], list[Rate]]:
    """How fast the engine answers by load and mix (base, one adapter, several), in rounds that take turns."""
    names, numbers, asked = list(adapters), count(), loads(options)
    mixes = {"base": [spec.base_name]}
    mixes |= {f"{many} mixed" if many > 1 else "1 adapter": names[:many] for many in options.adapters}
    found: dict[tuple[str, str], list[Rate]] = {(load.name, mix): [] for load in asked for mix in mixes}
    with tempfile.TemporaryDirectory() as folder:
        engine = await EngineProcess.start(spec, Path(folder) / "engine.log")
        try:
            await engine.wait_ready(START_TIMEOUT)
            async with EngineClient(engine.url, timeout=300.0) as client:
                for name, path in adapters.items():
                    await client.load(name, path)
            for turn in range(options.rounds + 1):
                requests = options.requests if turn else options.warm_up
                for load in asked if requests else ():
                    for mix, models in mixes.items():
                        rate = await throughput(
                            engine, load, models, numbers, requests=requests, at_once=options.at_once
                        )
                        if turn:
                            found[load.name, mix].append(rate)
        finally:
            await engine.stop()
    return found


async def compare(options: argparse.Namespace) -> dict[str, dict[tuple[str, str], list[Rate]]]:
    """The measurements of both engines, one after the other."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        base = chosen_base(options, Path(folder))
        most = max(options.adapters)
        adapters = {
            f"a{number}": write_adapter(Path(folder) / f"a{number}", base, rank=options.rank, seed=number)
            for number in range(most)
        }
        for label in options.codes:
            spec = CODES[label](
                base.path,
                base.name,
                max_loras=most,
                max_lora_rank=options.max_rank,
                max_model_len=options.max_len,
                extra_args=type_option(options),
            )
            results[label] = await measure(spec, adapters, options)
    return results


def rows(results: Mapping[str, Mapping[tuple[str, str], Sequence[Rate]]]) -> list[dict[str, object]]:
    """Medians, and their ratio to the base of the same engine and load (how fast, and how cheap, it is)."""
    found = []
    for label, measured in results.items():
        for (load, mix), rates in measured.items():
            base = measured[load, "base"]
            per_second, cpu = _medians(rates)
            base_per_second, base_cpu = _medians(base)
            found.append(
                {
                    "lora_code": label,
                    "load": load,
                    "mix": mix,
                    "requests_per_second": round(per_second, 2),
                    "to_base": round(per_second / base_per_second, 3),
                    "cpu_seconds": round(cpu, 3),
                    "cpu_to_base": round(base_cpu / cpu, 3),
                    "rounds": [round(rate.per_second, 2) for rate in rates],
                }
            )
    return found


def _medians(rates: Sequence[Rate]) -> tuple[float, float]:
    return statistics.median(rate.per_second for rate in rates), statistics.median(rate.cpu for rate in rates)


def show(found: Sequence[Mapping[str, object]]) -> Table:
    """The rows as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("LoRA code", "load", "mix", "requests/s", "to base", "CPU s", "to base", "rounds"):
        table.add_column(column)
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    return table


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.lora_cpu", description=__doc__)
    add_base_options(parser)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 3, 8], help="adapters in each mix")
    parser.add_argument("--rank", type=int, default=16, help="their rank")
    parser.add_argument("--max-rank", type=int, default=64, help="highest rank that the engine can load")
    parser.add_argument("--max-len", type=int, default=1024, help="longest context of the engine")
    parser.add_argument("--codes", nargs="+", choices=CODES, default=list(CODES), help="whose LoRA code")
    parser.add_argument("--loads", nargs="+", default=["decode", "prefill"], help="kinds of chats")
    parser.add_argument("--tokens", type=int, default=32, help="length of answers when mostly decoding")
    parser.add_argument("--sentences", type=int, default=20, help="length of questions when mostly reading")
    parser.add_argument("--requests", type=int, default=96, help="requests of one measurement")
    parser.add_argument("--warm-up", type=int, default=16, help="requests before, of each kind")
    parser.add_argument("--at-once", type=int, default=32, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = rows(asyncio.run(compare(options)))
    console = Console(highlight=False)
    console.print_json(json.dumps(found)) if options.json else console.print(show(found))


if __name__ == "__main__":
    main()
