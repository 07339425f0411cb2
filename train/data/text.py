"""Text as it is stored, and the key that says that two texts are the same."""

import re
import unicodedata

SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z0-9_]{1,40}\|>")

# More than one control character in twenty is no typing accident but data that is not text.
_BINARY_SHARE = 1 / 20

_NEWLINES = "\v\f\x85\u2028\u2029"
_SPACES = "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
# Zero-width joiners stay: emoji, Persian and Indic scripts are spelt with them.
_INVISIBLE = "\xad\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROLS = {code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r" + _NEWLINES}
_TABLE: dict[int, str | None] = {
    **dict.fromkeys(_CONTROLS),
    **dict.fromkeys(map(ord, _INVISIBLE)),
    **dict.fromkeys(map(ord, _NEWLINES), "\n"),
    **dict.fromkeys(map(ord, _SPACES), " "),
}


def is_binary(text: str) -> bool:
    """Whether ``text`` is no text: a NUL, a lone surrogate, or over 5 % control characters."""
    if text.isprintable():
        return False
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        return True
    return sum(ord(char) in _CONTROLS for char in text) > len(text) * _BINARY_SHARE


def normalise(text: str) -> str:
    """``text`` in Unicode NFC with plain newlines and spaces, no invisible or control characters, trimmed.

    Case, indentation and runs of spaces inside a line stay, as they mean something in code and tables.
    Idempotent.
    """
    if text.isascii() and text.isprintable():
        return text.strip(" ")
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_TABLE)
    text = unicodedata.normalize("NFC", text)
    return "\n".join(line.rstrip(" \t") for line in text.split("\n")).strip(" \t\n")


def fold(text: str) -> str:
    """The key of ``text``: equal for texts that differ in case, spacing or compatibility characters only."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return " ".join(text.casefold().split())
