"""What adapters exist, which version each alias means, and where their files are."""

from serve.registry.records import (
    Alias,
    AliasChange,
    EvaluationRecord,
    Lineage,
    LoadState,
    Version,
)
from serve.registry.registry import Registry

__all__ = ["Alias", "AliasChange", "EvaluationRecord", "Lineage", "LoadState", "Registry", "Version"]
