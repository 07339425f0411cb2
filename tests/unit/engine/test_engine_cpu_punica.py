"""Our LoRA code behind vLLM's interface, with vLLM's own mapping of rows to slots, beside what LoRA means."""

from importlib.util import find_spec

import pytest

torch = pytest.importorskip("torch")

# One process of the session imports vLLM, and only to run these: that takes ten seconds.
pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here"),
    pytest.mark.xdist_group("vllm"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

RANK, INNER, WIDTH, VOCABULARY = 4, 6, 5, 7
# Two adapters, the second in the last slot; the slot between them is empty.
IDS = [11, None, 12]
# Rows of both adapters and of the base, of three requests; and one of one adapter only.
MIXED, ALONE = ([11, 11, 0, 12, 12, 0], [11, 0, 12]), ([12, 12], [12])


@pytest.fixture(params=[MIXED, ALONE], ids=["mixed", "alone"])
def mapping(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["prefill", "decode"])
def prefill(request):
    return request.param


def wrapper(mapping, prefill, stock=False):
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from serve.engine.cpu_punica import GroupedPunicaWrapper

    found = (PunicaWrapperCPU if stock else GroupedPunicaWrapper)(64, 8, "cpu")
    rows, requests = (tuple(ids) for ids in mapping)
    found.update_metadata(LoRAMapping(rows, requests, is_prefill=prefill), IDS, len(IDS) + 1, VOCABULARY)
    return found


def slots(ids):
    return [IDS.index(number) if number else -1 for number in ids]


def stacked(*shape, seed=0):
    values = torch.randn(len(IDS), *shape, generator=torch.Generator().manual_seed(seed))
    values[1] = 0
    return values


def changed(y, x, a, b, ids, scale=1.0):
    """``y`` with the change of each row's adapter, one row after the other, in double precision."""
    rows = []
    for row, value, slot in zip(y, x, slots(ids), strict=True):
        change = b[slot].double() @ (a[slot].double() @ value.double()) * scale if slot >= 0 else 0
        rows.append(row.double() + change)
    return torch.stack(rows).to(y.dtype)


def test_linear_layers(mapping, prefill):
    a, b = stacked(1, RANK, INNER), stacked(1, WIDTH, RANK, seed=1)
    x, y = torch.randn(len(mapping[0]), INNER), torch.randn(len(mapping[0]), WIDTH)
    expected = changed(y, x, a[:, 0], b[:, 0], mapping[0], 0.5)
    wrapper(mapping, prefill).add_lora_linear(y, x, (a,), (b,), 0.5, (WIDTH,))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings(mapping, prefill, dtype):
    a, b = stacked(VOCABULARY, RANK).to(dtype), stacked(1, WIDTH, RANK, seed=1).to(dtype)
    ids = torch.randint(0, VOCABULARY, (len(mapping[0]),))
    y = torch.randn(len(ids), WIDTH).to(dtype)
    one_hot = torch.nn.functional.one_hot(ids, VOCABULARY).to(dtype)
    before, expected = y.clone(), changed(y, one_hot, a.transpose(1, 2), b[:, 0], mapping[0])
    ours = wrapper(mapping, prefill)
    x = a.view(-1, RANK)[ids + ours._embeddings_indices[: len(ids)]]  # as VocabParallelEmbeddingWithLoRA does
    ours.add_lora_embedding(y, x, b, add_input=True)
    # A processor that multiplies bfloat16 rounds the change to it, and then the sum: where both cancel each other
    # out, what is left is small beside what was rounded.
    rounded = torch.finfo(dtype).eps * (before.abs() + 2 * expected.abs()) + 1e-6
    assert ((y - expected).abs() <= rounded).all()


def test_logits_and_heads_of_classifiers_have_a_row_for_each_request(mapping, prefill):
    a, b = stacked(1, RANK, INNER), stacked(1, VOCABULARY, RANK, seed=1)
    x, y = torch.randn(len(mapping[1]), INNER), torch.randn(len(mapping[1]), VOCABULARY)
    expected = changed(y, x, a[:, 0], b[:, 0], mapping[1])
    wrapper(mapping, prefill).add_lora_logits(y, x, a, b, 1.0)
    torch.testing.assert_close(y, expected)


def test_logits_of_every_row_of_a_prompt_stay_the_base_s_in_a_mixture():
    a, b = stacked(1, RANK, INNER), stacked(1, VOCABULARY, RANK, seed=1)
    y = torch.zeros(len(MIXED[0]), VOCABULARY)
    wrapper(MIXED, True).add_lora_logits(y, torch.randn(len(MIXED[0]), INNER), a, b, 1.0)
    assert not y.any()


def test_whole_heads_of_classifiers(mapping, prefill):
    weights, bias = stacked(1, WIDTH, INNER), stacked(WIDTH, seed=1)
    x, y = torch.randn(len(mapping[1]), INNER), torch.randn(len(mapping[1]), WIDTH)
    enabled = torch.tensor([True, False, True])
    expected = torch.stack(
        [
            weights[slot, 0] @ row + bias[slot] if slot >= 0 else before
            for row, before, slot in zip(x, y, slots(mapping[1]), strict=True)
        ]
    )
    wrapper(mapping, prefill).apply_lora_full_linear(y, x, weights, bias, enabled)
    torch.testing.assert_close(y, expected)


def test_fully_sharded_adapters(mapping, prefill):
    a, b = stacked(1, RANK, INNER), stacked(1, WIDTH, RANK, seed=1)
    x, y = torch.randn(len(mapping[0]), INNER), torch.randn(len(mapping[0]), WIDTH)
    expected = changed(y, x, a[:, 0], b[:, 0], mapping[0])
    ours, buffer = wrapper(mapping, prefill), torch.zeros(1, len(x), RANK)
    ours.add_shrink(buffer, x, (a,), 1.0)
    ours.add_expand(y, buffer, (b,), (WIDTH,))
    torch.testing.assert_close(y, expected)


def test_the_stock_code_gives_rows_without_an_adapter_the_change_of_the_last_slot(prefill):
    """Why its answers differ in mixed batches; once this fails, comparisons one at a time are no longer needed."""
    a, b = stacked(1, RANK, INNER), stacked(1, WIDTH, RANK, seed=1)
    x, y = torch.randn(len(MIXED[0]), INNER), torch.zeros(len(MIXED[0]), WIDTH)
    wrapper(MIXED, prefill, stock=True).add_lora_linear(y, x, (a,), (b,), 1.0, (WIDTH,))
    taken_for_the_last = [number or 12 for number in MIXED[0]]
    torch.testing.assert_close(y, changed(torch.zeros_like(y), x, a[:, 0], b[:, 0], taken_for_the_last))
