from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.prices import Prices

TEXT = """
currency: EUR
default: {prompt: 0.2, completion: 0.6}
adapters:
  support: {prompt: 1}
  qwen: {engine_hour: 2.5, completion: 2}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prices.yaml"


def test_tokens_and_engine_time_become_money(path: Path) -> None:
    path.write_text(TEXT)
    prices = Prices.load(path)
    assert prices.currency == "EUR"
    assert prices.of("support").cost(2_000_000, 500, 99) == 2
    assert prices.of("other").cost(1_000_000, 1_000_000, 99) == pytest.approx(0.8)
    assert prices.of("qwen").cost(5, 500_000, 7200) == pytest.approx(6)


def test_without_prices_all_is_free(path: Path) -> None:
    path.write_text("")
    for prices in (Prices.load(None), Prices.load(path)):
        assert prices.of("support").cost(10**9, 10**9, 10**9) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("defualt: {}", "did you mean default?"),
        ("adapters: {support: {promt: 1}}", "adapters.support.promt is no key (did you mean prompt?)"),
        ("default: {prompt: -1, completion: .nan}", "default.completion"),
        ("default: {prompt: cheap}", "default.prompt"),
        ("[]", "the file"),
        ("{", "not YAML"),
    ],
)
def test_wrong_prices_are_named(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Prices.load(path)
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_a_file_that_is_missing(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        Prices.load(path)
    assert "TENON_PRICES" in caught.value.hint
