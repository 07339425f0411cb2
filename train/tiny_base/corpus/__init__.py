"""A corpus of our own making for pretraining the built-in base: many small text tasks over many domains.

`documents(seed)` is an endless, deterministic stream; `domains()` lists what the messages are about. All text comes
from the phrasings and word lists under `data/`.
"""

from train.tiny_base.corpus.loader import Domain, Intent, domains
from train.tiny_base.corpus.stream import documents

__all__ = ["Domain", "Intent", "documents", "domains"]
