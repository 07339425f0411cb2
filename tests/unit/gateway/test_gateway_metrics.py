"""What ``/metrics`` says after real requests, and what it forgets."""

import re
import time

from gateway_harness import MESSAGES, Bench
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serve.engine.fake import Fault
from serve.gateway.metrics import INTER_TOKEN_BUCKETS, MAX_ADAPTERS, Metrics, QuickHistogram

V1 = 'adapter="support",version="support@v1"'


async def test_requests_tokens_and_times_are_counted_by_adapter(bench: Bench) -> None:
    version = await bench.deploy()
    await bench.post({"model": "support", "messages": MESSAGES})
    await bench.stream()
    await bench.stream(n=2)
    await bench.post({"model": "support", "messages": MESSAGES, "temperature": 9})
    await bench.post({"model": "nobody", "messages": MESSAGES})
    samples = await bench.metrics()

    def requests(outcome: str) -> float:
        return samples[f'tenon_requests_total{{adapter="support",outcome="{outcome}",version="support@v1"}}']

    assert (requests("ok"), requests("rejected"), requests("failed")) == (3, 1, 0)
    assert samples['tenon_requests_total{adapter="(other)",outcome="rejected",version="(other)"}'] == 1
    assert samples['tenon_prompt_tokens_total{adapter="support"}'] == 9
    assert samples['tenon_completion_tokens_total{adapter="support"}'] == 5 + 5 + 11
    assert samples['tenon_request_duration_seconds_count{adapter="support"}'] == 3
    assert samples['tenon_time_to_first_token_seconds_count{adapter="support"}'] == 2
    assert samples['tenon_inter_token_latency_seconds_count{adapter="support"}'] <= 4
    assert samples['tenon_requests_in_flight{adapter="support"}'] == 0
    assert samples["tenon_engine_up"] == 1
    assert (
        samples[f'tenon_adapter_info{{adapter="support",digest="{version.digest}",version="support@v1"}}']
        == 1
    )
    assert not any("nobody" in key for key in samples)


async def test_times_are_those_that_passed(bench: Bench) -> None:
    await bench.deploy()
    bench.engine.faults = [Fault("slow_prefill", seconds=0.2), Fault("slow_tokens", seconds=0.05)]
    began = time.monotonic()
    await bench.stream()
    samples = await bench.metrics()
    passed = time.monotonic() - began
    first = samples['tenon_time_to_first_token_seconds_sum{adapter="support"}']
    assert first > 0.2
    assert samples['tenon_inter_token_latency_seconds_count{adapter="support"}'] == 4
    between = samples['tenon_inter_token_latency_seconds_sum{adapter="support"}']
    assert between > 0.15
    assert 0.4 < samples['tenon_request_duration_seconds_sum{adapter="support"}'] < passed
    assert first + between <= samples['tenon_request_duration_seconds_sum{adapter="support"}']


async def test_the_series_of_a_version_go_with_it(bench: Bench) -> None:
    versions = [await bench.deploy("ticket") for _ in range(3)]
    await bench.stream(model="ticket")
    before = [key for key in await bench.metrics() if "ticket" in key]
    assert 100 > len([key for key in before if "ticket@v" not in key]) > 40
    assert [key for key in before if "ticket@v1" in key]

    bench.states.pop(str(versions[0].ref))
    bench.registry.set_loaded("engine", bench.states)
    bench.registry.unwant(versions[0].ref)
    bench.registry.remove(versions[0].ref)
    await bench.follow()
    after = await bench.metrics()
    assert not [key for key in after if "ticket@v1" in key]
    assert [key for key in after if "ticket@v2" in key]
    assert after['tenon_completion_tokens_total{adapter="ticket"}'] > 0


async def test_engine_restarts_keep_the_series(bench: Bench) -> None:
    version = await bench.deploy()
    await bench.stream()
    bench.set_state(version, "pending")
    await bench.follow()
    samples = await bench.metrics()
    assert samples['tenon_requests_total{adapter="support",outcome="ok",version="support@v1"}'] == 1
    assert not any(key.startswith("tenon_adapter_info") for key in samples)


def test_series_per_adapter_and_their_end() -> None:
    metrics = Metrics(lambda: True)
    bare = len(metrics.text().splitlines())
    metrics.meters("a", "a@v1")
    metrics.meters("a", "a@v2")
    assert len(metrics.text().splitlines()) - bare <= 71
    metrics.keep([("a", "a@v2")])
    assert b"a@v1" not in metrics.text()
    metrics.keep([])
    assert len(metrics.text().splitlines()) == bare


def test_too_many_adapters_are_folded() -> None:
    metrics = Metrics(lambda: False)
    for number in range(MAX_ADAPTERS):
        assert metrics.meters(f"a{number}", f"a{number}@v1") is not metrics.other
    assert metrics.meters("one-more", "one-more@v1") is metrics.other
    assert metrics.meters("a0", "a0@v2") is not metrics.other
    text = metrics.text().decode()
    assert "one-more" not in text
    assert "tenon_adapters_folded 1.0" in text
    assert "tenon_engine_up 0.0" in text


def test_an_adapter_called_other_has_series_of_its_own() -> None:
    metrics = Metrics(lambda: True)
    metrics.meters("other", "other@v1").in_flight.inc()
    metrics.other.in_flight.inc()
    metrics.keep([])
    text = metrics.text().decode()
    assert 'tenon_requests_in_flight{adapter="(other)"} 1.0' in text
    assert 'adapter="other"' not in text


@given(st.lists(st.floats(0, 10) | st.sampled_from(INTER_TOKEN_BUCKETS), max_size=30))
def test_the_histogram_of_tokens_counts_as_the_librarys(values: list[float]) -> None:
    texts = []
    for kind in (Histogram, QuickHistogram):
        registry = CollectorRegistry()
        series = kind("x", "y", ("adapter",), buckets=INTER_TOKEN_BUCKETS, registry=registry).labels("a")
        for value in values:
            series.observe(value)
        texts.append(re.sub(rb".*_created.*", b"", generate_latest(registry)))
    assert texts[0] == texts[1]
