"""``make bench-starts``: how soon an engine on a CPU is ready, and gone again, as vLLM has it and as we do.

vLLM's own server starts its core in a fresh interpreter. Ours imports the same in less time; its core is started so,
too (as on a GPU), or forked. All in turns, after one start each that is not counted, as it writes bytecode and fills
the disk's cache.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from evalsuite.load import stand
from evalsuite.load.lora_cpu import add_base_options, chosen_base, type_option
from evalsuite.load.machine import describe
from evalsuite.load.turns import turns
from evalsuite.load.verdict import Goal, add_json_option, report
from serve.engine.spec import START_PLUGIN, EngineSpec

VLLM_COMMAND = (sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server")


@dataclass(frozen=True)
class SpawnedSpec(EngineSpec):
    """The engine whose core vLLM starts in a fresh interpreter."""

    def environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours, without the plugin that has it forked."""
        whole = super().environment(inherited)
        plugins = [name for name in whole["VLLM_PLUGINS"].split(",") if name != START_PLUGIN]
        return {**whole, "VLLM_PLUGINS": ",".join(plugins)}


@dataclass(frozen=True)
class Start:
    """One start: seconds until the engine answered, and from being told to end until all of it had ended.

    ``memory`` is that of its processes in MiB, shared pages counted once.
    """

    seconds: float
    ending: float
    memory: float


async def start(spec: EngineSpec, folder: Path) -> Start:
    """Start an engine, and stop it."""
    started = time.perf_counter()
    async with stand.engine(spec, folder / "engine.log") as engine:
        lasted = time.perf_counter() - started
        server = psutil.Process(engine.record.pid)
        processes = [server, *server.children(recursive=True)]
        memory = sum(process.memory_full_info().pss for process in processes) / 2**20
        told = time.perf_counter()
    return Start(lasted, time.perf_counter() - told, memory)


async def measure(specs: Mapping[str, EngineSpec], rounds: int) -> dict[str, list[Start]]:
    """The starts of each spec by round."""
    found: dict[str, list[Start]] = {way: [] for way in specs}
    with tempfile.TemporaryDirectory() as folder:
        for way, spec, counts in turns(specs, rounds):
            one = await start(spec, Path(folder))
            if counts:
                found[way].append(one)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 where our ways are no gain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_base_options(parser)
    stand.add_engine_options(parser)
    add_json_option(parser)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        forked = stand.engine_spec(options, chosen_base(options, Path(folder)), *type_option(options))
        spawned = SpawnedSpec(**vars(forked))
        theirs = replace(spawned, command=spawned.command if options.engine_command else VLLM_COMMAND)
        ways = {"vLLM's, spawned": theirs, "ours, spawned": spawned, "ours, forked": forked}
        found = asyncio.run(measure(ways, options.rounds))
    seconds = {way: [one.seconds for one in starts] for way, starts in found.items()}
    endings = {way: statistics.median(one.ending for one in starts) for way, starts in found.items()}
    rows = [
        {
            "server, core": way,
            "s until ready": round(statistics.median(seconds[way]), 1),
            "from": round(min(seconds[way]), 1),
            "to": round(max(seconds[way]), 1),
            "s to end": round(endings[way], 2),
            "MiB": round(statistics.median(one.memory for one in starts)),
        }
        for way, starts in found.items()
    ]
    content = {"machine": describe(), "options": {name: str(value) for name, value in vars(options).items()}}
    medians = {way: statistics.median(lasted) for way, lasted in seconds.items()}
    base, *others = ways
    goals = [
        Goal(f"seconds {what}, {way} over vLLM's", values[way] / values[base], 1.0)
        for what, values in (("until ready", medians), ("to end", endings))
        for way in others
    ]
    return report("How soon an engine is ready and gone", content, rows, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
