"""``make check-lora-cpu``: our LoRA code for CPUs must say what vLLM's says.

Starts the real engine without and with our plugin. Each answers the same questions greedily, as the base and as
several adapters in turn, and gives the log-probabilities. Up to the first token in which the two engines differ they
read the same text, so there the log-probabilities must agree; and a first difference is allowed only between tokens
that were as good as equally likely to vLLM's own code, as bfloat16 rounds. That is asked one question at a time, as
vLLM's code gives other answers, also of the base, when adapters are mixed in a batch. Ours must not: asked many at
once, it is compared with itself.

With ``--reference``, vLLM's code is asked in float32 as well. How far both are from that is what rounding does, and
decides what counts as equally likely between the two: a lead that vLLM's own rounding could turn, up to twice the tie.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from evalsuite.load.adapters import write_adapter
from evalsuite.load.lora_cpu import (
    START_TIMEOUT,
    TIMEOUT,
    UnpluggedSpec,
    add_base_options,
    chosen_base,
    type_option,
)
from serve.engine.client import EngineClient
from serve.engine.process import EngineProcess
from serve.engine.spec import EngineSpec

WHATS = ("parcel", "kettle", "invoice", "refund", "phone", "address", "tent", "lamp", "order", "keyboard")
SAID = ("is late", "is broken", "is the wrong one", "cannot be found", "was too expensive")
ASKED = (
    "What can I do?",
    "Please help me soon, I need it for a party.",
    "When?",
    "Who can tell me more about it?",
)


@dataclass(frozen=True)
class Token:
    """One token of an answer: its log-probability (nats), and by how much it was ahead of the next likely one."""

    text: str
    logprob: float
    ahead: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Token":
        """Read an entry of a chat answer's ``logprobs.content`` with two ``top_logprobs``."""
        first, second = (float(top["logprob"]) for top in content["top_logprobs"][:2])
        return cls(content["token"], float(content["logprob"]), first - second)


@dataclass(frozen=True)
class Parity:
    """``same`` answers, those that part at a ``tie``, and at something else (``different``), with what they show.

    ``worst`` is the largest difference of log-probabilities of the same token after the same text, in nats, and
    ``mean`` the mean of these; ``examples`` say where answers differ.
    """

    answers: int
    tokens: int
    same: int
    tie: int
    different: int
    worst: float
    mean: float
    examples: list[str]


def compare(stock: Sequence[Sequence[Token]], ours: Sequence[Sequence[Token]], tie: float) -> Parity:
    """Compare answers pairwise; ``tie`` is the lead in nats up to which two tokens count as equally likely."""
    same = ties = 0
    gaps: list[float] = []
    examples = []
    for number, (theirs, own) in enumerate(zip(stock, ours, strict=True)):
        pairs = list(zip(theirs, own, strict=False))
        shared = list(itertools.takewhile(lambda pair: pair[0].text == pair[1].text, pairs))
        gaps += [abs(a.logprob - b.logprob) for a, b in shared]
        if len(shared) == len(theirs) == len(own):
            same += 1
        elif len(shared) < len(pairs) and pairs[len(shared)][0].ahead <= tie:
            ties += 1
        else:
            examples.append(f"answer {number}, token {len(shared)}: {pairs[len(shared) :][:1]}")
    different = len(stock) - same - ties
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    return Parity(len(stock), len(gaps), same, ties, different, max(gaps, default=0.0), mean, examples[:5])


def moved(answers: Sequence[Sequence[Token]], models: int) -> int:
    """How many answers of adapters are not those of the base, the first of each question's ``models`` answers.

    With none, the adapters do nothing and their parity says nothing.
    """
    texts = [[token.text for token in answer] for answer in answers]
    return sum(text != texts[number - number % models] for number, text in enumerate(texts))


def questions(many: int) -> list[str]:
    """Different questions of different lengths."""
    parts = itertools.islice(itertools.cycle(itertools.product(WHATS, SAID, ASKED)), many)
    return [
        f"My {what} {said}. " * (1 + number % 7) + f"It is number {number}. {asked}"
        for number, (what, said, asked) in enumerate(parts)
    ]


async def answers(
    spec: EngineSpec, adapters: Mapping[str, Path], options: argparse.Namespace, at_once: int
) -> list[list[Token]]:
    """What one engine answers: the questions in turn to the base and to each adapter, ``at_once`` at a time."""
    models = [spec.base_name, *adapters]
    gate = asyncio.Semaphore(at_once)
    with tempfile.TemporaryDirectory() as folder:
        engine = await EngineProcess.start(spec, Path(folder) / "engine.log")
        try:
            await engine.wait_ready(START_TIMEOUT)
            async with EngineClient(engine.url, timeout=300.0) as client:
                for name, path in adapters.items():
                    await client.load(name, path)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:

                async def ask(model: str, question: str) -> list[Token]:
                    body = {
                        "model": model,
                        "messages": [{"role": "user", "content": question}],
                        "max_tokens": options.tokens,
                        "temperature": 0,
                        "logprobs": True,
                        "top_logprobs": 2,
                    }
                    async with gate, session.post(f"{engine.url}/v1/chat/completions", json=body) as reply:
                        reply.raise_for_status()
                        content = (await reply.json())["choices"][0]["logprobs"]["content"]
                    return [Token.of(item) for item in content]

                asked = questions(options.first + options.prompts)[options.first :]
                pairs = [(model, question) for question in asked for model in models]
                return list(await asyncio.gather(*(ask(*pair) for pair in pairs)))
        finally:
            await engine.stop()


JUDGED = ("vLLM's code and ours", "ours alone and mixed")


async def check(options: argparse.Namespace) -> tuple[dict[str, Parity], int]:
    """Ask the engines, one after the other; compare ours with vLLM's, and ours in batches with ours alone.

    With a reference, both are compared with that, too. The second result is how many of vLLM's answers the adapters
    changed.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = chosen_base(options, Path(folder))
        adapters = {
            f"a{rank}": write_adapter(
                Path(folder) / f"a{rank}", base, rank=rank, seed=rank, scale=options.scale
            )
            for rank in options.ranks
        }
        given, exact = type_option(options), ("--dtype", "float32")
        ways = [(UnpluggedSpec, 1, given), (EngineSpec, 1, given), (EngineSpec, options.at_once, given)]
        found = []
        if options.reference:
            ways.append((UnpluggedSpec, 1, exact))
        for kind, at_once, dtype in ways:
            spec = kind(
                base.path,
                base.name,
                max_loras=len(adapters),
                max_lora_rank=max(8, *options.ranks),
                extra_args=dtype,
            )
            found.append(await answers(spec, adapters, options, at_once))
    stock, ours, mixed, *reference = found
    return judged(stock, ours, mixed, options.tie, *reference), moved(stock, 1 + len(adapters))


def judged(
    stock: Sequence[Sequence[Token]],
    ours: Sequence[Sequence[Token]],
    mixed: Sequence[Sequence[Token]],
    tie: float,
    reference: Sequence[Sequence[Token]] | None = None,
) -> dict[str, Parity]:
    """The comparisons; with a ``reference``, a tie of vLLM's code and ours is what rounding makes of vLLM's.

    Each of two tokens may be as far from the reference as its furthest was, so their lead moves by twice that; but
    more than twice the given ``tie`` is no tie.
    """
    to_reference, rounded = {}, tie
    if reference is not None:
        to_reference = {
            "float32 and vLLM's code": compare(reference, stock, tie),
            "float32 and ours": compare(reference, ours, tie),
        }
        rounded = min(max(tie, 2 * to_reference["float32 and vLLM's code"].worst), 2 * tie)
    first, second = JUDGED
    return {first: compare(stock, ours, rounded), second: compare(ours, mixed, tie), **to_reference}


def main() -> int:
    """Run the comparison and print it; 1 if answers differ by more than a tie, or if the adapters do nothing."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.lora_parity", description=__doc__)
    add_base_options(parser)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64], help="an adapter of each rank")
    parser.add_argument("--scale", type=float, default=2.0, help="how much the adapters change")
    parser.add_argument("--prompts", type=int, default=200, help="questions that each model is asked")
    parser.add_argument(
        "--first", type=int, default=0, help="questions to leave out before, to ask in pieces"
    )
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--at-once", type=int, default=32, help="requests at once")
    parser.add_argument("--tie", type=float, default=0.13, help="lead in nats that rounding may turn")
    parser.add_argument(
        "--reference", action="store_true", help="ask vLLM's code in float32, too, and take ties from that"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results, changed = asyncio.run(check(options))
    console = Console(highlight=False)
    if options.json:
        console.print_json(
            json.dumps({name: asdict(found) for name, found in results.items()} | {"changed": changed})
        )
    for name, found in results.items() if not options.json else ():
        console.print(
            f"{name}: {found.answers} answers: {found.same} the same, {found.tie} part at a tie, {found.different} "
            f"differ\nlog-probabilities of {found.tokens} tokens after the same text: "
            f"mean difference {found.mean:.1e}, largest {found.worst:.1e}"
        )
        for example in found.examples:
            console.print(f"  {example}", soft_wrap=True)
    if not options.json:
        console.print(f"the adapters change {changed} answers" + ("" if changed else ": raise --scale"))
    return 1 if not changed or any(results[name].different for name in JUDGED) else 0


if __name__ == "__main__":
    sys.exit(main())
