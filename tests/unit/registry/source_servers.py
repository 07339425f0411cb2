"""Servers that adapters are fetched from: a web server that behaves as it is told, and a stand-in for the hub."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class WebServer(ThreadingHTTPServer):
    """Answers by ``routes`` (path → behaviour); ``seen`` lists "METHOD path", ``headers`` what came with each."""

    daemon_threads = True
    request_queue_size = 128  # with five, what more connects at once is reset now and then

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.routes: dict[str, Behaviour] = {}
        self.seen: list[str] = []
        self.queries: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()  # what never ends, ends with the test

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def serve_folder(self, folder: Path, at: str = "/lora/") -> str:
        """Serve the two files of an adapter and return the folder's URL."""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            content = (folder / name).read_bytes()
            self.routes[f"{at}{name}"] = sending(content, ETag=f'"etag-of-{len(content)}"')
        return f"{self.url}{at}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients of these tests hang up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.seen.append(f"{self.command} {path}")
        self.server.queries.append(urlsplit(self.path).query)
        self.server.headers.append(dict(self.headers.items()))
        self.server.routes.get(path, status(404))(self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


def sending(content: bytes, code: int = 200, announced: int | None = None, **headers: str) -> Behaviour:
    """Send ``content``, under another length where ``announced`` says so."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(content) if announced is None else announced))
        request.send_header("Connection", "close")  # else clients ask again now and then while it ends
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    return behave


def status(code: int) -> Behaviour:
    return sending(b"", code)


def redirecting(target: str, code: int = 302) -> Behaviour:
    return sending(b"", code, Location=target)


def endless(piece: bytes = b"x" * 65536, announced: int | None = None, pause: float = 0.0) -> Behaviour:
    """Send for ever, in chunks or as if it were ``announced`` bytes."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if announced is None:
            request.send_header("Transfer-Encoding", "chunked")
        else:
            request.send_header("Content-Length", str(announced))
        request.end_headers()
        while not request.server.over.wait(pause):  # type: ignore[attr-defined]
            framed = piece if announced is not None else b"%x\r\n%s\r\n" % (len(piece), piece)
            request.wfile.write(framed)
            request.wfile.flush()

    return behave


def silent(request: BaseHTTPRequestHandler) -> None:
    """Accept the request and say nothing."""
    request.server.over.wait()  # type: ignore[attr-defined]
    request.close_connection = True


def slowly(behaviour: Behaviour, seconds: float) -> Behaviour:
    def behave(request: BaseHTTPRequestHandler) -> None:
        request.server.over.wait(seconds)  # type: ignore[attr-defined]
        behaviour(request)

    return behave


@contextmanager
def running() -> Iterator[WebServer]:
    """A web server of these on a free port."""
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_repository(
    server: WebServer, name: str, files: dict[str, bytes], revisions: tuple[str, ...] = ("main",), **more: Any
) -> None:
    """Let ``server`` be a hub that has a repository, by the routes that huggingface_hub asks."""
    siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
    info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], **more}
    answer = sending(json.dumps(info).encode(), Content_Type="application/json")
    server.routes[f"/api/models/{name}"] = answer
    for revision in (*revisions, COMMIT):
        server.routes[f"/api/models/{name}/revision/{revision}"] = answer
    tree = [
        {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        for path, content in files.items()
    ]
    server.routes[f"/api/models/{name}/tree/{COMMIT}"] = sending(
        json.dumps(tree).encode(), Content_Type="application/json"
    )
    for path, content in files.items():
        headers = {"ETag": f'"{len(content):040x}"', "X-Repo-Commit": COMMIT}
        server.routes[f"/{name}/resolve/{COMMIT}/{path}"] = sending(content, **headers)


class GoogleStorage:
    """A stand-in for Google Cloud Storage's JSON API: metadata, listing and media of objects."""

    def __init__(self, server: WebServer, bucket: str, objects: dict[str, bytes]) -> None:
        self.server, self.bucket = server, bucket
        for name, content in objects.items():
            quoted = name.replace("/", "%2F")
            meta = {
                "kind": "storage#object",
                "name": name,
                "bucket": bucket,
                "size": str(len(content)),
                "generation": "1700000000000001",
                "etag": "CJ+=",
                "updated": "2026-01-01T00:00:00Z",
                "timeCreated": "2026-01-01T00:00:00Z",
                "contentType": "application/octet-stream",
                "mediaLink": f"{server.url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media",
            }
            server.routes[f"/storage/v1/b/{bucket}/o/{quoted}"] = _object(meta, content)
            server.routes[f"/download/storage/v1/b/{bucket}/o/{quoted}"] = _ranges(content)
        server.routes[f"/storage/v1/b/{bucket}/o"] = _json({"kind": "storage#objects", "items": []})
        server.routes[f"/storage/v1/b/{bucket}"] = _json({"kind": "storage#bucket", "name": bucket})


def _json(content: Any) -> Behaviour:
    return sending(json.dumps(content).encode(), Content_Type="application/json")


def _object(meta: dict[str, Any], content: bytes) -> Behaviour:
    def behave(request: BaseHTTPRequestHandler) -> None:
        media = "alt=media" in urlsplit(request.path).query
        (_ranges(content) if media else _json(meta))(request)

    return behave


def _ranges(content: bytes) -> Behaviour:
    def behave(request: BaseHTTPRequestHandler) -> None:
        wanted = unquote(request.headers.get("Range", ""))
        if not wanted:
            sending(content)(request)
            return
        begin, end = wanted.removeprefix("bytes=").split("-")
        piece = content[int(begin) : int(end or len(content)) + 1]
        sending(piece, 206, Content_Range=f"bytes {begin}-{int(begin) + len(piece) - 1}/{len(content)}")(
            request
        )

    return behave
