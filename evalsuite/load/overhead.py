"""``make bench-overhead``: how much of the engine's throughput is left behind the gateway.

Starts an engine with one adapter and a gateway in front of it, and streams many answers at once from each in turn,
as ``python -m evalsuite.load.faults direct`` does with those that run already. Choose a base (``--shape``) whose step
costs what a real model's does: before a very small one the gateway weighs more than it ever will.
"""

import argparse
import gc
import sys
import tempfile
from pathlib import Path

import uvloop

from evalsuite.load import house, stand
from evalsuite.load.faults import direct
from evalsuite.load.faults.found import Found
from evalsuite.load.lora_cpu import add_base_options, chosen_base
from evalsuite.load.machine import describe
from evalsuite.load.verdict import add_json_option, report


async def measure(options: argparse.Namespace) -> Found:
    """Start engine and gateway, and compare them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = chosen_base(options, folder)
        async with stand.loaded(options, base, folder) as engine:
            with house.gateway(engine.home) as (_, url):
                await stand.wait_for(url, [house.ADAPTER], engine.key)
                asked = {"gateway": url, "engine": engine.url, "key": engine.key}
                names = {"model": house.ADAPTER, "engine_model": engine.engine_name}
                return await direct.run(argparse.Namespace(**{**vars(options), **asked, **names}))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m evalsuite.load.overhead", description=__doc__)
    add_base_options(made)
    stand.add_engine_options(made)
    made.add_argument("--at-once", type=int, default=32, help="streams at once")
    made.add_argument("--requests", type=int, default=64, help="streams of one measurement")
    made.add_argument("--tokens", type=int, default=64, help="tokens of each stream")
    made.add_argument("--rounds", type=int, default=6, help="pairs of measurements, 2 to 16")
    add_json_option(made)
    return made


def main() -> int:
    """Measure, print, and say by the exit code whether the goals are met."""
    made = parser()
    options = made.parse_args()
    if not 2 <= options.rounds <= len(direct.T_95) + 1:
        made.error(f"--rounds must be 2 to {len(direct.T_95) + 1}")
    gc.disable()  # in the client, whose pauses would be taken for the engine's
    machine = describe()
    found = uvloop.run(measure(options))
    base = options.shape or options.model
    content = {"machine": machine, "options": {name: str(value) for name, value in vars(options).items()}}
    return report(f"{base}: {found.title}", {**content, **found.more}, found.rows, found.goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
