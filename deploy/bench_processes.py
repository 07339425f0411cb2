"""``make bench-processes``: how long processes take that train, command and serve, beside the same without our care.

The processes of a training, a controller and a gateway import what they need and end; a command lists aliases.
Without our care, all are looked through for garbage while they import, the training imports all that TRL would import
and is taken apart by Python, and the command imports the engine's client and is looked through once more at its end
(docs/decisions/016-starts.md). Both ways in turns, after a round that is not counted.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalsuite.load.machine import describe, without_settings
from evalsuite.load.turns import turns
from evalsuite.load.verdict import Goal, add_json_option, report

ROOT = Path(__file__).resolve().parents[1]
PLAIN, OURS = "plain", "ours"
LIST = 'import sys; sys.argv[1:] = ["aliases", "list"]\n'
AT_REST = "from serve.imports import collector_resting\n"
CODE: Mapping[str, Mapping[str, str]] = {
    "training": {
        PLAIN: "import train.methods.sft",
        OURS: "import os\n"
        "from train.imports import importing_less\n"
        "with importing_less(): import train.methods.sft\n"
        "os._exit(0)",
    },
    "command": {
        PLAIN: LIST + "import gc; gc.freeze = lambda: None\n"
        "import serve.engine.client\n"
        "from deploy.cli import main; main()",
        OURS: LIST + "from deploy.__main__ import main; main()",
    },
    "controller": {
        PLAIN: "import deploy.controller.control",
        OURS: AT_REST + "with collector_resting(): import deploy.controller.control",
    },
    "gateway": {
        PLAIN: "import serve.gateway.command",
        OURS: AT_REST + "with collector_resting(): import serve.gateway.command",
    },
}
"""What is run for each kind of process, each way."""


@dataclass(frozen=True)
class Life:
    """One process from its start to its end: seconds that passed, and seconds of processor time."""

    passed: float
    computed: float


def live(code: str, home: Path) -> Life:
    """Run code in a process of its own."""
    environment = {
        **without_settings(),
        "TENON_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Life(passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(kind: str, rounds: int) -> dict[str, list[Life]]:
    """The lives of a kind of process by round, each way."""
    found: dict[str, list[Life]] = {way: [] for way in CODE[kind]}
    with tempfile.TemporaryDirectory() as home:
        for way, code, counts in turns(CODE[kind], rounds):
            one = live(code, Path(home))
            if counts:
                found[way].append(one)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 where our care is no gain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_json_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=list(CODE), default=list(CODE))
    options = parser.parse_args(arguments)
    rows, goals = [], []
    for kind in options.kinds:
        found = measure(kind, options.rounds)
        passed = {way: [life.passed for life in lives] for way, lives in found.items()}
        rows += [
            {
                "process": kind,
                "way": way,
                "s": round(statistics.median(passed[way]), 2),
                "from": round(min(passed[way]), 2),
                "to": round(max(passed[way]), 2),
                "s computed": round(statistics.median(life.computed for life in lives), 2),
            }
            for way, lives in found.items()
        ]
        ratio = statistics.median(passed[OURS]) / statistics.median(passed[PLAIN])
        goals.append(Goal(f"seconds of a {kind}, ours over plain", ratio, 1.0))
    content = {"machine": describe(), "options": {name: str(value) for name, value in vars(options).items()}}
    return report("How long processes take", content, rows, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
