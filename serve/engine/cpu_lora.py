"""LoRA on a CPU by plain matrix products; with ``cpu_punica`` the only code of ``serve`` that needs torch.

vLLM's stock code gathers, for every token, a copy of its adapter's whole A and B, padded to the engine's largest
rank. Here tokens are grouped by adapter once per step, and each group is multiplied with its adapter's matrices
as they are. Greedy answers are the same, log-probabilities within 0.01. ``make bench-lora-cpu`` measures it.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

Group = tuple[int, torch.Tensor | None]


def group_rows(slots: torch.Tensor) -> list[Group]:
    """(slot, its row numbers) for each adapter slot in ``slots`` (one per row, -1: no adapter).

    The row numbers are None where all rows belong to one slot, so that nothing need be copied.
    """
    found: list[int] = torch.unique(slots).tolist()
    if len(found) == 1:
        return [(found[0], None)] if found[0] >= 0 else []
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in found if slot >= 0]


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: Sequence[torch.Tensor],
    b_stacked: Sequence[torch.Tensor],
    scale: float,
    sizes: Sequence[int],
    groups: Sequence[Group],
) -> None:
    """``y += scale * x @ A.T @ B.T`` for each group's rows, in place.

    ``y`` (rows, sum of ``sizes``) holds the outputs of layers that were merged, such as q, k and v, side by
    side; ``a_stacked`` and ``b_stacked`` hold for each of them the matrices of all slots: (slots, 1, rank,
    in) and (slots, 1, size, rank).
    """
    for slot, rows in groups:
        mine = x if rows is None else x[rows]
        offset = 0
        for a, b, size in zip(a_stacked, b_stacked, sizes, strict=True):
            change = linear(linear(mine, a[slot, 0].to(mine.dtype)), b[slot, 0].to(mine.dtype))
            width = min(size, change.shape[1])
            part = y[:, offset : offset + width]
            change = (change[:, :width] * scale if scale != 1 else change[:, :width]).to(y.dtype)
            if rows is None:
                part += change
            else:
                part.index_add_(0, rows, change)
            offset += size
