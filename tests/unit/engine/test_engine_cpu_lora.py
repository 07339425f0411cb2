import pytest

torch = pytest.importorskip("torch")

from serve.engine import cpu_lora  # noqa: E402
from serve.engine.cpu_lora import LayerLoRA, Rows  # noqa: E402

SLOTS, RANK, INNER = 3, 4, 6
SIZES = (5, 2)


def by_token(x, a_stacked, b_stacked, scale, slots):
    """What LoRA means, one token after the other."""
    rows = []
    for token, slot in zip(x, slots, strict=True):
        parts = [
            scale * (b[slot, 0] @ (a[slot, 0] @ token)) if slot >= 0 else torch.zeros(b.shape[2])
            for a, b in zip(a_stacked, b_stacked, strict=True)
        ]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.fixture
def weights():
    """The matrices of all slots, padded as vLLM pads them: each slot uses other ranks of other layers."""
    torch.manual_seed(0)
    a = [torch.randn(SLOTS, 1, RANK, INNER) for _ in SIZES]
    b = [torch.randn(SLOTS, 1, size, RANK) for size in SIZES]
    a[0][0, 0, 2:], b[0][0, 0, :, 2:] = 0, 0
    a[1][1], b[1][1] = 0, 0
    return a, b


@pytest.mark.parametrize(
    "slots",
    [[-1, -1, -1], [1, 1, 1], [0, -1, 0], [2, 0, -1, 1, 0], [0], [2, 1]],
    ids=lambda slots: str(slots),
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "limits",
    [{}, {"_SIZE_AT_ONCE": 0}, {"_WORK_AT_ONCE": 0}, {"_SIZE_AT_ONCE": 0, "_ROWS_AT_ONCE": 2}],
    ids=["side by side", "apart", "apart for the many rows", "apart, few rows at a time"],
)
def test_each_token_gets_the_change_of_its_own_adapter(monkeypatch, weights, slots, scale, limits):
    for name, value in limits.items():
        monkeypatch.setattr(cpu_lora, name, value)
    a, b = weights
    x, y = torch.randn(len(slots), INNER), torch.randn(len(slots), sum(SIZES))
    expected = y + by_token(x, a, b, scale, slots)
    layer = LayerLoRA(a, b, SIZES)
    for _ in range(2):
        found = y.clone()
        layer.add(found, x, scale, Rows.of(torch.tensor(slots)))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [0, 10_000], ids=["apart", "side by side"])
@pytest.mark.parametrize("compute_in", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("slots", [[1, 1, 1], [2, 0, -1, 1, 0]], ids=str)
def test_bfloat16_is_rounded_and_no_more(monkeypatch, weights, slots, compute_in, size):
    monkeypatch.setattr(cpu_lora, "type_to_compute_in", lambda _: compute_in)
    monkeypatch.setattr(cpu_lora, "_SIZE_AT_ONCE", size)
    a, b = ([matrix.bfloat16() for matrix in matrices] for matrices in weights)
    x = torch.randn(len(slots), INNER).bfloat16()
    y = torch.randn(len(slots), sum(SIZES)).bfloat16()
    exact = [[matrix.float() for matrix in matrices] for matrices in (a, b)]
    expected = y.float() + by_token(x.float(), *exact, 1.0, slots)
    LayerLoRA(a, b, SIZES).add(y, x, 1.0, Rows.of(torch.tensor(slots)))
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)


def test_types_are_those_that_the_processor_multiplies():
    assert cpu_lora.type_to_compute_in(torch.float32) == torch.float32
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert cpu_lora.type_to_compute_in(torch.bfloat16) == (torch.bfloat16 if supported else torch.float32)


def test_rows_that_follow_each_other_are_a_run(monkeypatch):
    monkeypatch.setattr(cpu_lora, "_ROWS_AT_ONCE", 2)
    (first, run), (second, rest), (third, numbers) = Rows.of(torch.tensor([1, 0, 0, 0, -1, 1])).parts
    assert (first, run, second, rest, third) == (0, slice(1, 3), 0, slice(3, 4), 1)
    assert numbers.tolist() == [0, 5]


def test_rows_say_which_slots_occur():
    assert Rows.of(torch.tensor([2, -1, 0, 2])).mixture == (0, 2)
    assert not Rows.of(torch.tensor([2, -1])).all_of_one
    assert Rows.of(torch.tensor([1, 1])).all_of_one
    assert not Rows.of(torch.tensor([-1, -1])).all_of_one
    assert Rows.of(torch.tensor([], dtype=torch.long)).mixture == ()


def test_a_slot_that_changes_is_packed_anew(weights):
    a, b = weights
    layer, rows, x = LayerLoRA(a, b, SIZES), Rows.of(torch.tensor([0, 1, 2])), torch.randn(3, INNER)
    layer.add(torch.zeros(3, sum(SIZES)), x, 1.0, rows)
    for matrices in (*a, *b):
        matrices[1] = torch.randn_like(matrices[1])
    layer.forget(1)
    y = torch.zeros(3, sum(SIZES))
    layer.add(y, x, 1.0, rows)
    torch.testing.assert_close(y, by_token(x, a, b, 1.0, [0, 1, 2]))


def test_only_a_few_mixtures_are_kept(weights):
    a, b = weights
    layer = LayerLoRA(a, b, SIZES)
    for slots in ([0, 1], [0, 2], [1, 2], [0, 1, 2], [-1, 0, 1]):
        y, x = torch.zeros(len(slots), sum(SIZES)), torch.randn(len(slots), INNER)
        layer.add(y, x, 1.0, Rows.of(torch.tensor(slots)))
        torch.testing.assert_close(y, by_token(x, a, b, 1.0, slots))
    assert len(layer._choices) <= 4


@pytest.mark.parametrize("size", [0, 10_000], ids=["apart", "side by side"])
def test_what_overflows_in_a_row_of_another_adapter_stays_out_of_it(monkeypatch, size):
    monkeypatch.setattr(cpu_lora, "_SIZE_AT_ONCE", size)
    a, b = torch.ones(2, 1, 1, 2), torch.ones(2, 1, 3, 1)
    a[1] = torch.finfo(torch.float32).max
    y = torch.zeros(2, 3)
    LayerLoRA([a], [b], [3]).add(y, torch.full((2, 2), 2.0), 1.0, Rows.of(torch.tensor([0, -1])))
    LayerLoRA([a], [b], [3]).add(y, torch.full((2, 2), 2.0), 1.0, Rows.of(torch.tensor([0, 1])))
    assert y[0].eq(8).all()


def test_padding_of_the_output_is_left_alone():
    y = torch.zeros(2, 8)
    a, b = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 5, 2)
    LayerLoRA([a], [b], [8]).add(y, torch.ones(2, 3), 1.0, Rows.of(torch.tensor([0, 0])))
    assert y[:, :5].eq(6).all()
    assert y[:, 5:].eq(0).all()
