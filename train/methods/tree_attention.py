"""Attention in a batch that is the prefix tree of its rows: each piece asks, its whole path answers.

Linear layers, most of a model's work, see each token of the tree once; here the keys of a common start are handed
to every row that has it, so that attention works on no more than the rows' own squares.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from train.methods.shared_starts import Batch, SharedStarts

NAME = "tenon_tree"
# torch's own attention for bf16 on a CPU is several times slower than plain matrix products on short rows, and
# plain products take memory with the square of the length.
PRODUCTS_UP_TO = 512
# Mean difference of log-probabilities (nats) that rounding explains.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05}

Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]

log = logging.getLogger(__name__)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Mapping[str, torch.Tensor] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface: (1, heads, tokens, width) to (1, tokens, heads, width).

    Without ``tree`` it is transformers' own.
    """
    if tree is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
        return output, None
    heads, width = query.shape[1], query.shape[3]
    q, k, v = _take(query, tree["asking"]), _take(key, tree["seen"]), _take(value, tree["seen"])
    scale = width**-0.5 if scaling is None else scaling
    if query.dtype == torch.float32 or k.shape[2] > PRODUCTS_UP_TO:
        found = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=tree["mask"], dropout_p=dropout, scale=scale, enable_gqa=heads != key.shape[1]
        )
    else:
        found = _products(q, k, v, tree["mask"], scale, dropout)
    flat = found.transpose(1, 2).flatten(0, 1).flatten(1)
    return functional.embedding(tree["origin"], flat).view(1, -1, heads, found.shape[3]), None


def _take(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, width) at (pieces, n) places: (pieces, heads, n, width)."""
    heads, width = tokens.shape[1], tokens.shape[3]
    # An embedding's backward adds up rows much faster than that of indexing.
    taken = functional.embedding(places, tokens[0].transpose(0, 1).flatten(1))
    return taken.view(*places.shape, heads, width).transpose(1, 2)


def _products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    pieces, heads, asking, width = q.shape
    groups, seen = k.shape[1:3]
    # Heads that share keys ask together.
    scores = torch.matmul(q.reshape(pieces, groups, -1, width), k.transpose(2, 3)) * scale
    scores = scores.view(pieces, heads, asking, seen).masked_fill(~mask, torch.finfo(q.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = functional.dropout(weights, dropout).view(pieces, groups, -1, seen)
    return torch.matmul(weights, v).view(pieces, heads, asking, v.shape[3])


def share_starts(model: Any, padded: Collator, examples: Sequence[Mapping[str, Any]]) -> Collator:
    """The collator to train ``model``, a PEFT model, with: SharedStarts where it gives what ``padded`` gives.

    That is found out by asking the model for ``examples`` both ways. Layers that mix tokens by other means than
    attention, or limit how far it sees, give something else, and keep ``padded``.
    """
    base: PreTrainedModel = model.get_base_model()
    implementation = base.config._attn_implementation
    shared = SharedStarts()
    wanted = _scores(model, padded(examples))
    backbone = base.base_model
    hook = backbone.register_forward_pre_hook(_mask_by_tree, with_kwargs=True)
    try:
        base.set_attn_implementation(NAME)
        difference = float((_scores(model, shared(examples)) - wanted).abs().mean())
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        log.warning("rows are padded: %s", error)
    else:
        if difference <= ROUNDING[base.dtype]:
            return shared
        log.warning("rows are padded: %s answers otherwise by %.3g", type(base).__name__, difference)
    hook.remove()
    base.set_attn_implementation(implementation)
    return padded


def _mask_by_tree(_: torch.nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    # A mask of four dimensions is taken as it is; the one with two is for those who count tokens.
    if "tree" in options:
        options = {**options, "attention_mask": options["tree"]["mask"]}
    return args, options


def _scores(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probabilities of the supervised tokens, sorted: batches order rows as they like."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
    model.train(training)
    return outputs.log_probs[outputs.label_mask].float().sort().values  # type: ignore[no-any-return]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
