import pytest

torch = pytest.importorskip("torch")

from serve.engine.cpu_lora import add_products, group_rows  # noqa: E402

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


@pytest.mark.parametrize(
    "slots", [[-1, -1, -1], [1, 1, 1], [0, -1, 0], [2, 0, -1, 1, 0], [0]], ids=lambda slots: str(slots)
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_each_token_gets_the_change_of_its_own_adapter(slots, scale):
    torch.manual_seed(0)
    x = torch.randn(len(slots), INNER)
    a = [torch.randn(SLOTS, 1, RANK, INNER) for _ in SIZES]
    b = [torch.randn(SLOTS, 1, size, RANK) for size in SIZES]
    y = torch.randn(len(slots), sum(SIZES))
    expected = y + by_token(x, a, b, scale, slots)
    add_products(y, x, a, b, scale, SIZES, group_rows(torch.tensor(slots)))
    torch.testing.assert_close(y, expected)


def test_rows_are_grouped_by_slot_and_the_rest_left_out():
    groups = group_rows(torch.tensor([2, -1, 0, 2]))
    assert [(slot, rows.tolist()) for slot, rows in groups] == [(0, [2]), (2, [0, 3])]
    assert group_rows(torch.tensor([1, 1])) == [(1, None)]
    assert group_rows(torch.tensor([-1, -1])) == []


def test_padding_of_the_output_is_left_alone():
    y = torch.zeros(2, 8)
    a, b = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 5, 2)
    add_products(y, torch.ones(2, 3), [a], [b], 1.0, [8], [(0, None)])
    assert y[:, :5].eq(6).all()
    assert y[:, 5:].eq(0).all()
