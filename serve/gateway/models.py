"""``GET /v1/models`` and ``/v1/models/{name}``: the names that clients can use, in OpenAI's shape."""

import orjson

from serve.errors import ModelNotFound
from serve.gateway.asgi import Send, send_json
from serve.gateway.auth import Caller
from serve.gateway.failures import Failure
from serve.gateway.routes import RouteTable


async def send_models(table: RouteTable, caller: Caller, send: Send) -> None:
    """Answer with every name that the caller may use."""
    cards = [card for name, card in table.models.items() if caller.allows(name)]
    await send_json(send, orjson.dumps({"object": "list", "data": cards}))


async def send_model(table: RouteTable, name: str, caller: Caller, send: Send) -> None:
    """Answer with one name, or 404."""
    plain = table.plain(name)
    card = table.models.get(plain) if caller.allows(plain) else None
    if card is None:
        error = ModelNotFound(f"the model {name[:100]!r} does not exist", "GET /v1/models lists the names")
        await Failure.of(error).send(send)
    else:
        await send_json(send, orjson.dumps(card))
