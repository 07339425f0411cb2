"""What a source is called, and what of it may be shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import SourceError
from serve.registry.sources import parse_source


@pytest.mark.parametrize(
    ("text", "kind", "place", "prefix", "revision", "name"),
    [
        ("org/My_LoRA", "hub", "org/My_LoRA", "", None, "my_lora"),
        ("org/lora@v1.0", "hub", "org/lora", "", "v1.0", "lora"),
        ("hf://org/lora", "hub", "org/lora", "", None, "lora"),
        ("HF://org/lora@main", "hub", "org/lora", "", "main", "lora"),
        ("hf://org/lora@refs%2Fpr%2F1/checkpoint-10", "hub", "org/lora", "checkpoint-10", "refs/pr/1", "checkpoint-10"),
        ("s3://bucket/a/b/", "s3", "bucket", "a/b", None, "b"),
        ("s3://bucket", "s3", "bucket", "", None, "bucket"),
        ("gs://bucket/My Lora".replace(" ", "-"), "gs", "bucket", "My-Lora", None, "my-lora"),
        ("https://host/a/b", "http", "https://host/a/b/", "", None, "b"),
        ("http://host:81/a%20b/#x", "http", "http://host:81/a%20b/", "", None, "a-b"),
        ("https://[2001:db8::1]/a/", "http", "https://[2001:db8::1]/a/", "", None, "a"),
        ("https://hf.co/o/n/resolve/main/", "http", "https://hf.co/o/n/resolve/main/", "", None, "main"),
    ],
)  # fmt: skip
def test_sources_are_understood(
    text: str, kind: str, place: str, prefix: str, revision: str | None, name: str
) -> None:
    source = parse_source(text)
    found = (source.kind, source.place, source.prefix, source.revision, source.name)
    assert found == (kind, place, prefix, revision, name)


def test_a_folder_that_exists_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("org/lora").kind == "hub"
    (tmp_path / "org" / "lora").mkdir(parents=True)
    assert parse_source("org/lora").place == str(tmp_path / "org" / "lora")
    assert parse_source("./nowhere").kind == "folder"
    monkeypatch.chdir(tmp_path / "org" / "lora")
    assert parse_source(".").name == "lora"
    assert parse_source("..").name == "org"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no hub id"),
        ("nothing-here", "no hub id"),
        ("a/b/c", "no hub id"),
        ("~nobody-of-this-name/x", "no source"),
        ("x\0y", "no hub id"),
        ("ftp://host/a", "ftp://"),
        ("file:///etc", "file://"),
        ("s3://", "bucket"),
        ("s3://user:secret@bucket/a", "bucket"),
        ("s3://bucket/a/../b", "bucket"),
        ("s3://bucket/a*", "bucket"),
        ("s3://bucket/lora.tar.gz", "archive"),
        ("hf://org", "hub"),
        ("hf://org/name@", "hub"),
        ("hf://org/name@../x", "hub"),
        ("hf://org/name@main/../x", "hub"),
        ("hf://../name", "hub"),
        ("http://", "no URL"),
        ("http://host:99999/a", "no URL"),
        ("http://ho st/a", "spaces"),
        ("http://host/a\r\nHost: x", "spaces"),
        ("http://good.example\\@127.0.0.1/a", "no URL"),
        ("http://host/a/%2e%2e/b", "no URL"),
        ("https://host/lora.zip", "archive"),
        ("https://host/lora.tar.gz?token=secret", "archive"),
        ("https://host/a/adapter_model.safetensors", "one file"),
        ("https://huggingface.co/org/name", "page of the hub"),
        ("https://huggingface.co/org/name/tree/v1", "page of the hub"),
    ],
)  # fmt: skip
def test_what_is_no_source_says_what_is(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        parse_source(text)
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_page_of_the_hub_gives_the_id() -> None:
    with pytest.raises(SourceError) as caught:
        parse_source("https://huggingface.co/org/name/tree/v1")
    assert caught.value.hint == "give hf://org/name@v1"


def test_credentials_are_not_shown() -> None:
    source = parse_source("https://user:geheim@host:8443/lora/?sig=geheim#geheim")
    assert source.shown == "https://host:8443/lora/"
    assert source.place == "https://user:geheim@host:8443/lora/?sig=geheim"
    assert "geheim" not in repr(source)


@given(st.text(max_size=60), st.sampled_from(["", "hf://", "s3://", "gs://", "http://", "https://"]))
def test_any_text_is_a_source_or_refused(text: str, scheme: str) -> None:
    try:
        source = parse_source(scheme + text)
    except SourceError:
        return
    assert "@" not in source.shown.split("/")[2] if source.kind == "http" else True
    assert isinstance(source.name, str)
