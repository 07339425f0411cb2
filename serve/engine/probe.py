"""The effect probe: does the engine, asked for an adapter, answer otherwise than its base?

vLLM can say 200 to a load and serve the base all the same. So the log-probabilities that base and adapter
give to the next token after fixed prompts are compared. (Those of the prompts' own tokens would say more
per request, but asking for them while other requests run ends vLLM 0.32 on a CPU: its LoRA code for logits
expects one row per request.)

The same prompt need not always get the same numbers: in bfloat16 they can depend on what is computed beside
it. The base is therefore asked twice, before and after the adapter, and the adapter must differ from it by
more than the base differs from itself. Measured with random-weight models: the noise was 0, also among 24
requests at once; an adapter whose B has a standard deviation of 0.002 differs by 0.02 nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.engine.interface import Speaker
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
"""The largest difference, in nats, that is no effect even on an engine that repeats itself exactly."""

NOISE_FACTOR = 3.0
"""How many times the base's difference from itself an effect must be."""


@dataclass(frozen=True)
class EffectProbe:
    """Largest differences over all prompts, in nats: adapter from base, base from itself (``noise``)."""

    max_difference: float
    noise: float
    silent: bool


async def measure_effect(client: Speaker, base_name: str, engine_name: str) -> EffectProbe:
    """Compare an adapter with its base on :data:`PROMPTS`; raises as ``next_logprobs`` does."""
    before = await client.next_logprobs(base_name, PROMPTS)
    adapter = await client.next_logprobs(engine_name, PROMPTS)
    after = await client.next_logprobs(base_name, PROMPTS)
    noise = largest_difference(before, after)
    effect = min(largest_difference(adapter, before), largest_difference(adapter, after))
    return EffectProbe(effect, noise, silent=effect <= max(FLOOR, NOISE_FACTOR * noise))


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
        f"{engine_name} is loaded but answers as the base does (largest difference in log-probability "
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
