"""What a run tells while it goes on: one JSON object per line from the worker to whoever launched it."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self

EventName = Literal["phase", "plan", "notice", "step", "eval", "checkpoint", "done", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainEvent:
    """One thing that happened in a run; fields that do not belong to ``event`` are None.

    ``loss`` is the mean negative log-likelihood of a supervised token in nats, ``perplexity`` its exponential,
    ``token_accuracy`` the share of supervised tokens that were the likeliest (teacher forcing; of a step, the mean of
    its batches' shares). ``best`` says of an eval that its loss is the lowest so far. ``peak_memory`` is the most that
    the process held in bytes, with a GPU of the GPU's. ``message``, ``hint`` and ``code`` belong to notices and errors.
    """

    event: EventName
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    token_accuracy: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    epoch: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None
    best: bool | None = None
    best_step: int | None = None
    resumed_from: int | None = None
    stopped_early: bool | None = None
    peak_memory: int | None = None
    message: str | None = None
    hint: str | None = None
    code: str | None = None

    def to_json(self) -> str:
        """One line, without the fields that are None."""
        present = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(present, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Parse :meth:`to_json`; keys of a newer version are ignored. Raises ValueError if it is no event."""
        values = json.loads(line)
        if not isinstance(values, dict) or "event" not in values:
            raise ValueError(f"no event: {line!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
