"""The effect probe: does the engine, asked for an adapter, answer otherwise than its base?

vLLM can say 200 to a load and serve the base all the same. So the log-probabilities that base and adapter
give to the next token after fixed prompts are compared. (Those of the prompts' own tokens would say more
per request, but asking for them while other requests run ends vLLM 0.32 on a CPU: its LoRA code for logits
expects one row per request.)

The same prompt need not always get the same numbers: in bfloat16 they can depend on what is computed beside
it. The base is therefore asked twice, before and after the adapter, and the adapter must differ from it by
more than the base differs from itself. Measured with random-weight models: the noise was 0, also among 24
requests at once; an adapter whose B has a standard deviation of 0.002 differs by 0.02 nats.

An engine that writes nothing is asked for what it does instead: classes before their softmax, or vectors. Their
differences are shares of the base's largest number for the same prompt.

That it answers otherwise than the base does not say that it answers as itself: see :mod:`serve.engine.recognition`,
which compares the answers that were heard here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from serve.engine.client import COMPLETIONS
from serve.engine.interface import POOLED, RouteMissing, Speaker
from serve.errors import SilentAdapter

PROMPTS = (
    "The parcel was sent on Monday and should have been here by now. Could you please find out where it",
    "Question: what is the capital of France, and which river runs through it?\nAnswer:",
    'Return the order number and the city as JSON: "My order 48213 never reached Leeds." {"order": "',
    "In the morning fog lay on the fields, and nobody in the village had yet heard the news from the",
    "Classify the message. Message: I was charged twice for the same ticket. Label:",
    "Dear customer, thank you for your letter of last week. We are sorry to hear that your",
)
"""Plain English of the kinds that adapters are made for."""

FLOOR = 1e-4
"""The largest difference, in nats or shares, that is no effect even on an engine that repeats itself exactly."""

NOISE_FACTOR = 3.0
"""How many times the base's difference from itself an effect must be."""

KEPT = 128
"""Numbers of a vector that are kept of an answer: some engines answer with one for each token."""


@dataclass(frozen=True)
class Answers:
    """What an engine answered to :data:`PROMPTS` under one name, by which route.

    Where it writes, ``logprobs`` of the likeliest next tokens, in nats; else the first :data:`KEPT` numbers of its
    ``vectors``.
    """

    route: str
    logprobs: Sequence[Mapping[str, float]] = ()
    vectors: Sequence[Sequence[float]] = ()

    def distance(self, other: "Answers") -> float:
        """The largest difference, in nats, or in shares of this one's largest number; both of one route."""
        if self.route == COMPLETIONS:
            return largest_difference(self.logprobs, other.logprobs)
        return largest_share(self.vectors, other.vectors)

    @property
    def rounding(self) -> float:
        """What an adapter's answers may differ by, in ``distance``, only because they were computed otherwise.

        In nats the most that was measured between two LoRA codes in bfloat16 was 0.16 (docs/benchmarks.md). A number
        in bfloat16 is right to 0.4 % of itself; of vectors a good ten times that is taken.
        """
        return 0.2 if self.route == COMPLETIONS else 0.05


@dataclass(frozen=True)
class EffectProbe:
    """Largest differences over all prompts: adapter from base, base from itself (``noise``).

    In nats, or, where vectors were compared (``what`` says so), in shares of the base's largest number. ``base``
    and ``adapter`` are what was compared.
    """

    max_difference: float
    noise: float
    base: Answers
    adapter: Answers

    @property
    def same(self) -> float:
        """The largest difference that is none."""
        return max(FLOOR, NOISE_FACTOR * self.noise)

    @property
    def silent(self) -> bool:
        """Whether the adapter answers as the base does."""
        return self.max_difference <= self.same

    @property
    def what(self) -> str:
        """What was compared, in words."""
        route = self.base.route
        return "log-probability" if route == COMPLETIONS else f"what {route} answers"


async def measure_effect(client: Speaker, base_name: str, engine_name: str) -> EffectProbe:
    """Compare an adapter with its base on :data:`PROMPTS`; raises as ``next_logprobs``."""
    try:
        before = await client.next_logprobs(base_name, PROMPTS)
    except RouteMissing as error:
        return await _measure_vectors(client, base_name, engine_name, error)
    adapter = await client.next_logprobs(engine_name, PROMPTS)
    after = await client.next_logprobs(base_name, PROMPTS)
    noise = largest_difference(before, after)
    effect = min(largest_difference(adapter, before), largest_difference(adapter, after))
    return EffectProbe(
        effect, noise, Answers(COMPLETIONS, logprobs=before), Answers(COMPLETIONS, logprobs=adapter)
    )


async def _measure_vectors(
    client: Speaker, base_name: str, engine_name: str, refusal: RouteMissing
) -> EffectProbe:
    """Compare what the first route of :data:`POOLED` that the engine has says; ``refusal`` is raised without one."""
    for path in POOLED:
        try:
            before = await client.vectors(base_name, path, PROMPTS)
        except RouteMissing:
            continue
        adapter = await client.vectors(engine_name, path, PROMPTS)
        after = await client.vectors(base_name, path, PROMPTS)
        noise = largest_share(before, after)
        effect = min(largest_share(before, adapter), largest_share(after, adapter))
        base, own = (
            Answers(path, vectors=[vector[:KEPT] for vector in found]) for found in (before, adapter)
        )
        return EffectProbe(effect, noise, base, own)
    raise refusal


async def probe_effect(client: Speaker, base_name: str, engine_name: str, *, all_zero: bool) -> EffectProbe:
    """Return what an adapter changes, or raise :class:`SilentAdapter` if that is nothing.

    ``all_zero`` (the files say that every product of A and B is zero) decides what the error blames.
    """
    probe = await measure_effect(client, base_name, engine_name)
    if not probe.silent:
        return probe
    if all_zero:
        text = f"{engine_name} answers exactly as the base: its weights are all zero"
        raise SilentAdapter(text, "it was saved before training, or training changed nothing: train it again")
    text = (
        f"{engine_name} is loaded but answers as the base does (largest difference in {probe.what} "
        f"{probe.max_difference:.2g}, the base's own noise {probe.noise:.2g})"
    )
    hint = "the engine ignored its weights, or they are too small to count: check target modules and training"
    raise SilentAdapter(text, hint)


def largest_difference(left: Sequence[Mapping[str, float]], right: Sequence[Mapping[str, float]]) -> float:
    """The largest difference of two answers of ``next_logprobs`` to the same prompts, in nats.

    Each holds the likeliest tokens only. One that the other side lacks is at most as likely there as the
    least of its own, so that the distance from there is a lower bound.
    """
    differences = [0.0]
    for one, other in zip(left, right, strict=True):
        for mine, yours in ((one, other), (other, one)):
            least = min(yours.values(), default=0.0)
            differences += [abs(mine[token] - yours[token]) for token in mine.keys() & yours.keys()]
            differences += [mine[token] - least for token in mine.keys() - yours.keys()]
    return max(differences)


def largest_share(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference of two answers of ``vectors``, each as a share of the base's largest number.

    An adapter's own head may have more labels than the base's, or fewer: what one side lacks counts as zero.
    """
    shares = [0.0]
    for mine, yours in zip(base, other, strict=True):
        largest = max(map(abs, mine), default=0.0) or 1.0
        shares += [abs(a - b) / largest for a, b in zip_longest(mine, yours, fillvalue=0.0)]
    return max(shares)
