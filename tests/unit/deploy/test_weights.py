"""Weights on the command line."""

import pytest

from deploy.weights import name_of, parse_weights
from serve.errors import InputError
from serve.names import VersionRef

V2, V3 = VersionRef("support", 2), VersionRef("support", 3)


@pytest.mark.parametrize(
    ("texts", "weights"),
    [
        (["support@v2"], {V2: 100}),
        (["support@v2", "support@v3=10"], {V2: 90, V3: 10}),
        (["support@v3=10", "support@v2"], {V3: 10, V2: 90}),
        (["support@v2=9", "support@v3=1"], {V2: 9, V3: 1}),
        (["support@v2", "support@v3=0"], {V2: 100, V3: 0}),
    ],
)
def test_one_version_gets_what_the_others_leave(texts: list[str], weights: dict[VersionRef, int]) -> None:
    assert parse_weights(texts) == weights
    assert name_of(weights) == "support"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["support"], "names no version"),
        (["support@v2", "support@v2=3"], "named twice"),
        (["support@v2", "support@v3"], "have no weight"),
        (["support@v2", "support@v3=100"], "nothing is left"),
        (["support@v2=x"], "no weight"),
        (["support@v2=-1"], "no weight"),
        (["support@v2="], "no weight"),
        (["support@v2=0", "support@v3=0"], "all weights are 0"),
    ],
)
def test_what_makes_no_sense_is_said(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_weights(texts)


def test_versions_of_two_adapters_need_a_name_for_the_alias() -> None:
    with pytest.raises(InputError, match="versions of other and support"):
        name_of({V2: 1, VersionRef("other", 1): 1})
