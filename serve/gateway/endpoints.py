"""The endpoints of an engine that clients reach, by exact path. What is not listed here is closed."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve.gateway.policy import Length
from serve.gateway.validate import Kind


@dataclass(frozen=True)
class Endpoint:
    """One thing that an engine does.

    ``path`` is the engine's own, ``answer`` a key that a whole answer of it has, ``length`` what its bodies
    call ``max_tokens`` (None: it writes nothing, so no sampling applies), ``salted`` whether the engine's
    prefix cache can be kept apart by tenant, ``timed`` whether it counts into the latencies of its adapter,
    ``computes`` whether the engine's model has to work for it, so that it needs a place there.
    Without ``needs_model`` a request that names none is for the base.
    """

    kind: Kind
    path: str
    answer: str
    length: Length | None = None
    salted: bool = True
    timed: bool = True
    needs_model: bool = True
    computes: bool = True


CHAT = Endpoint("chat", "/v1/chat/completions", "choices", Length(("max_tokens", "max_completion_tokens")))
COMPLETION = Endpoint("completion", "/v1/completions", "choices", Length(("max_tokens",), usual=16))
RESPONSES = Endpoint("responses", "/v1/responses", "output", Length(("max_output_tokens",)))
EMBEDDING = Endpoint("embedding", "/v1/embeddings", "data")
CLASSIFY = Endpoint("classify", "/classify", "data")
SCORE = Endpoint("score", "/score", "data")
RERANK = Endpoint("rerank", "/rerank", "results")
POOLING = Endpoint("pooling", "/pooling", "data")
TOKENIZE = Endpoint(
    "tokenize", "/tokenize", "tokens", salted=False, timed=False, needs_model=False, computes=False
)
DETOKENIZE = Endpoint(
    "detokenize", "/detokenize", "prompt", salted=False, timed=False, needs_model=False, computes=False
)
INFO = Endpoint("tokenize", "/tokenizer_info", "tokenizer_class", salted=False, timed=False, computes=False)

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDING,
    "/v1/classify": CLASSIFY,
    "/classify": CLASSIFY,
    "/v1/score": SCORE,
    "/score": SCORE,
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/rerank": RERANK,
    "/pooling": POOLING,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
"""Endpoints of ``POST`` requests by their public path."""
TOKENIZER_INFO = INFO.path
"""The one that is asked with ``GET``, and about an engine rather than a model."""
