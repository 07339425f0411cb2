"""``make bench-slots``: how long requests of many adapters wait for the first token, on the real engine.

Many adapters share few slots, some are asked far more often than others (Zipf). The same schedule of requests goes
once straight to vLLM, which passes over whoever does not fit, and once through a gateway in front of the same engine,
which lets nobody starve; the two take turns. Requests come whether those before are answered or not, and their time
counts from when they were due. ``python -m evalsuite.load.slots`` is the simulation of the same.
"""

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from evalsuite.load import house, stand
from evalsuite.load.connection import request_to
from evalsuite.load.lora_cpu import add_base_options, chosen_base
from evalsuite.load.machine import describe
from evalsuite.load.replay import Call, Plan, Seen, Waits, replay, summarise
from evalsuite.load.verdict import Goal, add_json_option, report
from serve.engine.client import EngineClient

DIRECT, THROUGH = "vLLM directly", "through the gateway"


@dataclass(frozen=True)
class Arm:
    """One way to the engine: the URL, the adapters' names there, and the key if it asks for one."""

    name: str
    url: str
    models: Sequence[str]
    key: str | None = None

    def request(self, call: Call, number: int) -> bytes:
        """The bytes of a call."""
        body = stand.chat(self.models[call.adapter], number, sentences=call.sentences, tokens=call.tokens)
        return request_to(self.url, body, key=self.key)


Measured = dict[tuple[float, str], Waits]
"""By rate and arm."""


async def rounds(arms: Sequence[Arm], plan: Plan, count: int, numbers: "itertools.count[int]") -> list[Waits]:
    """Replay ``count`` schedules, drawn from as many seeds, on each arm; who begins alternates."""
    found: dict[str, list[list[Seen]]] = {arm.name: [] for arm in arms}
    for turn in range(count):
        calls = Plan(**{**asdict(plan), "seed": plan.seed + turn}).calls()
        for arm in arms if turn % 2 == 0 else reversed(arms):
            seen = await replay(arm.url, calls, lambda call, arm=arm: arm.request(call, next(numbers)))  # type: ignore[misc]
            found[arm.name].append(seen)
    return [summarise(found[arm.name]) for arm in arms]


async def measure(options: argparse.Namespace) -> Measured:
    """Start engine and gateway, and replay the schedules of every rate."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = chosen_base(options, folder)
        names = [f"a{number:02}" for number in range(1, options.adapters + 1)]
        made = stand.write_adapters(folder / "made", base, names, options.rank)
        versions, key = house.deploy(folder / "home", base, made)
        spec = stand.engine_spec(
            options,
            base,
            max_loras=options.slots,
            max_cpu_loras=max(options.adapters, options.slots),
            max_num_seqs=options.running,
        )
        async with stand.engine(spec, folder / "engine.log") as engine:
            async with EngineClient(engine.url) as client:
                for version in versions:
                    await client.load(version.engine_name, version.path)
            with stand.gateway(folder / "home", spec, base, engine.url) as url:
                arms = [
                    Arm(DIRECT, engine.url, [version.engine_name for version in versions]),
                    Arm(THROUGH, url, names, key),
                ]
                for arm in arms:
                    await stand.wait_for(arm.url, arm.models, arm.key)
                return await all_rates(arms, options)


async def all_rates(arms: Sequence[Arm], options: argparse.Namespace) -> Measured:
    """The waits of each rate and arm."""
    found: Measured = {}
    numbers = itertools.count(1000)
    for rate in options.rates:
        plan = Plan(options.adapters, rate, options.skew, options.seconds, options.tokens, seed=options.seed)
        waits = await rounds(arms, plan, options.rounds, numbers)
        found |= {(rate, arm.name): waited for arm, waited in zip(arms, waits, strict=True)}
    return found


def rows(found: Mapping[tuple[float, str], Waits]) -> list[dict[str, Any]]:
    """What the table shows: seconds, one line per rate and arm."""
    return [
        {
            "requests/s": rate,
            "asked": arm,
            "requests": waits.requests,
            "failed": waits.failed,
            "TTFT mean": waits.mean,
            "p50": waits.p50,
            "p99": waits.p99,
            "worst adapter's p50": waits.worst_p50,
            "worst adapter's p99": waits.worst_p99,
            "tokens/s": waits.tokens_per_second,
            "client late, p99": waits.lag_p99,
        }
        for (rate, arm), waits in found.items()
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m evalsuite.load.slots_engine", description=__doc__)
    add_base_options(made)
    stand.add_engine_options(made)
    made.add_argument("--adapters", type=int, default=16, help="adapters that are asked")
    made.add_argument("--slots", type=int, default=4, help="adapters that the engine computes at once")
    made.add_argument("--running", type=int, help="requests that it computes at once (vLLM's own limit)")
    made.add_argument("--rates", type=float, nargs="+", default=[4, 8, 16], help="requests per second")
    made.add_argument("--skew", type=float, default=Plan.skew, help="exponent of the Zipf distribution")
    made.add_argument("--seconds", type=float, default=Plan.seconds, help="length of a schedule")
    made.add_argument("--tokens", type=int, default=Plan.tokens, help="median length of the answers")
    made.add_argument("--rounds", type=int, default=2, help="schedules of each rate")
    made.add_argument("--seed", type=int, default=Plan.seed, help="of the first schedule")
    add_json_option(made)
    return made


def main() -> int:
    """Measure, print, and say by the exit code whether every request was answered."""
    options = parser().parse_args()
    gc.disable()  # in the client, whose pauses would be taken for the engine's
    machine = describe()
    found = uvloop.run(measure(options))
    title = (
        f"{options.adapters} adapters on {options.slots} slots, Zipf {options.skew:g}, "
        f"{options.rounds} × {options.seconds:g} s, times in seconds"
    )
    content = {
        "machine": machine,
        "options": {name: str(value) for name, value in vars(options).items()},
        "measured": [{"rate": rate, "arm": arm, **asdict(waits)} for (rate, arm), waits in found.items()],
    }
    failed = sum(waits.failed for waits in found.values())
    return report(title, content, rows(found), [Goal("failed requests", failed, 0)], options.json)


if __name__ == "__main__":
    sys.exit(main())
