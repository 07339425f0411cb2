"""LoRA on a CPU by plain matrix products; with ``cpu_punica`` the only code of ``serve`` that needs torch.

vLLM's stock code gathers, for every token, a copy of its adapter's whole A and B, padded to the engine's largest
rank. Here the adapters' matrices are packed once, when they are first used, without padding; a layer that an adapter
does not touch costs nothing. Each adapter gets the rows that are its own. Where matrices are so small that calls cost
more than multiplying, those of all adapters of a step, and of merged layers (q, k and v; gate and up), are laid side
by side instead, and what belongs to others is blanked. A processor without instructions for the engine's type
computes in float32. Greedy answers are the same but for ties, log-probabilities within what bfloat16 rounds.
``make bench-lora-cpu`` measures it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch.nn.functional import linear

# Mixtures whose matrices are kept side by side, for each layer.
_KEPT_MIXTURES = 4
# Elements of A and B up to which they are laid side by side, and multiplications up to which that is the faster way.
_SIZE_AT_ONCE = 400_000
_WORK_AT_ONCE = 12_000_000
# Rows that are multiplied at a time: what a layer changes in them stays in the processor's cache.
_ROWS_AT_ONCE = 128

Mixture = tuple[int, ...]
Where = slice | torch.Tensor
"""Which rows of a step: a run of them, or their numbers."""


@cache
def type_to_compute_in(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` where oneDNN multiplies matrices of it, else float32, which torch multiplies 5 to 40 times faster."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if dtype not in supported or supported[dtype]() else torch.float32


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

    @cached_property
    def parts(self) -> tuple[tuple[int, Where], ...]:
        """The slots that occur, each with rows of its own, at most so many as are multiplied at a time."""
        return tuple(
            (slot, _run(where))
            for slot in self.mixture
            for where in torch.split((self.slots == slot).nonzero().squeeze(1), _ROWS_AT_ONCE)
        )

    def parts_of(self, rows: int) -> Iterator[tuple[int, Where]]:
        """``parts``, for ``rows`` rows; these may be others than the step's when all belong to one slot."""
        if not self.all_of_one:
            yield from self.parts
            return
        for start in range(0, rows, _ROWS_AT_ONCE):
            yield self.mixture[0], slice(start, min(start + _ROWS_AT_ONCE, rows))


def _run(where: torch.Tensor) -> Where:
    first, last = int(where[0]), int(where[-1])
    return slice(first, last + 1) if last - first + 1 == len(where) else where


@dataclass(frozen=True)
class Adapter:
    """One adapter's matrices of one layer, without padding.

    ``a`` is (ranks, in), where ranks count over merged layers; ``pieces`` are, for each merged layer that the adapter
    touches, its columns of the output, its ranks, and its B as (ranks, columns).
    """

    a: torch.Tensor
    pieces: tuple[tuple[slice, slice, torch.Tensor], ...]

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float, where: Where) -> None:
        """``y[where] += scale * x[where] @ a.T @ b``, piece by piece."""
        inner = linear(x[where].to(self.a.dtype), self.a)
        if scale != 1:
            inner *= scale
        if isinstance(where, slice):
            mine = y[where]
            for columns, ranks, b in self.pieces:
                add_product(mine[:, columns], inner[:, ranks], b)
        else:
            change = inner.new_zeros((len(where), y.shape[1]))
            for columns, ranks, b in self.pieces:
                torch.mm(inner[:, ranks], b, out=change[:, columns])
            add_where(y, where, change)


@dataclass(frozen=True)
class Packed:
    """One or several adapters' matrices of one layer side by side.

    ``a`` is (ranks, in), ``b`` (ranks, out) with zeros where a rank belongs to another of the merged layers;
    ``owners`` (ranks) says which slot a rank belongs to. ``ranks`` counts over merged layers and adapters.
    """

    a: torch.Tensor
    b: torch.Tensor
    owners: torch.Tensor

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float, rows: Rows) -> None:
        """``y += scale * x @ a.T @ b``, where each row gets only what its own adapter adds."""
        inner = linear(x.to(self.a.dtype), self.a)
        if not rows.all_of_one:
            # Not a product with 0: what overflows in a row of another adapter must not become its NaN.
            inner.masked_fill_(rows.slots.unsqueeze(1) != self.owners, 0)
        if scale != 1:
            inner *= scale
        add_product(y, inner, self.b)


def add_where(y: torch.Tensor, where: Where, change: torch.Tensor) -> None:
    """``y[where] += change``."""
    if isinstance(where, slice):
        y[where] += change
    else:
        y.index_add_(0, where, change.to(y.dtype))


def add_product(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``y += left @ right``, rounded to the type of ``y`` once."""
    if y.dtype == left.dtype:
        y.addmm_(left, right)
    else:
        y += left @ right


@dataclass(frozen=True)
class Choice:
    """How a layer computes a mixture of adapters for inputs of a type: side by side up to so many rows, or apart."""

    dtype: torch.dtype
    most_rows: int
    side_by_side: Packed | None
    touching: Mapping[int, Adapter]


def _by_columns(a: torch.Tensor) -> torch.Tensor:
    """``a`` with a column's elements beside each other in memory, which float32 is multiplied faster by."""
    return a.t().contiguous().t() if a.dtype == torch.float32 else a


class LayerLoRA:
    """The matrices of one layer, or of several merged ones, packed from vLLM's when they are needed.

    vLLM keeps, for each of the merged layers, those of all slots padded to the largest rank: (slots, 1, rank, in)
    and (slots, 1, size, rank).
    """

    def __init__(
        self, a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> None:
        self._stacked = list(zip(a_stacked, b_stacked, sizes, strict=True))
        self._adapters: dict[int, Adapter] = {}
        self._choices: OrderedDict[Mixture, Choice] = OrderedDict()

    def forget(self, slot: int) -> None:
        """Another adapter, or none, comes into the slot."""
        self._adapters.pop(slot, None)
        for mixture in [mixture for mixture in self._choices if slot in mixture]:
            del self._choices[mixture]

    def add(self, y: torch.Tensor, x: torch.Tensor, scale: float, rows: Rows) -> None:
        """Add to ``y`` (rows, out) what each row's adapter changes for its input in ``x`` (rows, in)."""
        choice = self._choose(rows.mixture, x.dtype)
        if choice.side_by_side is not None and len(x) <= choice.most_rows:
            choice.side_by_side.add(y, x, scale, rows)
        elif choice.touching:
            for slot, where in rows.parts_of(len(x)):
                if slot in choice.touching:
                    choice.touching[slot].add(y, x, scale, where)

    def _choose(self, mixture: Mixture, dtype: torch.dtype) -> Choice:
        found = self._choices.get(mixture)
        if found is not None and found.dtype == dtype:
            self._choices.move_to_end(mixture)  # the last in order is the one used last
            return found
        adapters = {slot: self._of(slot, type_to_compute_in(dtype)) for slot in mixture}
        touching = {slot: adapter for slot, adapter in adapters.items() if len(adapter.a)}
        size = sum(adapter.a.numel() + len(adapter.a) * self._width for adapter in touching.values())
        side_by_side = self._lay_side_by_side(touching) if 0 < size <= _SIZE_AT_ONCE else None
        found = Choice(dtype, _WORK_AT_ONCE // max(1, size), side_by_side, touching)
        self._choices[mixture] = found
        if len(self._choices) > _KEPT_MIXTURES:
            self._choices.popitem(last=False)
        return found

    @property
    def _width(self) -> int:
        return sum(size for _, _, size in self._stacked)

    def _of(self, slot: int, dtype: torch.dtype) -> Adapter:
        found = self._adapters.get(slot)
        if found is None or found.a.dtype != dtype:
            found = self._adapters[slot] = self._pack(slot, dtype)
        return found

    def _pack(self, slot: int, dtype: torch.dtype) -> Adapter:
        parts, pieces, offset, first = [], [], 0, 0
        for a_all, b_all, size in self._stacked:
            a, b = a_all[slot, 0], b_all[slot, 0, :size]
            used = (a.any(1) & b.any(0)).nonzero().squeeze(1)
            parts.append(a[used].to(dtype))
            if len(used):
                columns, ranks = slice(offset, offset + len(b)), slice(first, first + len(used))
                pieces.append((columns, ranks, b[:, used].to(dtype).t().contiguous()))
            offset, first = offset + size, first + len(used)
        return Adapter(_by_columns(torch.cat(parts)), tuple(pieces))

    def _lay_side_by_side(self, adapters: Mapping[int, Adapter]) -> Packed:
        a = _by_columns(torch.cat([adapter.a for adapter in adapters.values()]))
        b = a.new_zeros((len(a), self._width))
        first = 0
        for adapter in adapters.values():
            for columns, ranks, piece in adapter.pieces:
                b[first + ranks.start : first + ranks.stop, columns] = piece
            first += len(adapter.a)
        owners = [torch.full((len(adapter.a),), slot) for slot, adapter in adapters.items()]
        return Packed(a, b, torch.cat(owners))
