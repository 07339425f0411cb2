"""Rows that share their starts train as rows that are padded do."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from train import families
from train.methods import bench, head
from train.methods.head import add_compact_head
from train.methods.shared_starts import Row, SharedStarts, grow
from train.methods.tokens import IGNORED
from train.methods.tree_attention import NAME, share_starts
from train.recipe import Recipe

WORDS = 40
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, PreTrainedConfig] = {"qwen3": Qwen3Config(**SHAPE), "llama": LlamaConfig(**SHAPE)}
PADDED = DataCollatorForLanguageModeling(pad_token_id=0, pad_to_multiple_of=8)


def row(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    return {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + [*answer]}


ROWS = {
    "one instruction": [row([1, 2, 3, 4, 5, n, n + 1], [n + 2, 9, 2]) for n in range(6, 12)],
    "two instructions": [
        *(row([1, 2, 3, n], [n, 2]) for n in range(8, 11)),
        *(row([1, 7, 7, 7, 3, n], [n, 5, 2]) for n in (9, 8)),
    ],
    "nothing in common": [row([3, 4], [5, 2]), row([6, 7, 8, 9], [1, 2]), row([4], [2])],
    "the same row twice": [row([1, 2, 3], [4, 2])] * 2 + [row([1, 2, 3], [5, 2])],
    "one inside another": [row([1, 2, 3, 4], [5, 2]), row([1, 2, 3, 4, 5, 2, 8], [9, 2])],
    "one row": [row([1, 2, 3, 4, 5], [6, 7, 2])],
    "supervised from the start": [row([], [5, 6, 2]), row([], [5, 7, 2])],
}


def peft_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    # TRL adds its head first, as in the trainer.
    add_fused_lm_head(model)
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "up_proj"],
        lora_dropout=dropout,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    add_compact_head(model.get_base_model())
    return model


def loss_and_gradient(model: Any, batch: Any) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = -model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loss_and_gradient_are_those_of_padded_rows(config: PreTrainedConfig, rows: list[Any]) -> None:
    model = peft_model(config)
    wanted = loss_and_gradient(model, PADDED(rows))
    collate = share_starts(model, PADDED, rows)
    assert isinstance(collate, SharedStarts)
    assert model.get_base_model().config._attn_implementation == NAME
    loss, gradient = loss_and_gradient(model, collate(rows))
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    assert torch.allclose(gradient, wanted[1], rtol=1e-3, atol=1e-5)


def test_so_are_they_under_the_head_for_many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MOST_LOGITS", 0)
    model, rows = peft_model(CONFIGS["qwen3"]), ROWS["two instructions"]
    wanted = loss_and_gradient(model, PADDED(rows))
    collate = share_starts(model, PADDED, rows)
    assert isinstance(collate, SharedStarts)
    loss, gradient = loss_and_gradient(model, collate(rows))
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    assert torch.allclose(gradient, wanted[1], rtol=1e-3, atol=1e-5)


def test_so_are_they_where_activations_are_computed_again() -> None:
    model, rows = peft_model(CONFIGS["qwen3"]), ROWS["one instruction"]
    wanted = loss_and_gradient(model, PADDED(rows))
    collate = share_starts(model, PADDED, rows)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss, gradient = loss_and_gradient(model, collate(rows))
    assert loss == pytest.approx(wanted[0], rel=1e-5)
    assert torch.allclose(gradient, wanted[1], rtol=1e-3, atol=1e-5)


def test_bfloat16_differs_by_rounding() -> None:
    rows = ROWS["one instruction"]
    model = peft_model(CONFIGS["qwen3"], torch.bfloat16)
    wanted = loss_and_gradient(model, PADDED(rows))
    collate = share_starts(model, PADDED, rows)
    assert isinstance(collate, SharedStarts)
    loss, gradient = loss_and_gradient(model, collate(rows))
    assert loss == pytest.approx(wanted[0], rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradient.float(), wanted[1].float(), dim=0) > 0.99


def test_a_base_that_does_not_see_its_whole_row_keeps_padding(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(range(1, 30), [n, 2]) for n in (5, 6)]
    model = peft_model(MistralConfig(**SHAPE, sliding_window=4))
    wanted = loss_and_gradient(model, PADDED(rows))
    assert share_starts(model, PADDED, rows) is PADDED
    assert "rows are padded: MistralForCausalLM" in caplog.text
    assert model.get_base_model().config._attn_implementation == "sdpa"
    assert loss_and_gradient(model, PADDED(rows))[0] == wanted[0]


def test_a_base_that_cannot_be_told_of_trees_keeps_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = peft_model(CONFIGS["qwen3"]), ROWS["one instruction"]
    backbone = model.get_base_model().base_model
    forward = backbone.forward

    def knows_no_tree(**options: Any) -> Any:
        if "tree" in options:
            raise TypeError("forward() got an unexpected keyword argument 'tree'")
        return forward(**options)

    monkeypatch.setattr(backbone, "forward", knows_no_tree)
    assert share_starts(model, PADDED, rows) is PADDED
    loss_and_gradient(model, PADDED(rows))


def test_rows_train_under_dropout() -> None:
    model, rows = peft_model(CONFIGS["qwen3"], dropout=0.5), ROWS["one instruction"]
    collate = share_starts(model, PADDED, rows)
    assert isinstance(collate, SharedStarts)
    model.train()
    losses = {loss_and_gradient(model, collate(rows))[0] for _ in range(4)}
    assert len(losses) == 4


tokens = st.integers(1, 3)


@given(
    st.lists(
        st.tuples(st.lists(tokens, max_size=8), st.lists(tokens, min_size=1, max_size=4)),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_stands_in_the_tree_with_its_own_labels(drawn: list[tuple[list[int], list[int]]]) -> None:
    rows: list[Row] = [([*p, *a], [IGNORED] * len(p) + a) for p, a in drawn]
    tree = grow(rows)
    batch = SharedStarts()([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    assert sum(tree.rows) == int(batch["attention_mask"].sum()) == sum(len(ids) for ids, _ in rows)
    ends = [path for path, _ in tree.pieces]
    found = sorted(tuple(tree.ids[place] for place in path) for path in ends)
    for ids, _ in rows:
        assert tuple(ids) in found
    for path in ends:
        assert [tree.depths[place] for place in path] == list(range(len(path)))
        for before, place in pairwise(path):
            # What is learnt is told by the token just before it, which is its own row's.
            assert tree.labels[place] == IGNORED or (
                place == before + 1 and tree.labels[place] == tree.ids[place]
            )
    learnt = sum(label != IGNORED for _, labels in rows for label in labels[1:])
    assert sum(label != IGNORED for label in tree.labels[1:]) == learnt
    views = batch["tree"]
    flat = views["asking"].flatten()[views["origin"]]
    assert flat.tolist() == list(range(len(tree.ids)))


@pytest.mark.parametrize(("family", "shares"), [("gemma2", False), ("llama", True)])
def test_a_base_with_an_attention_of_its_own_is_trained_by_that(
    tmp_path: Path, family: str, shares: bool
) -> None:
    families.make(family, tmp_path / "base")
    recipe = Recipe.load(
        None, [f"base={tmp_path / 'base'}", "data.limit=64", "train.batch_size=8", "train.precision=fp32"]
    )
    trainer = bench.make_trainers(recipe, tmp_path)["shared"]
    assert isinstance(trainer.data_collator, SharedStarts) == shares
    attention = trainer.model.get_base_model().config._attn_implementation
    assert attention == (NAME if shares else "eager")


def test_the_benchmark_measures_both_ways(tmp_path: Any) -> None:
    recipe = Recipe.load(None, ["data.limit=64", "train.batch_size=8"])
    found = bench.measure(bench.make_trainers(recipe, tmp_path), batches=2, rounds=1)
    assert found["loss_difference"] < 1e-3
    assert found["computed_tokens"]["shared"] < found["row_tokens"] < found["computed_tokens"]["padded"]
    assert len(found["ratios"]) == 1
