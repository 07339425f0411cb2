import json
from importlib.resources import files
from pathlib import Path

import pytest
from small_base import TEMPLATE, make_row, write_base
from transformers import AutoTokenizer

from serve.errors import BaseModelError, DataError
from train.methods.tokens import IGNORED, TokenRows, stop_tokens, tokenize


def tokenized(
    tmp_path: Path, rows: list[dict[str, object]], *, template: str = TEMPLATE, max_length: int = 64
) -> tuple[TokenRows, AutoTokenizer]:
    folder = write_base(tmp_path / "base", template=template)
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenize(file, tokenizer, stop_tokens(tokenizer, folder), max_length), tokenizer


def test_only_the_completion_is_supervised_and_it_ends(tmp_path: Path) -> None:
    rows, tokenizer = tokenized(tmp_path, [make_row(number) for number in range(5)])
    for number, (ids, labels) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        supervised = [label for label in labels if label != IGNORED]
        answer = make_row(number)["completion"][0]["content"]
        assert tokenizer.convert_ids_to_tokens(supervised) == [answer, "<|im_end|>", "\n"]
        start = tokenizer.convert_ids_to_tokens(ids[: -len(supervised)])
        assert start[-3:] == ["<|im_start|>", "assistant", "\n"]
        assert labels[-len(supervised) :] == ids[-len(supervised) :]


def test_an_empty_thought_belongs_to_the_prompt_as_the_engine_renders_it(tmp_path: Path) -> None:
    template = files("trl").joinpath("chat_templates", "qwen3.jinja").read_text(encoding="utf-8")
    rows, tokenizer = tokenized(tmp_path, [make_row(number) for number in range(5)], template=template)
    for number, (ids, labels) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        row = make_row(number)
        supervised = [label for label in labels if label != IGNORED]
        answer = row["completion"][0]["content"]
        assert tokenizer.convert_ids_to_tokens(supervised) == [answer, "<|im_end|>", "\n"]
        prompt = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False)
        assert tokenizer(prompt)["input_ids"] + supervised == ids == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize("answer", ["", "  "])
def test_a_row_without_an_answer_is_named(tmp_path: Path, answer: str) -> None:
    rows = [make_row(0), make_row(1), make_row(2, answer=answer)]
    with pytest.raises(DataError, match=r"train\.jsonl: row 3 \(id 000000000002\) has no supervised tokens"):
        tokenized(tmp_path, rows)


def test_a_template_that_hides_the_answer_is_found_out(tmp_path: Path) -> None:
    silent = (
        "{% for m in messages if m.role != 'assistant' %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(
        DataError, match=r"rows 1 \(id 000000000000\), .* and 2 more have no supervised tokens"
    ):
        tokenized(tmp_path, [make_row(number) for number in range(5)], template=silent)


def test_a_template_that_does_not_end_the_answer_is_found_out(tmp_path: Path) -> None:
    endless = TEMPLATE.replace("{{ m.content }}<|im_end|>", "{{ m.content }}")
    with pytest.raises(BaseModelError, match=r"row 1 \(id 000000000000\) has no stop token"):
        tokenized(tmp_path, [make_row(0)], template=endless)


def test_rows_that_are_too_long_are_left_out_whole_and_named(tmp_path: Path) -> None:
    long = make_row(1)
    long["prompt"][1]["content"] = "help " * 80
    rows, _ = tokenized(tmp_path, [make_row(0), long, make_row(2)])
    assert len(rows) == 2
    ((number, name, tokens),) = rows.too_long
    assert (number, name) == (2, "000000000001")
    assert tokens > 80
    assert rows.longest <= 64


def test_rows_are_encoded_some_at_a_time_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(number) for number in range(7)]
    at_once, _ = tokenized(tmp_path / "one", rows)
    monkeypatch.setattr("train.methods.tokens.AT_ONCE", 3)
    in_pieces, _ = tokenized(tmp_path / "other", rows)
    assert in_pieces == at_once
    assert len(in_pieces) == 7


def test_a_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows, _ = tokenized(tmp_path, [make_row(number) for number in range(20)])
    drawn = rows.sample(5, seed=1)
    assert drawn == rows.sample(5, seed=1) != rows.sample(5, seed=2)
    places = [rows.ids.index(ids) for ids in drawn.ids]
    assert [rows.labels[place] for place in places] == drawn.labels
    assert places == sorted(places)
    assert rows.sample(20, seed=1) is rows
