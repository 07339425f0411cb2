"""The tokenizer that is learnt for the built-in base."""

import pytest

from train.tiny_base.tokenizer import END_OF_TEXT, JOINER, TURN_END, learn_tokenizer, render, whole_texts

CHAT = {
    "prompt": [
        {"role": "system", "content": "Name the field."},
        {"role": "user", "content": "my kettle leaks"},
    ],
    "completion": [{"role": "assistant", "content": '{"product":"kettle"}'}],
}


@pytest.fixture(scope="module")
def tokenizer():
    sentences = (
        "the kettle is new",
        'say {"product":"kettle"}',
        "don't touch the card_arrival page",
        "it's 4th",
    )
    return learn_tokenizer([*sentences * 20, *whole_texts([CHAT] * 20)], vocabulary=600)


def test_a_word_is_the_same_token_in_a_sentence_in_json_and_in_a_label(tokenizer):
    kettle = tokenizer("a kettle")["input_ids"][-1]
    assert tokenizer.decode([kettle]) == " kettle"
    assert kettle in tokenizer('{"product":"kettle"}')["input_ids"]
    assert kettle in tokenizer("big_kettle")["input_ids"]
    assert kettle in tokenizer("(kettle)\nkettle")["input_ids"]


def test_what_was_joined_is_decoded_without_a_trace(tokenizer):
    text = '{"product":"kettle"} isn\'t the card_arrival\nof "4th" €5/day'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_joiner_whose_word_is_still_missing_shows_nothing(tokenizer):
    ids = tokenizer("big_kettle")["input_ids"]
    assert JOINER in tokenizer.backend_tokenizer.normalizer.normalize_str("big_kettle")
    texts = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    assert all("big_kettle".startswith(text) for text in texts)


def test_every_byte_can_be_written(tokenizer):
    text = "".join(map(chr, range(1, 256))) + "東京🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_learning_is_deterministic():
    texts = ["the kettle and the card"] * 10
    first, second = learn_tokenizer(texts, 400), learn_tokenizer(texts, 400)
    assert first.get_vocab() == second.get_vocab()


def test_a_chat_row_is_rendered_as_the_chat_template_renders_it(tokenizer):
    given, asked = render(CHAT)
    assert given == tokenizer.apply_chat_template(CHAT["prompt"], tokenize=False, add_generation_prompt=True)
    assert asked == '{"product":"kettle"}' + TURN_END


def test_plain_text_is_all_to_be_learnt():
    assert render({"text": "a story"}) == ("", "a story" + END_OF_TEXT)
