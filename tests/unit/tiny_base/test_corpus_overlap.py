"""The base has not read what adapters are tested on."""

import re
from itertools import islice

from train.data import builtin
from train.tiny_base import corpus

DOCUMENTS = 15_000


def texts() -> list[str]:
    """What the users of a part of the corpus say, one line per text."""
    found = []
    for document in islice(corpus.documents(5), DOCUMENTS):
        messages = [{"content": document["text"]}] if "text" in document else document["prompt"]
        found.extend(message["content"].casefold() for message in messages)
    return found


def pattern(phrasing: str) -> str:
    """A phrasing as a regular expression in which anything of one line may stand for a slot or a choice."""
    parts = re.split(r"\{\w+\}|\[[^\]]*\]", phrasing.casefold().rstrip(".!?"))
    return r"[^\n]{1,40}?".join(re.escape(part) for part in parts)


def test_no_phrasing_of_the_test_split_occurs_in_the_corpus():
    everything = "\n".join(texts())
    assert [text for _, text in builtin.phrasings("test") if re.search(pattern(text), everything)] == []


def test_the_instruction_of_the_dataset_is_new_to_the_base():
    assert builtin.system_message().casefold() not in "\n".join(texts())


def test_the_check_finds_a_phrasing_that_is_there():
    assert re.search(pattern("Where is order {order}?"), "hi\nwhere is order a12345? thanks")
    assert not re.search(pattern("Where is order {order}?"), "hi\nwhere is my parcel?")
