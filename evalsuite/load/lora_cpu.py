"""``make bench-lora-cpu``: LoRA on a CPU with vLLM's stock code and with ours, each beside the bare base.

Starts the real engine twice, without and with our plugin, and has many short chats answered at once by the base,
by one adapter and by several mixed. What counts are the ratios to the base of the same engine.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from evalsuite.load.adapters import write_adapter
from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess
from serve.engine.spec import EngineSpec
from serve.registry.base import BaseIdentity, identify_base

CHAT = [
    {"role": "user", "content": "Where is my parcel? I ordered a kettle last week and it has not come yet."}
]
START_TIMEOUT = 300.0


@dataclass(frozen=True)
class UnpluggedSpec(EngineSpec):
    """The engine with vLLM's own CPU code for LoRA."""

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours, without plugins."""
        return {**super().environment(inherited), "VLLM_PLUGINS": ""}


async def throughput(url: str, models: Sequence[str], *, requests: int, at_once: int, tokens: int) -> float:
    """Answered requests per second: ``requests`` chats of ``tokens`` tokens, ``models`` taking turns."""
    gate = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> None:
            body = {
                "model": models[number % len(models)],
                "messages": CHAT,
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            }
            async with gate, session.post(f"{url}/v1/chat/completions", json=body) as reply:
                reply.raise_for_status()
                await reply.read()

        started = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(requests)))
        return requests / (time.perf_counter() - started)


async def measure(
    spec: EngineSpec, adapters: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Requests per second of base, one adapter and all mixed, in ``options.rounds`` rounds that take turns."""
    names = list(adapters)
    mixes = {"base": [spec.base_name], "1 adapter": names[:1], f"{len(names)} mixed": names}
    found: dict[str, list[float]] = {name: [] for name in mixes}
    with tempfile.TemporaryDirectory() as folder:
        engine = await EngineProcess.start(spec, Path(folder) / "engine.log")
        try:
            await engine.wait_ready(START_TIMEOUT)
            async with EngineClient(engine.url, timeout=60.0) as client:
                for name, path in adapters.items():
                    await client.load(name, path)
            for turn in range(options.rounds + 1):
                for name, models in mixes.items():
                    rate = await throughput(
                        engine.url,
                        models,
                        requests=options.requests,
                        at_once=options.at_once,
                        tokens=options.tokens,
                    )
                    if turn:  # the first round warms up
                        found[name].append(rate)
        finally:
            await engine.stop()
    return found


async def compare(base: BaseIdentity, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """The measurements of both engines, one after the other."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = {
            f"a{number}": write_adapter(Path(folder) / f"a{number}", base, rank=options.rank, seed=number)
            for number in range(options.adapters)
        }
        for label, kind in (("stock", UnpluggedSpec), ("ours", EngineSpec)):
            spec = kind(base.path, base.name, max_loras=options.adapters, max_lora_rank=options.max_rank)
            results[label] = await measure(spec, adapters, options)
    return results


def show(results: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """Medians in requests per second, and their ratio to the base of the same engine."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("LoRA code", "load", "requests/s", "to base", "all rounds"):
        table.add_column(column, justify="left" if column in ("LoRA code", "load") else "right")
    for label, rows in results.items():
        base = statistics.median(rows["base"])
        for name, rates in rows.items():
            middle = statistics.median(rates)
            each = " ".join(f"{rate:.1f}" for rate in rates)
            table.add_row(label, name, f"{middle:.1f}", f"{middle / base:.2f}", each)
    return table


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.lora_cpu", description=__doc__)
    parser.add_argument("--model", default="tenon-tiny", help="base model")
    parser.add_argument("--adapters", type=int, default=3, help="adapters in the mix")
    parser.add_argument("--rank", type=int, default=16, help="their rank")
    parser.add_argument("--max-rank", type=int, default=64, help="highest rank that the engine can load")
    parser.add_argument("--requests", type=int, default=96, help="requests of one measurement")
    parser.add_argument("--at-once", type=int, default=32, help="requests at once")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results = asyncio.run(compare(identify_base(options.model), options))
    console = Console(highlight=False)
    console.print_json(json.dumps(results)) if options.json else console.print(show(results))


if __name__ == "__main__":
    main()
