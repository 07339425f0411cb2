"""What can go wrong in the fake engine, and what it counts."""

from dataclasses import dataclass, field

KINDS = (
    "refuse_load",
    "refuse_unload",
    "slow_load",
    "silent",
    "swapped",
    "error",
    "hang",
    "slow_prefill",
    "slow_tokens",
    "die_mid_stream",
    "unhealthy",
    "exit",
)


@dataclass
class Fault:
    """Something that goes wrong, ``times`` times (-1: always), for requests to ``model`` (None: any).

    Kinds: ``refuse_load`` and ``refuse_unload`` (these answer ``status`` and ``message``), ``slow_load`` (a load takes
    ``seconds``), ``silent`` (a loaded adapter answers as the base), ``swapped`` (a loaded adapter answers as
    ``voice`` does, another engine name), ``error`` (a generation answers ``status`` and ``message``), ``hang`` (a
    generation does not answer before the engine is ``released``), ``slow_prefill`` (``seconds`` before the first
    token), ``slow_tokens`` (``seconds`` before each token), ``die_mid_stream`` (the connection is cut after ``after``
    tokens), ``unhealthy`` (``/health`` answers 503), ``exit`` (the whole process ends at the next generation, after
    ``after`` tokens).
    """

    kind: str
    model: str | None = None
    times: int = 1
    after: int = 0
    seconds: float = 0.0
    status: int = 500
    message: str = "Call to add_lora method failed: scripted"
    voice: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}, known: {', '.join(KINDS)}")


@dataclass
class Stats:
    """What the fake has seen since it started; ``paths`` counts all requests, those to unknown paths included."""

    requests: int = 0
    finished: int = 0
    aborted: int = 0
    running: int = 0
    tokens: int = 0
    paths: dict[str, int] = field(default_factory=dict)
    by_model: dict[str, int] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
