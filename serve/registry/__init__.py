"""What adapters exist, which version each alias means, where their files are, and who may use them."""

from serve.registry.garbage import Collection
from serve.registry.keys import ApiKey, NewKey, Rights, hash_of
from serve.registry.records import (
    Alias,
    AliasChange,
    EngineSeen,
    EvaluationRecord,
    Lineage,
    LoadState,
    Version,
)
from serve.registry.registry import Registry
from serve.registry.usage import UsageDelta, UsageSum

__all__ = [
    "Alias",
    "AliasChange",
    "ApiKey",
    "Collection",
    "EngineSeen",
    "EvaluationRecord",
    "Lineage",
    "LoadState",
    "NewKey",
    "Registry",
    "Rights",
    "UsageDelta",
    "UsageSum",
    "Version",
    "hash_of",
]
