import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from small_base import TEMPLATE, make_row, write_base
from transformers import AutoTokenizer

from serve.errors import BaseModelError, DataError, TenonError
from train.methods.tokens import IGNORED, TokenRows, load_tokenizer, stop_tokens, tokenize


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


def test_an_answer_that_is_not_closed_ends_where_the_next_question_begins(tmp_path: Path) -> None:
    # As GLM's and Apertus' templates have it: the token that opens a turn ends a generation.
    opened = TEMPLATE.replace("{{ m.content }}<|im_end|>", "{{ m.content }}").replace(
        "<|im_start|>{{ m.role }}",
        "{% if m.role == 'assistant' %}<|im_start|>{% else %}<|im_end|>{% endif %}{{ m.role }}",
    )
    rows, tokenizer = tokenized(tmp_path, [make_row(0), make_row(1)], template=opened)
    for number, labels in enumerate(rows.labels):
        supervised = [label for label in labels if label != IGNORED]
        answer = make_row(number)["completion"][0]["content"]
        assert words(tokenizer, supervised) == f"{answer} \n <|im_end|>"
        assert rows.ids[number][-len(supervised) :] == supervised


MISTRAL = (
    "{% set own = messages[0].role == 'system' %}{% set rest = messages[1:] if own else messages %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and own %}{{ messages[0].content + '\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
THINKING = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def words(tokenizer: AutoTokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_a_row_begins_as_its_request_does_also_where_the_template_moves_the_system_message(
    tmp_path: Path,
) -> None:
    made = [make_row(number) for number in range(3)]
    rows, tokenizer = tokenized(tmp_path, made, template=MISTRAL)
    for row, ids, labels in zip(made, rows.ids, rows.labels, strict=True):
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert "classify" in prompt
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids[: len(asked)] == asked
        assert labels[: len(asked)] == [IGNORED] * len(asked)
        supervised = [label for label in labels if label != IGNORED]
        assert words(tokenizer, supervised) == f"{row['completion'][0]['content']} <|im_end|>"
        assert ids[len(asked) :] == supervised


def test_a_template_whose_prompts_no_answer_can_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BaseModelError, match=r"train\.jsonl: row 1 \(id 000000000000\): .* ends a prompt with <think>"
    ):
        tokenized(tmp_path, [make_row(0)], template=THINKING)


def test_letters_of_prompt_and_answer_never_meet_in_a_token(tmp_path: Path) -> None:
    # The prompt ends amid what is one word when it is followed by the answer at once.
    glued = TEMPLATE.replace("assistant\n{% endif", "assistant\nhel{% endif").replace(
        "{{ m.role }}\n", "{{ m.role }}\n{% if m.role == 'assistant' %}hel{% endif %}"
    )
    rows, tokenizer = tokenized(tmp_path, [make_row(0, answer="p")], template=glued)
    asked = [label == IGNORED for label in rows.labels[0]]
    prompt = tokenizer.apply_chat_template(make_row(0)["prompt"], tokenize=False, add_generation_prompt=True)
    assert rows.ids[0][: sum(asked)] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert asked == sorted(asked, reverse=True)
    assert words(tokenizer, rows.ids[0][sum(asked) :]) == "<unk> <|im_end|> \n"


@pytest.mark.parametrize(
    ("template", "error", "said"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
            + TEMPLATE,
            DataError,
            r"train\.jsonl: row 1 \(id 000000000000\): .* does not take it: No system role",
        ),
        ("{% for %}", BaseModelError, "chat template is broken"),
    ],
)
def test_what_a_template_refuses_is_named(
    tmp_path: Path, template: str, error: type[TenonError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        tokenized(tmp_path, [make_row(0)], template=template)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "the tokenizer in .* cannot be loaded"),
        ("tokenizer_config.json", "{", "the tokenizer in .* cannot be loaded"),
        ("tokenizer_config.json", '{"tokenizer_class": "TokenizersBackend"}', "none to pad with"),
        ("chat_template.jinja", "", "has no chat template"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = write_base(tmp_path / "base")
    (folder / file).write_text(content)
    with pytest.raises(BaseModelError, match=said) as caught:
        load_tokenizer(folder)
    assert caught.value.hint


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    del content["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    assert load_tokenizer(folder).pad_token == "<|im_end|>"


def test_stop_tokens_are_those_that_the_engine_takes(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert stop_tokens(tokenizer, folder) == {2, 7, 8}
    (folder / "generation_config.json").write_text("{}")
    assert stop_tokens(tokenizer, folder) == {2}
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))
    assert stop_tokens(tokenizer, folder) == {2, 9}
    for broken in ("{", "[]"):
        (folder / "generation_config.json").write_text(broken)
        with pytest.raises(BaseModelError, match=r"generation_config\.json cannot be read"):
            stop_tokens(tokenizer, folder)


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


def test_the_first_row_that_is_kept_is_told_apart_with_its_prompt(tmp_path: Path) -> None:
    long = make_row(0, answer=" ".join(["billing"] * 80))
    rows, tokenizer = tokenized(tmp_path, [long, make_row(1), make_row(2)])
    assert [number for number, *_ in rows.too_long] == [1]
    assert rows.first == make_row(1)
    text = tokenizer.apply_chat_template(make_row(1)["prompt"], tokenize=False, add_generation_prompt=True)
    assert rows.first_prompt == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_a_template_writes_after_the_end_of_an_answer_is_cut_off(tmp_path: Path) -> None:
    # As some of Cohere's, which always write the beginning of the next answer.
    eager = TEMPLATE.replace("{% if add_generation_prompt %}", "").replace(
        "assistant\n{% endif %}", "assistant\n{{ '' }}"
    )
    rows, tokenizer = tokenized(tmp_path, [make_row(0), make_row(1)], template=eager)
    for number, (ids, labels) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        supervised = [label for label in labels if label != IGNORED]
        assert words(tokenizer, supervised) == f"{make_row(number)['completion'][0]['content']} <|im_end|>"
        assert ids[-len(supervised) :] == supervised


def test_mistrals_own_tokenizer_does_not_stand_in_for_the_bases(tmp_path: Path) -> None:
    pytest.importorskip("mistral_common")  # comes with vLLM
    folder = write_base(tmp_path / "base")
    shutil.copy(files("mistral_common").joinpath("data", "tekken_240911.json"), folder / "tekken.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    assert load_tokenizer(folder).chat_template == TEMPLATE
