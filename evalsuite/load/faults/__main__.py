"""``python -m evalsuite.load.faults SCENARIO``: run one, or ``all`` that need nothing but this machine."""

import argparse
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import uvloop

from evalsuite.load import faults
from evalsuite.load.faults import controller, cuts, direct, disconnects, drain
from evalsuite.load.faults.found import Found
from evalsuite.load.machine import describe
from evalsuite.load.verdict import add_json_option, report

SCENARIOS: Mapping[str, Callable[[argparse.Namespace], Coroutine[Any, Any, Found]]] = {
    "disconnects": disconnects.run,
    "cuts": cuts.run,
    "drain": drain.run,
    "controller": controller.run,
    "direct": direct.run,
}
ALL = tuple(name for name in SCENARIOS if name != "direct")


def parser() -> argparse.ArgumentParser:
    """The options of all scenarios."""
    made = argparse.ArgumentParser(prog="python -m evalsuite.load.faults", description=faults.__doc__)
    made.add_argument("scenario", choices=[*SCENARIOS, "all"])
    made.add_argument(
        "--requests", type=int, help="disconnects: clients (1000); direct: streams a round (128)"
    )
    made.add_argument("--cuts", type=int, default=200, help="cuts: streams")
    made.add_argument("--streams", type=int, default=50, help="drain: open streams")
    made.add_argument("--kills", type=int, default=20, help="controller: kills")
    made.add_argument("--rate", type=float, default=50.0, help="controller: requests per second")
    made.add_argument("--gateway", metavar="URL", help="direct: the gateway")
    made.add_argument("--engine", metavar="URL", help="direct: the engine behind it")
    made.add_argument("--model", help="direct: the name that the gateway is asked for")
    made.add_argument("--engine-model", help="direct: the engine's own name for it, if it is another")
    made.add_argument("--key", help="direct: the gateway's API key, if it asks for one")
    made.add_argument("--at-once", type=int, default=32, help="direct: streams at once")
    made.add_argument("--tokens", type=int, default=64, help="direct: tokens of each stream")
    made.add_argument("--rounds", type=int, default=6, help="direct: pairs of measurements, 2 to 16")
    add_json_option(made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether every goal is met."""
    made = parser()
    options = made.parse_args(argv)
    if options.scenario == "direct" and not (options.gateway and options.engine and options.model):
        made.error("direct needs --gateway, --engine and --model")
    if not 2 <= options.rounds <= 16:
        made.error("--rounds must be 2 to 16")
    options.requests = options.requests or (128 if options.scenario == "direct" else 1000)
    code, machine = 0, describe()
    for name in ALL if options.scenario == "all" else [options.scenario]:
        found = uvloop.run(SCENARIOS[name](options))
        path = options.json
        if path is not None and options.scenario == "all":
            path = path.with_name(f"{path.stem}-{name}{path.suffix}")
        content = {"machine": machine, "scenario": name, "title": found.title, **found.more}
        code |= report(found.title, content, found.rows, found.goals, path)
    return code


if __name__ == "__main__":
    sys.exit(main())
