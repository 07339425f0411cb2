"""LoRA on a CPU by plain matrix products; with ``cpu_punica`` the only code of ``serve`` that needs torch.

vLLM's stock code gathers, for every token, a copy of its adapter's whole A and B, padded to the engine's largest
rank. Here the adapters' matrices are packed once, when they are first used: without padding, those of merged
layers (q, k and v; gate and up) side by side, and a layer that an adapter does not touch costs nothing. A step
with several adapters multiplies all rows with all of them at once and blanks what belongs to others, as long as
that is cheaper than sorting the rows. Greedy answers are the same, log-probabilities within 0.01.
``make bench-lora-cpu`` measures it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

# Mixtures whose matrices are kept side by side, for each layer.
_KEPT_MIXTURES = 4
# Up to so many rows, a mixture of adapters is multiplied as a whole; with more, each adapter gets its own rows.
_ROWS_AT_ONCE = 256

Mixture = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Which adapter slot each row of a step belongs to (-1: none), which slots occur, and if it is only one."""

    slots: torch.Tensor
    mixture: Mixture
    all_of_one: bool

    @classmethod
    def of(cls, slots: torch.Tensor) -> "Rows":
        """Look at the slots once, for all layers of a step."""
        found: list[int] = torch.unique(slots).tolist()
        return cls(slots, tuple(slot for slot in found if slot >= 0), len(found) == 1 and found[0] >= 0)


@dataclass(frozen=True)
class Packed:
    """One or several adapters' matrices of one layer, without padding.

    ``a`` is (ranks, in), ``b`` (out, ranks) with zeros where a rank belongs to another of the merged layers;
    ``owners`` (ranks) says which slot a rank belongs to. ``ranks`` counts over merged layers and adapters.
    """

    a: torch.Tensor
    b: torch.Tensor
    owners: torch.Tensor

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float, rows: Rows | None) -> None:
        """``y += scale * x @ a.T @ b.T``; with ``rows``, each row gets only what its own adapter adds."""
        inner = linear(x, self.a)
        if rows is not None:
            # Not a product with 0: what overflows in a row of another adapter must not become its NaN.
            inner.masked_fill_(rows.slots.unsqueeze(1) != self.owners, 0)
        if scale != 1:
            inner *= scale
        if y.dtype == inner.dtype:
            y.addmm_(inner, self.b.t())
        else:
            y += linear(inner, self.b)


class LayerLoRA:
    """The matrices of one layer, or of several merged ones, packed from vLLM's when they are needed.

    vLLM keeps, for each of the merged layers, those of all slots padded to the largest rank: (slots, 1, rank, in)
    and (slots, 1, size, rank).
    """

    def __init__(
        self, a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> None:
        self._stacked = list(zip(a_stacked, b_stacked, sizes, strict=True))
        self._single: dict[int, Packed] = {}
        self._mixed: dict[Mixture, Packed] = {}

    def forget(self, slot: int) -> None:
        """Another adapter, or none, comes into the slot."""
        self._single.pop(slot, None)
        self._mixed = {mixture: packed for mixture, packed in self._mixed.items() if slot not in mixture}

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float, rows: Rows) -> None:
        """Add to ``y`` (rows, out) what each row's adapter changes for its input in ``x`` (rows, in)."""
        mixture = tuple(slot for slot in rows.mixture if self._of(slot, x.dtype).a.shape[0])
        if not mixture:
            return
        if rows.all_of_one:
            self._of(mixture[0], x.dtype).add(y, x, scale, None)
        elif len(x) <= _ROWS_AT_ONCE:
            self._mix(mixture, x.dtype).add(y, x, scale, rows)
        else:
            for slot in mixture:
                mine = (rows.slots == slot).nonzero().squeeze(1)
                part = y[mine]
                self._of(slot, x.dtype).add(part, x[mine], scale, None)
                y[mine] = part

    def _of(self, slot: int, dtype: torch.dtype) -> Packed:
        found = self._single.get(slot)
        if found is None or found.a.dtype != dtype:
            found = self._single[slot] = self._pack(slot, dtype)
        return found

    def _pack(self, slot: int, dtype: torch.dtype) -> Packed:
        rows, columns, offset = [], [], 0
        width = sum(size for _, _, size in self._stacked)
        for a_all, b_all, size in self._stacked:
            a, b = a_all[slot, 0], b_all[slot, 0, :size]
            used = (a.any(1) & b.any(0)).nonzero().squeeze(1)
            column = b.new_zeros((width, len(used)), dtype=dtype)
            column[offset : offset + len(b)] = b[:, used]
            rows.append(a[used].to(dtype))
            columns.append(column)
            offset += size
        a = torch.cat(rows)
        return Packed(a, torch.cat(columns, 1), torch.full((len(a),), slot))

    def _mix(self, mixture: Mixture, dtype: torch.dtype) -> Packed:
        if len(mixture) == 1:
            return self._of(mixture[0], dtype)
        found = self._mixed.pop(mixture, None)
        if found is None or found.a.dtype != dtype:
            parts = [self._of(slot, dtype) for slot in mixture]
            found = Packed(
                torch.cat([part.a for part in parts]),
                torch.cat([part.b for part in parts], 1),
                torch.cat([part.owners for part in parts]),
            )
        self._mixed[mixture] = found  # the last in order is the one used last
        if len(self._mixed) > _KEPT_MIXTURES:
            del self._mixed[next(iter(self._mixed))]
        return found
