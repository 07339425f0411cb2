"""The OpenAPI description of the control plane, as ``/openapi.json`` answers it."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

ABOUT = """Manages the adapters, aliases, keys and engines of one Tenon gateway, and tells usage and health.
Inference is at `/v1/*`, in the shape of the OpenAI API. Errors have OpenAI's shape everywhere."""
UNUSED = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI) -> dict[str, Any]:
    """The description; without FastAPI's answer 422, which is never given, as what is invalid is a 400 here."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in UNUSED:
            found.get("components", {}).get("schemas", {}).pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema
