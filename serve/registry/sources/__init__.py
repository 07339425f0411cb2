"""Brings adapters in from where they are: a folder, the Hugging Face hub, S3, Google Cloud Storage, a web server."""

from serve.registry.sources.fetch import Fetched, fetched
from serve.registry.sources.limits import Limits
from serve.registry.sources.source import Source, parse_source

__all__ = ["Fetched", "Limits", "Source", "fetched", "parse_source"]
