"""The tokenizer of the built-in base: byte-level BPE in which a word is the same token wherever it stands.

In most byte-level vocabularies "kettle" after a space and "kettle" after a quotation mark are different tokens, so
that a model must learn for each word apart how to copy it from a sentence into JSON, or that the ``card`` in
``card_arrival`` is the card of the sentence. A small model has no time for that. Here a word that no space precedes is
written as a joiner and a space and the word; what is decoded loses both again. The joiner merges with the punctuation
before it, so that ``{"intent":"refund"`` costs four tokens.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 6144
CONTEXT = 1024

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# A private-use character, so that no text worth keeping contains it.
JOINER = "\ue000"
# What a word can stand right behind. An apostrophe within a word ("don't") begins none.
_BEFORE_WORD = string.punctuation.replace("'", "") + string.digits + "\n\t£€“«–—…¿¡"
# Contractions, words, single digits, currency signs, runs of punctuation, white space.
_PIECES = r"['\u2019]\p{L}+| ?\p{L}+|\p{N}|[£$€]| ?[^\s\p{L}\p{N}£$€]+|\s+(?!\S)|\s"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def learn_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learn a tokenizer of at most ``vocabulary`` entries from texts; every byte and thus every text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *(_join_words_to(mark) for mark in _BEFORE_WORD), _join_words_to("'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # The second replacement is for a joiner whose word has not been generated yet.
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(JOINER + " ", ""), decoders.Replace(JOINER, "")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def render(document: Mapping[str, Any]) -> tuple[str, str]:
    """The text of a document in two parts, what is given and what is to be learnt above all.

    A chat row gives (prompt with the opened turn of the assistant, the answer with the end of its turn), a row of
    plain ``text`` gives ("", the text with the end mark).
    """
    if "text" in document:
        return "", document["text"] + END_OF_TEXT
    turns = "".join(_turn(message) for message in document["prompt"])
    answer = document["completion"][0]["content"]
    return f"{turns}{TURN_START}assistant\n", f"{answer}{TURN_END}"


def whole_texts(documents: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """The documents' text between the marks of turns: what the vocabulary is learnt from."""
    for document in documents:
        if "text" in document:
            yield document["text"]
        else:
            messages: Sequence[Mapping[str, str]] = [*document["prompt"], *document["completion"]]
            yield from (f"{message['role']}\n{message['content']}" for message in messages)


def _join_words_to(mark: str) -> normalizers.Normalizer:
    # One rule for each mark, as a replacement cannot repeat what it matched, and matching nothing at all between
    # mark and letter makes the library lose count of the positions.
    inside = r"(?<!\p{L})" if mark == "'" else ""
    return normalizers.Replace(Regex(f"{inside}{re.escape(mark)}(?=\\p{{L}})"), f"{mark}{JOINER} ")


def _turn(message: Mapping[str, str]) -> str:
    return f"{TURN_START}{message['role']}\n{message['content']}{TURN_END}\n"
