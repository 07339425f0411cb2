"""What an engine does at once: as it was started by us, or as far as one can know of an attached one."""

from collections.abc import Iterable
from dataclasses import dataclass

from serve.engine.interface import Sample

SLOTS_METRIC, SLOTS_LABEL = "vllm:lora_requests_info", "max_lora"
"""Where vLLM says its ``--max-loras``: in a label that is there from the first request on, whatever was asked, unless
it was started with ``--disable-log-stats``. ``--max-cpu-loras`` it says nowhere."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine does at once: distinct adapters, and requests; and how many adapters it keeps in memory."""

    max_loras: int = 4
    max_cpu_loras: int = 16
    max_num_seqs: int = 256


@dataclass(frozen=True)
class GivenLimits:
    """What the operator says of the limits of an attached engine; None is nothing."""

    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_num_seqs: int | None = None

    def beside(self, slots: int | None) -> EngineLimits:
        """The limits, where the engine itself says that it computes ``slots`` adapters at once (None: not yet).

        What nobody says of its memory is vLLM's default then: as many as it computes. To take it for more would
        have it drop adapters and read their folders again later, unchecked.
        """
        usual = EngineLimits()
        max_loras = self.max_loras or slots or usual.max_loras
        kept = slots or max(usual.max_cpu_loras, max_loras)
        return EngineLimits(max_loras, self.max_cpu_loras or kept, self.max_num_seqs or usual.max_num_seqs)

    def contradiction(self, slots: int | None) -> str:
        """What is wrong with what the operator says, in words; empty if nothing is."""
        if slots is None or self.max_loras is None or self.max_loras <= slots:
            return ""
        return (
            f"max_loras is set to {self.max_loras}, but the engine computes {slots} at once: start it with "
            f"--max-loras {self.max_loras}, or set max_loras to {slots}"
        )


def slots_of(samples: Iterable[Sample]) -> int | None:
    """The ``--max-loras`` that an engine's metrics tell; None if they do not."""
    told = [sample.labels.get(SLOTS_LABEL, "") for sample in samples if sample.name == SLOTS_METRIC]
    return max((int(text) for text in told if text.isdigit() and int(text)), default=None)
