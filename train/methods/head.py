"""A language-model head that scores supervised tokens alone.

TRL's fused head skips unsupervised tokens only where Triton runs. Answers are often a tenth of their rows, so on
a CPU most of the head's work, which is much of a small base's, would be thrown away.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from train.footprint import MOST_LOGITS

# Configs with these fields change their logits in ways that only TRL's head follows.
SCALED = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def add_compact_head(model: PreTrainedModel) -> None:
    """Let ``model(..., labels=labels, fused_lm_head=True)`` score the supervised tokens alone.

    To be called after TRL added its own head, whose output this one has: fields of shape (rows, tokens - 1) with
    zeros where the label is -100. Does nothing to architectures that scale their logits or route to experts.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) is not None for name in SCALED) or hasattr(
        config, "router_aux_loss_coef"
    ):
        return
    fused: Callable[..., Any] = model.forward

    def forward(
        self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, labels: Any = None, **options: Any
    ) -> Any:
        if fused_lm_head and labels is not None and "shift_labels" not in options:
            wanted = labels[:, 1:]
            mask = wanted != -100
            # Above so many, TRL's head, which never holds them all, is the better one.
            if int(mask.sum()) * config.vocab_size <= MOST_LOGITS:
                options.pop("num_items_in_batch", None)
                options["use_cache"] = False
                hidden = self.base_model(*args, **options).last_hidden_state[:, :-1]
                return _score(self.get_output_embeddings()(hidden[mask]).float(), wanted[mask], mask)
        if labels is not None:
            options["labels"] = labels
        return fused(*args, fused_lm_head=fused_lm_head, **options)

    model.forward = types.MethodType(forward, model)


def _score(logits: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> FusedCausalLMOutput:
    """Scores of (n, vocabulary) logits against n wanted tokens, scattered to where ``mask`` is true."""
    scores = torch.log_softmax(logits, dim=-1)
    chosen = scores.gather(1, wanted[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(scores.exp() * scores).sum(-1)
        hits = (scores.argmax(-1) == wanted).to(scores.dtype)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    loss = -chosen.sum() / mask.sum().clamp(min=1)
    return FusedCausalLMOutput(
        loss=loss, log_probs=spread(chosen), entropy=spread(entropy), is_top1=spread(hits), label_mask=mask
    )
