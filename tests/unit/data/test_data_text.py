import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.text import fold, is_binary, normalise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  plain ", "plain"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("cafe\u0301", "café"),
        ("\ufeffno\u200b break\xa0here", "no break here"),
        ("bell\x07 inside a long enough text", "bell inside a long enough text"),
        ("if x:\n    return  1   \n\n", "if x:\n    return  1"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("\u202edecoy\u202c", "decoy"),
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@settings(deadline=None)
@given(st.text())
def test_normalise_is_idempotent_and_nfc(text: str) -> None:
    clean = normalise(text)
    assert normalise(clean) == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert clean == clean.strip()


@settings(deadline=None)
@given(st.text())
def test_fold_ignores_case_spacing_and_normalisation(text: str) -> None:
    key = fold(normalise(text))
    assert fold(f" {normalise(text)}\n") == key
    assert fold(key) == key


def test_fold_sees_the_same_text() -> None:
    assert fold("Where is  MY\ncard?") == fold("where is my card?")
    assert fold("Straße ﬁn") == fold("STRASSE FIN")
    assert fold("two") != fold("too")


@pytest.mark.parametrize(
    "text", ["one NUL\0 in a text of many characters", "\x01\x02\x03", "lone \ud800", "hi\x07"]
)
def test_binary(text: str) -> None:
    assert is_binary(text)


@pytest.mark.parametrize(
    "text", ["", "line\nline\ttab", "one bell\x07 in a text of many characters", "émoji 🎉"]
)
def test_not_binary(text: str) -> None:
    assert not is_binary(text)
