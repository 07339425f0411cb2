"""Our LoRA code behind vLLM's interface; imported inside vLLM only, see :mod:`serve.engine.plugin`.

The stock code for logits expects one row per request. It gets more when a request asks for the log-probabilities of
its prompt, and if others run beside it, it raises and takes the engine down with it. Here such rows get the logits
without the adapter's change to the output layer, which adapters on the linear layers do not have anyway.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from serve.engine.cpu_lora import add_products, group_rows


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA on linear layers and logits; embeddings and pooling stay with the stock code."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Note which tokens and which requests of the coming step belong to which adapter."""
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices)
        self._request_groups = group_rows(self.sampler_indices)

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
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        add_products(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, self._token_groups)

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
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        groups = self._request_groups
        if len(x) != len(self.sampler_indices) and any(rows is not None for _, rows in groups):
            return
        add_products(y, x, (lora_a_stacked,), (lora_b_stacked,), scale, (lora_b_stacked.shape[-2],), groups)
