"""``make check-bases``: trains and serves adapters for small random bases of many families, and compares with PEFT.

For each family a base is made, an adapter trained by ``tenon train`` and served by ``tenon up`` and ``tenon deploy``,
and both are asked for the log-probabilities of a training prompt followed by tokens drawn at random. They are to be
those that transformers and PEFT compute, as in the training. All in float32. What a command refuses is told.
"""

import argparse
import contextlib
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.net import post_json
from evalsuite.load.machine import describe, without_settings
from evalsuite.load.verdict import Goal, add_json_option, report
from serve.net import free_port
from train.families import FAMILIES

MOST, LEAST = 1e-3, 0.1
"""Nats by which the engine may differ from PEFT, and by which the adapter must differ from its base somewhere."""
REFUSED = {"stablelm": "does not support LoRA"}
"""Families of which vLLM adapts nothing, and what is said of them."""
DRAWN = 24
WORDS = ("card", "bank", "money", "transfer", "lost", "pin", "cash", "fee", "top", "up")


class Failed(Exception):
    """A command ended with an error; the message is its first line."""


def tenon(home: Path, environment: Mapping[str, str], *arguments: str) -> str:
    """What a command prints; raises :class:`Failed`."""
    return python("deploy", *arguments, **environment, TENON_HOME=str(home))


def python(module: str, *arguments: str, **environment: str) -> str:
    """What a module of ours prints; raises :class:`Failed` with its error, or its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**without_settings(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.splitlines()
        told = [line for line in lines if line.startswith("error:")] or lines[-1:]
        raise Failed(told[0] if told else f"{module} ended with {done.returncode}")
    return done.stdout


def rows(path: Path) -> None:
    """Write questions to learn from: an answer that depends on the last word."""
    draw = random.Random(0)
    lines = [
        f"{' '.join(draw.sample(WORDS, 4))} {number},{'yes' if number % 2 else 'no'}" for number in range(120)
    ]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")


def engine_scores(url: str, model: str, ids: Sequence[int]) -> list[float]:
    """Log-probabilities (nats) of the tokens after the first."""
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    answer = post_json(f"{url}/v1/completions", body)
    if "choices" not in answer:
        raise Failed(f"the engine gave no log-probabilities for {model}")
    told = answer["choices"][0]["prompt_logprobs"]
    return [float(next(iter(place.values()))["logprob"]) for place in told[1:]]


def check(family: str, folder: Path) -> dict[str, Any]:
    """One family's row: the largest differences in nats, or what was refused."""
    base, home, port = folder / family, folder / "home", free_port("127.0.0.1")
    rows(folder / "rows.csv")
    environment = {
        "TENON_MODEL": str(base),
        "TENON_PORT": str(port),
        "TENON_ENGINE_ARGS": "--dtype float32",
        "HF_HUB_OFFLINE": "1",
    }
    learn = (
        f"data.train={folder / 'rows.csv'}",
        "train.max_steps=40",
        "train.learning_rate=0.01",
        "lora.rank=8",
    )
    try:
        python("train.families", "make", family, str(base))
        tenon(home, environment, "up", "--detach")
        tenon(home, environment, "train", "default", f"base={base}", "name=check", *learn)
        tenon(home, environment, "deploy", "check@v1", "--force")
        asked = json.loads(next((home / "runs").glob("*/asked.json")).read_text(encoding="utf-8"))
        draw = random.Random(1)
        ids = [*asked["tokens"], *(draw.randrange(10, 4000) for _ in range(DRAWN))]
        shown = json.loads(tenon(home, environment, "adapters", "show", "check@v1", "--json"))
        url = f"http://127.0.0.1:{port}"
        engine = {"base": engine_scores(url, shown["base"], ids), "adapter": engine_scores(url, "check", ids)}
        own = json.loads(python("train.families", "score", str(base), shown["path"], *map(str, ids)))
    except Failed as failure:
        return {"family": family, "base": "", "adapter": "", "effect": "", "told": str(failure)}
    finally:
        with contextlib.suppress(Failed):
            tenon(home, {}, "down")
    return {
        "family": family,
        "base": round(furthest(engine["base"], own["base"]), 6),
        "adapter": round(furthest(engine["adapter"], own["adapter"]), 6),
        "effect": round(furthest(own["base"], own["adapter"]), 3),
        "told": "",
    }


def furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference; NaN where there is one."""
    differ = [abs(value - to) for value, to in zip(one, other, strict=True)]
    return next((value for value in differ if math.isnan(value)), max(differ))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the families that the command line names; 1 where the engine computes otherwise than PEFT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_json_option(parser)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    options = parser.parse_args(arguments)
    found = []
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            found.append(check(family, Path(folder)))
    goals = []
    for row in found:
        if row["told"]:
            known = row["family"] in REFUSED and REFUSED[row["family"]] in row["told"]
            goals.append(Goal(f"{row['family']}: refused", float(not known), 0.0))
        else:
            goals.append(Goal(f"{row['family']}: nats of the base between both", row["base"], MOST))
            goals.append(Goal(f"{row['family']}: nats between engine and PEFT", row["adapter"], MOST))
            goals.append(
                Goal(f"{row['family']}: nats between adapter and base", row["effect"], LEAST, at_least=True)
            )
    content = {"machine": describe(), "options": {name: str(value) for name, value in vars(options).items()}}
    return report("Whether the engine computes what was trained", content, found, goals, options.json)


if __name__ == "__main__":
    sys.exit(main())
