"""Our LoRA code behind vLLM's interface; imported inside vLLM only, see :mod:`serve.engine.plugin`.

The stock code for logits expects one row per request. It gets more when a request asks for the log-probabilities of
its prompt, and if others run beside it, it raises and takes the engine down with it. Here such rows get the logits
without the adapter's change to the output layer, which adapters on the linear layers do not have anyway.

It also takes -1, which stands for rows without an adapter, for the number of a slot, and so adds to them what the
adapter in the last slot changes. Here they stay as they are, also where the rest is left to the stock code: fully
sharded adapters, and the heads of classifiers that are not LoRA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.layers import BaseLayerWithLoRA, LogitsProcessorWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from serve.engine.cpu_lora import LayerLoRA, Rows, add_where, type_to_compute_in


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on linear layers, embeddings and logits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layers: dict[int, LayerLoRA] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Note which tokens and which requests of the coming step belong to which adapter."""
        super().update_metadata(*args, **kwargs)
        self._token_rows = Rows.of(self.token_lora_indices)
        self._request_rows = Rows.of(self.sampler_indices)

    def forget(self, first_a: torch.Tensor, slot: int) -> None:
        """Pack anew what a layer, known by the first of its A matrices, has in a slot."""
        layer = self._layers.get(first_a.data_ptr())
        if layer is not None:
            layer.forget(slot)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' change of one linear layer, or of several merged ones, to ``y``."""
        layer = self._layer(lora_a_stacked, lora_b_stacked, output_slices)
        layer.add(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), scale, self._token_rows)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' change of the output layer to ``y``, one row per request."""
        y, x, rows = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), self._request_rows
        if len(x) != len(rows.slots) and not rows.all_of_one:
            return
        self._layer((lora_a_stacked,), (lora_b_stacked,), (y.shape[-1],)).add(y, x, scale, rows)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' change of the embeddings to ``y``; ``x`` has the columns of A that tokens chose."""
        if not add_inputs:
            y.zero_()
        dtype = type_to_compute_in(x.dtype)
        for slot, where in self._token_rows.parts_of(len(x)):
            add_where(y, where, x[where].to(dtype) @ lora_b_stacked[slot, 0].to(dtype).t())

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """The first half for fully sharded adapters, with nothing where a row has none."""
        super().add_shrink(y, x, lora_a_stacked, scale, **kwargs)
        for part in y:
            part.view(-1, part.shape[-1])[self._token_rows.slots < 0] = 0

    def _layer(
        self, a_stacked: tuple[torch.Tensor, ...], b_stacked: tuple[torch.Tensor, ...], sizes: Sequence[int]
    ) -> LayerLoRA:
        key = a_stacked[0].data_ptr()
        found = self._layers.get(key)
        if found is None:
            found = self._layers[key] = LayerLoRA(a_stacked, b_stacked, sizes)
        return found


def tell_of_changes(kind: type[BaseLayerWithLoRA]) -> None:
    """Have layers of a kind tell the wrapper when a slot is emptied, which every change of a slot begins with."""
    reset = kind.reset_lora

    def reset_lora(self: Any, index: int) -> None:
        reset(self, index)
        wrapper, stacked = getattr(self, "punica_wrapper", None), self.lora_a_stacked
        if isinstance(wrapper, GroupedPunicaWrapper):
            wrapper.forget(stacked if isinstance(stacked, torch.Tensor) else stacked[0], index)

    kind.reset_lora = reset_lora


for _kind in (BaseLinearLayerWithLoRA, LogitsProcessorWithLoRA):
    tell_of_changes(_kind)
