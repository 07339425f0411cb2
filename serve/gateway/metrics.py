"""What Prometheus reads: per adapter requests, latencies and tokens, and the state of adapters and engine.

Label values come from the registry only. Beyond ``MAX_ADAPTERS`` adapters the rest is counted under
``(other)``. The series of a version go when the version does.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
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
OTHER = "(other)"  # which no adapter can be called
MAX_KEYS = 100
NO_KEY, OTHER_KEYS = "(none)", "(other)"  # which no key can be called
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


class QuickHistogram(Histogram):
    """The library's histogram, which finds the bucket by bisection: that of tokens is asked once for each."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one value of a series that has all its labels."""
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
        self._sum.inc(amount)


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

    def waits(self) -> "Counted":
        """Count a request as waiting for a place while the block runs."""
        return Counted(self.waiting)

    def running(self) -> "Counted":
        """Count a request as in flight while the block runs."""
        return Counted(self.in_flight)


class Counted:
    """A block that a gauge counts while it runs; a class, as a generator costs a request five times as much."""

    __slots__ = ("_gauge",)

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def __enter__(self) -> None:
        self._gauge.inc()

    def __exit__(self, *_: object) -> None:
        self._gauge.dec()


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
        self.first_token = QuickHistogram(
            "tenon_time_to_first_token_seconds",
            "Time from the request to the first token of a streamed answer",
            adapter,
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.inter_token = QuickHistogram(
            "tenon_inter_token_latency_seconds",
            "Time between tokens of a streamed answer with one choice; tokens in one write share the gap",
            adapter,
            buckets=INTER_TOKEN_BUCKETS,
            registry=registry,
        )
        self.duration = QuickHistogram(
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
        self.waited = QuickHistogram(
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
        self.key_tokens = Counter(
            "tenon_key_tokens", "Tokens of prompts and answers, by API key", ("key",), registry=registry
        )
        self._keys: dict[str, Counter] = {}
        self._meters: dict[tuple[str, str], Meters] = {}
        self._engines: dict[str, EngineMeters] = {}
        self._folded: set[str] = set()
        self._shown: set[AdapterState] = set()
        self.other = Meters(self, OTHER, OTHER)

    def meters(self, adapter: str, version: str) -> Meters:
        """The series of a version; those of ``(other)`` when too many adapters have some already."""
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

    def key(self, name: str | None) -> Counter:
        """The tokens of an API key by its name (None: requests without one); beyond ``MAX_KEYS``, of the others."""
        label = NO_KEY if name is None else name
        found = self._keys.get(label)
        if found is not None:
            return found
        if len(self._keys) >= MAX_KEYS:
            return self.key_tokens.labels(OTHER_KEYS)
        return self._keys.setdefault(label, self.key_tokens.labels(label))

    def keep_keys(self, names: Iterable[str]) -> None:
        """Drop the series of every API key that is not among these."""
        for gone in self._keys.keys() - {NO_KEY, *names}:
            del self._keys[gone]
            self.key_tokens.remove(gone)

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
        """Replace what is said of loaded versions; those counted under ``(other)`` are left out."""
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
