"""What Prometheus reads: per adapter requests, latencies and tokens, and the state of adapters and engine.

Label values come from the registry only. Beyond ``MAX_ADAPTERS`` adapters the rest is counted under
``other``. The series of a version go when the version does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

OUTCOMES = ("ok", "rejected", "unavailable", "failed", "disconnected")
OTHER = "other"
MAX_ADAPTERS = 100

# OpenTelemetry's GenAI buckets; the durations go on beyond their 82 s, the first tokens beyond their 10 s.
FIRST_TOKEN_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    30,
)
INTER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
DURATION_BUCKETS = tuple(0.01 * 2**power for power in range(17))


@dataclass(frozen=True)
class AdapterState:
    """What the metrics say of one version: its digest and, once loaded, the seconds that took."""

    adapter: str
    version: str
    digest: str
    load_seconds: float | None


class Meters:
    """The series of one version, bound once so that a request looks nothing up."""

    def __init__(self, metrics: "Metrics", adapter: str, version: str) -> None:
        self.outcomes = {outcome: metrics.requests.labels(adapter, version, outcome) for outcome in OUTCOMES}
        self.first_token = metrics.first_token.labels(adapter)
        self.inter_token = metrics.inter_token.labels(adapter)
        self.duration = metrics.duration.labels(adapter)
        self.prompt_tokens = metrics.prompt_tokens.labels(adapter)
        self.completion_tokens = metrics.completion_tokens.labels(adapter)
        self.in_flight = metrics.in_flight.labels(adapter)
        self.waiting = metrics.waiting.labels(adapter)
        self.cost = metrics.cost.labels(adapter)

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Count a request as waiting for a place while the block runs."""
        self.waiting.inc()
        try:
            yield
        finally:
            self.waiting.dec()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as in flight while the block runs."""
        self.in_flight.inc()
        try:
            yield
        finally:
            self.in_flight.dec()


class EngineMeters:
    """The series of one engine, bound once."""

    def __init__(self, metrics: "Metrics", engine: str) -> None:
        self.waited = metrics.waited.labels(engine)
        self.ejections = metrics.ejections.labels(engine)
        self.retries = metrics.retries.labels(engine)


class Metrics:
    """All series of one gateway, in a collector registry of its own; thread-safe."""

    def __init__(self, engine_up: Callable[[], bool]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per counter and histogram, which nobody reads
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        adapter = ("adapter",)
        self.requests = Counter(
            "tenon_requests",
            "Requests that ended, by outcome",
            ("adapter", "version", "outcome"),
            registry=registry,
        )
        self.first_token = Histogram(
            "tenon_time_to_first_token_seconds",
            "Time from the request to the first token of a streamed answer",
            adapter,
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "tenon_inter_token_latency_seconds",
            "Time between tokens of a streamed answer with one choice; tokens in one write share the gap",
            adapter,
            buckets=INTER_TOKEN_BUCKETS,
            registry=registry,
        )
        self.duration = Histogram(
            "tenon_request_duration_seconds",
            "Time from the request to the end of an answer that is complete",
            adapter,
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter("tenon_prompt_tokens", "Tokens in prompts", adapter, registry=registry)
        self.completion_tokens = Counter(
            "tenon_completion_tokens",
            "Tokens in answers; of a stream that broke off, the token events that were relayed",
            adapter,
            registry=registry,
        )
        self.in_flight = Gauge(
            "tenon_requests_in_flight", "Requests being answered", adapter, registry=registry
        )
        self.waiting = Gauge(
            "tenon_requests_waiting",
            "Requests that wait for a place on an engine",
            adapter,
            registry=registry,
        )
        self.waited = Histogram(
            "tenon_wait_seconds",
            "Time that a request waited before it was sent to the engine",
            ("engine",),
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self.ejections = Counter(
            "tenon_engine_ejections",
            "Times that an engine failed so often that it was not asked for a while",
            ("engine",),
            registry=registry,
        )
        self.retries = Counter(
            "tenon_retries",
            "Requests that were sent to another engine after this one did nothing for them",
            ("engine",),
            registry=registry,
        )
        self.cost = Counter(
            "tenon_cost",
            "Money for tokens and engine time, by the table of prices",
            adapter,
            registry=registry,
        )
        self.load_seconds = Gauge(
            "tenon_adapter_load_seconds",
            "Time the engine took to load",
            ("adapter", "version"),
            registry=registry,
        )
        self.info = Gauge(
            "tenon_adapter_info",
            "1 for every version that is served",
            ("adapter", "version", "digest"),
            registry=registry,
        )
        self.folded = Gauge(
            "tenon_adapters_folded", f"Adapters that are counted as {OTHER!r}", registry=registry
        )
        up = Gauge("tenon_engine_up", "1 while every base has an engine that is ready", registry=registry)
        up.set_function(lambda: float(engine_up()))
        self._meters: dict[tuple[str, str], Meters] = {}
        self._engines: dict[str, EngineMeters] = {}
        self._folded: set[str] = set()
        self._shown: set[AdapterState] = set()
        self.other = Meters(self, OTHER, OTHER)

    def meters(self, adapter: str, version: str) -> Meters:
        """The series of a version; those of ``other`` when too many adapters have some already."""
        found = self._meters.get((adapter, version))
        if found is not None:
            return found
        adapters = {known for known, _ in self._meters}
        if adapter not in adapters and len(adapters) >= MAX_ADAPTERS:
            self._folded.add(adapter)
            self.folded.set(len(self._folded))
            return self.other
        self._folded.discard(adapter)
        self.folded.set(len(self._folded))
        return self._meters.setdefault((adapter, version), Meters(self, adapter, version))

    def engine(self, name: str) -> EngineMeters:
        """The series of an engine."""
        found = self._engines.get(name)
        return found if found is not None else self._engines.setdefault(name, EngineMeters(self, name))

    def keep_engines(self, names: Iterable[str]) -> None:
        """Drop the series of every engine that is not among these."""
        for gone in self._engines.keys() - set(names):
            del self._engines[gone]
            for metric in (self.waited, self.ejections, self.retries):
                metric.remove(gone)

    def keep(self, versions: Iterable[tuple[str, str]]) -> None:
        """Drop the series of every version, and then adapter, that is not among these."""
        kept = set(versions)
        for adapter, version in self._meters.keys() - kept:
            del self._meters[adapter, version]
            self.requests.remove_by_labels({"adapter": adapter, "version": version})
            if not any(adapter == other for other, _ in self._meters):
                for metric in (
                    self.first_token,
                    self.inter_token,
                    self.duration,
                    self.prompt_tokens,
                    self.completion_tokens,
                    self.in_flight,
                    self.waiting,
                    self.cost,
                ):
                    metric.remove(adapter)
        self._folded &= {adapter for adapter, _ in kept}
        self.folded.set(len(self._folded))

    def show(self, states: Iterable[AdapterState]) -> None:
        """Replace what is said of loaded versions; those counted under ``other`` are left out."""
        shown = {state for state in states if (state.adapter, state.version) in self._meters}
        for gone in self._shown - shown:
            self.info.remove(gone.adapter, gone.version, gone.digest)
            self.load_seconds.remove(gone.adapter, gone.version)
        for state in shown:
            self.info.labels(state.adapter, state.version, state.digest).set(1)
            if state.load_seconds is not None:
                self.load_seconds.labels(state.adapter, state.version).set(state.load_seconds)
        self._shown = shown

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)
