"""An engine without a model: vLLM's HTTP interface on a real port, with fixed answers and faults on request.

    async with FakeEngine(adapters=["support@v1-1a2b3c4d"]) as engine:
        ...  # talk to engine.url as to vLLM

or ``python -m serve.engine.fake --port 9000 --model base``. Routes, error shapes and error texts are those of
vLLM 0.32. A chat answers ``<model> heard: <the last message>``, a completion ``<model> continues: <the
prompt>``, so that a test sees which adapter answered what. Numbers follow from the digest at the end of an engine
name, so that the same files answer alike under any name. Tokens are words. ``answer`` replaces this by any
function of model and prompt.

Beside the engine's own routes: ``POST /_fake/faults`` ``{"faults": [{"kind": "die_mid_stream", "after":
2}]}`` replaces the faults that are pending (see :class:`Fault`), ``GET /_fake/stats`` tells what happened.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import orjson
from aiohttp import web

from serve.engine import fake_answers as answers
from serve.engine import fake_reading as reading
from serve.engine.fake_faults import Fault, Stats
from serve.engine.fake_http import (
    RefusalError,
    ScriptedDeathError,
    event,
    json_answer,
    json_body,
    refusals,
)

__all__ = ["FakeEngine", "Fault", "Stats"]

Answer = Callable[[str, str], str]

READERS: Mapping[str, Callable[[Mapping[str, Any], str, str], dict[str, Any]]] = {
    "/v1/embeddings": reading.embeddings,
    "/pooling": reading.pooling,
    "/classify": reading.classes,
    "/score": reading.scores,
    "/v1/score": reading.scores,
    "/rerank": reading.ranks,
    "/v1/rerank": reading.ranks,
    "/v2/rerank": reading.ranks,
}


class FakeEngine:
    """A vLLM-shaped server; ``adapters`` are loaded from the start, ``port`` 0 takes a free one.

    Attributes: ``url``, ``port``, ``adapters`` (engine name → path), ``faults``, ``stats``, ``bodies`` (the
    bodies of all requests to models, oldest first), ``headers`` (those of the last requests to anything),
    ``lacks`` (path → status of routes that it does not have), ``max_loras`` (what its metrics tell of its slots,
    from the first request on; None: nothing), ``released`` (an event that ends each ``hang``). All may be read and
    changed by a test while the server runs.
    """

    def __init__(
        self,
        adapters: Iterable[str] = (),
        port: int = 0,
        *,
        base_name: str = "base",
        base_root: str = "/fake/base",
        host: str = "127.0.0.1",
        answer: Answer | None = None,
        faults: Sequence[Fault] = (),
        max_lora_rank: int = 64,
        max_loras: int | None = None,
        max_model_len: int = 1024,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.adapters = {name: f"/fake/{name}" for name in adapters}
        self.port = port
        self.base_name = base_name
        self.base_root = base_root
        self.host = host
        self.answer = answer
        self.faults = list(faults)
        self.max_lora_rank = max_lora_rank
        self.max_loras = max_loras
        self.max_model_len = max_model_len
        self.seconds_per_token = seconds_per_token
        self.stats = Stats()
        self.bodies: list[dict[str, Any]] = []
        self.headers: deque[Mapping[str, str]] = deque(maxlen=1000)
        self.silent: set[str] = set()
        self.swapped: dict[str, str] = {}
        self.lacks: dict[str, int] = {}
        self.released = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where the server listens, without a path."""
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; ``port`` is known afterwards. May follow a :meth:`stop`, on the same port then."""
        app = web.Application(client_max_size=64 * 2**20, middlewares=[self._count, refusals])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
                web.post("/v1/chat/completions", self._generate),
                web.post("/v1/completions", self._generate),
                web.post("/v1/responses", self._generate),
                *(web.post(path, self._read) for path in READERS),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._tokenize),
                web.get("/tokenizer_info", self._tokenizer_info),
                web.post("/_fake/faults", self._set_faults),
                web.get("/_fake/stats", self._get_stats),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self, *, forget: bool = True) -> None:
        """Stop listening and cut what is open; like vLLM, forget all adapters unless told otherwise."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if forget:
            self.adapters.clear()
            self.silent.clear()
            self.swapped.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _take(self, kind: str, model: str | None = None) -> Fault | None:
        """The pending fault of this kind for this model, if any; it is used up once its times have passed."""
        for fault in self.faults:
            if fault.kind == kind and fault.model in (None, model) and fault.times != 0:
                fault.times -= fault.times > 0
                return fault
        return None

    # ---------------------------------------------------------------- what is loaded

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._take("unhealthy") else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return json_answer({"version": answers.VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        label = f'{{engine="0",model_name="{self.base_name}"}}'
        counts = {"num_requests_running": self.stats.running, "generation_tokens_total": self.stats.tokens}
        lines = [f"vllm:{name}{label} {float(count)}\n" for name, count in counts.items()]
        if self.max_loras is not None and self.stats.requests:  # as vLLM, not before the first request
            label = f'{{max_lora="{self.max_loras}",running_lora_adapters="",waiting_lora_adapters=""}}'
            lines.append(f"vllm:lora_requests_info{label} {time.time()}\n")
        return web.Response(text="".join(lines))

    async def _models(self, _: web.Request) -> web.Response:
        cards = [answers.model_card(self.base_name, self.base_root, None, self.max_model_len)]
        cards += [
            answers.model_card(name, path, self.base_name, None) for name, path in self.adapters.items()
        ]
        return json_answer({"object": "list", "data": cards})

    async def _load(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        name, path = body.get("lora_name", ""), body.get("lora_path", "")
        self.stats.loads.append(name)
        if not name or not path:
            raise RefusalError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name == self.base_name:
            text = f"The lora adapter '{name}' conflicts with a served base model."
            raise RefusalError(400, text, "InvalidUserInput")
        if name in self.adapters:
            text = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
            raise RefusalError(400, text + "place, set 'load_inplace' to True.", "InvalidUserInput")
        if fault := self._take("slow_load", name):
            await asyncio.sleep(fault.seconds)
        if fault := self._take("refuse_load", name):
            raise RefusalError(fault.status, fault.message, "InternalServerError")
        self._check_files(name, Path(path))
        if self._take("silent", name):
            self.silent.add(name)
        if fault := self._take("swapped", name):
            self.swapped[name] = fault.voice
        self.adapters[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    def _check_files(self, name: str, path: Path) -> None:
        config = path / "adapter_config.json"
        if not config.is_file():
            raise RefusalError(
                404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError"
            )
        rank = orjson.loads(config.read_bytes()).get("r", 0)
        if rank > self.max_lora_rank:
            reason = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            text = f"Call to add_lora method failed: Worker failed with error '{reason}', please check the "
            raise RefusalError(500, text + "stack trace above for the root cause", "InternalServerError")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await json_body(request)).get("lora_name", "")
        self.stats.unloads.append(name)
        if name not in self.adapters:
            raise RefusalError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        if fault := self._take("refuse_unload", name):
            raise RefusalError(fault.status, fault.message, "InternalServerError")
        del self.adapters[name]
        self.silent.discard(name)
        self.swapped.pop(name, None)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    # ---------------------------------------------------------------- generation

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        self.bodies.append(body)
        model = self._check_request(body, request.path)
        self.stats.requests += 1
        self.stats.by_model[model] = self.stats.by_model.get(model, 0) + 1
        self.stats.running += 1
        try:
            if fault := self._take("error", model):
                raise RefusalError(fault.status, fault.message, "InternalServerError")
            if self._take("hang", model):
                await self.released.wait()
            if fault := self._take("slow_prefill", model):
                await asyncio.sleep(fault.seconds)
            response = await self._answer(request, body, model)
            self.stats.finished += 1
            return response
        except ScriptedDeathError:
            raise
        except (asyncio.CancelledError, ConnectionResetError):
            self.stats.aborted += 1
            raise
        finally:
            self.stats.running -= 1

    def _voice(self, model: str) -> str:
        """Whose answers those under this name are."""
        return self.base_name if model in self.silent else self.swapped.get(model, model)

    def _check_model(self, body: Mapping[str, Any], param: str | None = "model") -> str:
        model = body.get("model") or self.base_name
        if model != self.base_name and model not in self.adapters:
            aliases = ", ".join([self.base_name, *self.adapters])
            text = f"The model `{model}` does not exist. Valid aliases: {aliases}."
            raise RefusalError(404, text, "NotFoundError", param)
        return str(model)

    def _check_request(self, body: Mapping[str, Any], path: str) -> str:
        model = self._check_model(body)
        needed = {"/v1/chat/completions": "messages", "/v1/responses": "input"}.get(path, "prompt")
        if needed not in body:
            reason = {"type": "missing", "loc": f"body.{needed}", "msg": "Field required"}
            raise RefusalError(400, f"1 validation error:\n  {reason}", "Bad Request", f"body.{needed}")
        temperature, limit = body.get("temperature"), answers.token_limit(body)
        if temperature is not None and temperature < 0:
            text = f"temperature must be non-negative, got {float(temperature)}."
            raise RefusalError(
                400, f"{text} (parameter=temperature, value={float(temperature)})", param="temperature"
            )
        if limit is not None and limit > self.max_model_len:
            text = f"max_tokens={limit} cannot be greater than max_model_len={self.max_model_len}. "
            text += f"Please request fewer output tokens. (parameter=max_tokens, value={limit})"
            raise RefusalError(400, text, param="max_tokens")
        if (count := body.get("n", 1)) is not None and count < 1:
            raise RefusalError(400, f"n must be at least 1, got {count}.")
        return model

    async def _answer(self, request: web.Request, body: dict[str, Any], model: str) -> web.StreamResponse:
        chat = request.path.endswith("chat/completions")
        voice = self._voice(model)
        if request.path == "/v1/responses":
            return await self._respond(request, body, model, voice)
        reply = answers.Reply.of(body, model, voice, chat=chat, answer=self.answer)
        if given := request.headers.get("x-request-id"):
            reply = replace(reply, id=f"{'chatcmpl' if chat else 'cmpl'}-{given}")
        if body.get("stream"):
            return await self._stream(request, reply)
        async with self._paced(request, reply) as tokens:
            async for _ in tokens:
                pass
        return json_answer(reply.whole())

    async def _stream(self, request: web.Request, reply: answers.Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for chunk in reply.opening():
            await response.write(event(chunk))
        async with self._paced(request, reply) as tokens:
            async for choice, index in tokens:
                await response.write(event(reply.chunk(choice, index)))
        if reply.include_usage:
            await response.write(event(reply.usage_chunk()))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    @asynccontextmanager
    async def _paced(
        self, request: web.Request, reply: answers.Reply
    ) -> AsyncIterator[AsyncIterator[tuple[int, int]]]:
        """The (choice, token index) pairs at the pace, and with the ends, that the faults ask for."""
        slow, die, leave = (
            self._take(kind, reply.model) for kind in ("slow_tokens", "die_mid_stream", "exit")
        )
        pause = slow.seconds if slow else self.seconds_per_token

        async def tokens() -> AsyncIterator[tuple[int, int]]:
            for count, (choice, index) in enumerate(reply.order()):
                if pause:
                    await asyncio.sleep(pause)
                if leave and count >= leave.after:
                    os._exit(9)
                if die and count >= die.after:
                    if request.transport is not None:
                        request.transport.abort()
                    raise ScriptedDeathError
                self.stats.tokens += 1
                yield choice, index

        yield tokens()

    async def _respond(
        self, request: web.Request, body: dict[str, Any], model: str, voice: str
    ) -> web.StreamResponse:
        reply = answers.Reply.of(reading.as_chat(body), model, voice, chat=True, answer=self.answer)
        if not body.get("stream"):
            return json_answer(reading.response(body, reply))
        out = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await out.prepare(request)
        async with self._paced(request, reply) as tokens:
            for said in reading.response_events(body, reply):
                if said["type"].endswith(".delta"):
                    await anext(tokens)
                await out.write(f"event: {said['type']}\n".encode() + event(said))
        await out.write_eof()
        return out

    # ---------------------------------------------------------------- reading

    async def _read(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        self.bodies.append(body)
        model = self._check_model(body, param=None)  # as vLLM's routes that read have it
        if fault := self._take("error", model):
            raise RefusalError(fault.status, fault.message, "InternalServerError")
        voice = self._voice(model)
        return json_answer(READERS[request.path](body, model, voice))

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await json_body(request)
        self.bodies.append(body)
        self._check_model(body)
        if request.path == "/detokenize":
            return json_answer(reading.text(body))
        return json_answer(reading.tokens(body, self.max_model_len))

    async def _tokenizer_info(self, _: web.Request) -> web.Response:
        return json_answer(reading.TOKENIZER)

    # ---------------------------------------------------------------- the script

    @web.middleware
    async def _count(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Note every request that arrives, and answer those to routes that are lacking."""
        self.stats.paths[request.path] = self.stats.paths.get(request.path, 0) + 1
        self.headers.append(request.headers)
        if (status := self.lacks.get(request.path)) is not None:
            return json_answer({"detail": "Not Found"}, status)
        response: web.StreamResponse = await handler(request)
        return response

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults = [Fault(**fault) for fault in (await json_body(request)).get("faults", [])]
        except (TypeError, ValueError) as error:
            raise RefusalError(400, str(error)) from error
        return json_answer({"faults": len(self.faults)})

    async def _get_stats(self, _: web.Request) -> web.Response:
        return json_answer(vars(self.stats))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted; options that vLLM knows and the fake does not are ignored."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.engine.fake", description="An engine without a model."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--model", default="base", help="folder or name; the name unless --served-model-name is given"
    )
    parser.add_argument("--served-model-name")
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parser.add_argument(
        "--adapter", action="append", default=[], help="engine name that is loaded from the start"
    )
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    options, _ = parser.parse_known_args(argv)
    engine = FakeEngine(
        options.adapter,
        options.port,
        host=options.host,
        base_name=options.served_model_name or Path(options.model).name,
        base_root=options.model,
        max_lora_rank=options.max_lora_rank,
        seconds_per_token=options.seconds_per_token,
    )

    async def serve() -> None:
        async with engine:
            sys.stderr.write(f"INFO fake engine on {engine.url}\nINFO:     Application startup complete.\n")
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
