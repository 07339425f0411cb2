"""Whether an engine writes prompts as they were trained, asked of a server that behaves as vLLM does."""

import json
import urllib.request
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port

from deploy.net import post_json
from deploy.prompts import written_otherwise

MODEL = "tenon-tiny"
MESSAGES = [{"role": "user", "content": "Where is my card? I have been waiting for two weeks."}]


def keep(folder: Path, tokens: list[int], **values: Any) -> Path:
    file = folder / "asked.json"
    file.write_text(json.dumps({"messages": MESSAGES, "tools": None, "tokens": tokens, "day": None} | values))
    return file


@pytest.fixture
def tokens(fake_engine: str) -> list[int]:
    found = post_json(f"{fake_engine}/tokenize", {"model": MODEL, "messages": MESSAGES})["tokens"]
    assert found == list(MESSAGES[0]["content"].encode())
    return list(found)


def test_prompts_that_are_alike_are_no_news(fake_engine: str, tokens: list[int], tmp_path: Path) -> None:
    assert written_otherwise(fake_engine, None, MODEL, keep(tmp_path, tokens)) is None


@pytest.mark.parametrize("change", [lambda t: [*t[:8], 65, *t[9:]], lambda t: [*t, 65], lambda t: t[:-1]])
def test_both_are_told_where_they_part(
    fake_engine: str, tokens: list[int], tmp_path: Path, change: Any
) -> None:
    changed = change(tokens)
    found = written_otherwise(fake_engine, None, MODEL, keep(tmp_path, changed))
    assert found is not None
    trained, now = found
    assert trained != now

    def said(some: list[int]) -> str:
        at = next(place for place in range(len(some) + 1) if tokens[: place + 1] != changed[: place + 1])
        body = {"model": MODEL, "tokens": some[max(0, at - 6) : at + 16]}
        return str(post_json(f"{fake_engine}/detokenize", body)["prompt"])

    assert (trained, now) == (said(changed), said(tokens))


def test_a_prompt_with_a_date_is_compared_on_its_day(
    fake_engine: str, tokens: list[int], tmp_path: Path
) -> None:
    other = [*tokens, 65]
    today, before = date.today(), date.today() - timedelta(days=1)
    assert (
        written_otherwise(fake_engine, None, MODEL, keep(tmp_path, other, day=today.isoformat())) is not None
    )
    assert written_otherwise(fake_engine, None, MODEL, keep(tmp_path, other, day=before.isoformat())) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"messages": 3, "tokens": 4, "tools": null, "day": null}'])
def test_without_a_record_nothing_is_said(fake_engine: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "asked.json").write_text(text)
    assert written_otherwise(fake_engine, None, MODEL, tmp_path / "asked.json") is None
    assert written_otherwise(fake_engine, None, MODEL, tmp_path / "none.json") is None


def test_where_nobody_answers_nothing_is_said(tmp_path: Path) -> None:
    assert written_otherwise(f"http://127.0.0.1:{free_port()}", None, MODEL, keep(tmp_path, [1, 2])) is None


def test_tokens_are_told_where_the_texts_are_alike(
    fake_engine: str, tokens: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_texts(url: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        return {} if url.endswith("/detokenize") else post_json(url, body, key)

    monkeypatch.setattr("deploy.prompts.post_json", no_texts)
    found = written_otherwise(fake_engine, None, MODEL, keep(tmp_path, [*tokens, 65]))
    assert found == (f"tokens {[*tokens[-6:], 65]}", f"tokens {tokens[-6:]}")


def test_no_proxy_is_told_of_a_secret(fake_engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    body = {"model": MODEL, "tokens": [65, 66]}
    assert post_json(f"{fake_engine}/detokenize", body, "secret")["prompt"]
