"""The loop that makes the built-in base, on a few seconds of it."""

from itertools import islice
from statistics import mean

import pytest
import torch

from train.data import builtin
from train.tiny_base import corpus, model
from train.tiny_base.model import load_base, new_model, save_base
from train.tiny_base.pretrain import Budget, Progress, Settings, batches, learn
from train.tiny_base.tokenizer import learn_tokenizer, whole_texts

SETTINGS = Settings(batch_tokens=384, max_length=120)


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for each other on a busy machine take minutes for what one does in seconds.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def documents():
    return list(islice(corpus.documents(0), 400))


@pytest.fixture(scope="module")
def tokenizer(documents):
    return learn_tokenizer(whole_texts(documents), vocabulary=800)


def losses(documents, tokenizer, steps: int) -> list[float]:
    seen: list[Progress] = []
    learner = new_model(tokenizer, seed=0, layers=1)
    learn(
        learner, batches(documents[:40] * 20, tokenizer, SETTINGS), Budget(steps=steps), SETTINGS, seen.append
    )
    return [step.loss for step in seen]


def test_the_loss_falls_and_the_same_seed_gives_the_same_start(documents, tokenizer, monkeypatch):
    # Narrower: torch's Muon works in bfloat16, for which some processors have no instructions.
    monkeypatch.setattr(model, "WIDTH", 64)
    monkeypatch.setattr(model, "FEED_FORWARD", 128)
    first = losses(documents, tokenizer, steps=40)
    assert len(first) == 40
    assert mean(first[-6:]) < 0.8 * mean(first[:4])
    assert losses(documents, tokenizer, steps=1)[0] == pytest.approx(first[0])


def test_batches_hold_whole_documents_and_never_ask_for_padding(documents, tokenizer):
    rows = 0
    for batch in batches(documents, tokenizer, SETTINGS):
        assert batch.ids.shape == batch.weights.shape
        assert batch.ids.numel() <= SETTINGS.batch_tokens or len(batch.ids) == 1
        for ids, weights in zip(batch.ids, batch.weights, strict=True):
            padding = len(ids) - int((ids != tokenizer.pad_token_id).nonzero()[-1]) - 2
            assert padding < 1 or not weights[-padding:].any()
        assert (batch.weights.sum(dim=1) > 0).all()
        rows += len(batch.ids)
    assert 0.4 * len(documents) < rows <= 1.5 * len(documents)  # drills included


def test_answers_weigh_more_than_prompts(tokenizer):
    row = min(builtin.generate()["train"], key=lambda row: len(row["prompt"][-1]["content"]))
    batch = next(batches([row], tokenizer, SETTINGS))
    asked = batch.ids[0][batch.weights[0] == 1]
    assert tokenizer.decode(asked) == row["completion"][0]["content"] + "<|im_end|>"


def test_documents_that_are_all_too_long_give_no_batch(tokenizer):
    row = builtin.generate()["train"][0]
    assert list(batches([row], tokenizer, Settings(batch_tokens=384, max_length=5))) == []


def test_a_budget_is_spent_by_steps_or_by_time():
    assert Budget(steps=10).spent(seconds=1e9, step=5) == 0.5
    assert Budget(minutes=2).spent(seconds=30, step=999) == 0.25
    assert Budget(minutes=2).spent(seconds=300, step=0) == 1.0


def test_the_folder_replaces_an_older_one_and_is_read_back(documents, tokenizer, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "stale.bin").write_text("old")
    saved = new_model(tokenizer)
    save_base(saved, tokenizer, folder)
    assert not (folder / "stale.bin").exists()
    vocabulary, back = load_base(folder)
    assert vocabulary.get_vocab() == tokenizer.get_vocab()
    weight = saved.model.layers[0].mlp.up_proj.weight
    assert torch.equal(back.model.layers[0].mlp.up_proj.weight, weight.bfloat16().float())
