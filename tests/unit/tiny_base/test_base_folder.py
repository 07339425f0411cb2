"""The built-in base as it is committed: small, complete, in the form that every part of the system reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from train.data import builtin

FOLDER = Path(train.__file__).parent / "assets" / "tenon-tiny"
TEXTS = (
    "Where is my order A10293?",
    '{"intent":"refund","order":"A10293","product":"coffee machine","email":"a.brown@example.com"}',
    "card_arrival",
    "I don't know; it's £49.90 (or 50 €) – 'maybe'.\n\nRegards,\tSam  ",
    "Żółć, naïve, 東京, emoji 🙂 and \x00 bytes",
    "",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_folder_is_small_enough_to_be_committed():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12_000_000


def test_the_folder_holds_what_a_hub_model_holds():
    names = {file.name for file in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "chat_template.jinja"} <= names


def test_the_architecture_is_one_that_the_engine_serves_with_lora():
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["tie_word_embeddings"] is True


def test_the_weights_are_bfloat16_and_finite():
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.bfloat16
            assert tensor.isfinite().all(), name


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_vocabulary_and_the_model_agree(tokenizer):
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert config["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_digits_are_single_tokens(tokenizer):
    tokens = tokenizer.tokenize("A10293")
    assert tokens[-5:] == list("10293")


def test_the_chat_template_opens_the_answer_only_when_asked(tokenizer):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    closed = tokenizer.apply_chat_template(turns, tokenize=False)
    opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert closed == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert opened == closed + "<|im_start|>assistant\n"


def test_a_prompt_is_tokenized_alike_with_and_without_its_answer(tokenizer):
    for answer in ("card_arrival", '{"intent":"refund"}', "42"):
        turns = [{"role": "user", "content": "Hi"}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        whole = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}], return_dict=True
        )["input_ids"]
        assert whole[: len(prompt)] == prompt


def test_the_base_answers_in_the_form_of_a_turn(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    row = builtin.generate()["validation"][0]
    prompt = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.eos_token_id in answer
