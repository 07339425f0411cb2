"""Fetches an adapter from a folder on a web server, over aiohttp.

Redirects are followed by hand and every socket is made by :class:`~serve.registry.sources.addresses.Guard`, so that
neither a redirect nor a name that resolves to another address reaches our own network. Proxies and cookies are not
used, and nothing is decompressed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

import aiohttp
from yarl import URL

from serve.errors import SourceError, SourceUnavailable
from serve.registry.sources.addresses import Guard
from serve.registry.sources.source import Source
from serve.registry.sources.transfer import Transfer
from serve.registry.store import CONFIG, FILES

CHUNK = 2**20
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
PICKLE = "adapter_model.bin"
AGAIN = "try again later; if it stays so, download the folder yourself and add it from there"


def deliver(source: Source, transfer: Transfer) -> str:
    """Fetch both files and return the URL with their etags; raises SourceError, SourceUnavailable, AdapterRejected."""
    guard = Guard(allow_private=transfer.limits.allow_private)
    with _explained(transfer, guard):
        return asyncio.run(_Download(source, transfer, guard).run())


class _Download:
    def __init__(self, source: Source, transfer: Transfer, guard: Guard) -> None:
        url = URL(source.place)
        self.transfer, self.guard, self.shown = transfer, guard, source.shown
        login = (
            aiohttp.encode_basic_auth(url.user, url.password or "", encoding="utf-8") if url.user else None
        )
        self.login = {"Authorization": login} if login else {}
        self.base = url.with_user(None)

    async def run(self) -> str:
        limits = self.transfer.limits
        timeout = aiohttp.ClientTimeout(
            total=limits.seconds, sock_connect=limits.connect, sock_read=limits.stall
        )
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self.guard, limit=2),
            timeout=timeout,
            headers={"Accept-Encoding": "identity", "User-Agent": "tenon"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            etags = {name: await self._save(session, name) for name in FILES}
        known = [f"{name}={quote(etag, safe='')}" for name, etag in etags.items() if etag]
        return self.shown + (f"#{'&'.join(known)}" if known else "")

    async def _save(self, session: aiohttp.ClientSession, name: str) -> str | None:
        async with self._answer(session, "GET", name) as response:
            if response.status in (404, 410):
                raise self.transfer.missing(name, pickled=await self._pickled(session, name))
            self._check(response, name)
            with self.transfer.file(name, response.content_length) as write:
                async for piece in response.content.iter_chunked(CHUNK):
                    write(piece)
            return response.headers.get("ETag")

    async def _pickled(self, session: aiohttp.ClientSession, name: str) -> bool:
        """Whether the weights are there as a pickle; only its existence is asked for."""
        if name == CONFIG:
            return False
        async with self._answer(session, "HEAD", PICKLE) as response:
            return response.status == 200

    @asynccontextmanager
    async def _answer(
        self, session: aiohttp.ClientSession, method: str, name: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = (self.base / name).with_query(self.base.query)
        for _ in range(MAX_REDIRECTS + 1):
            login = self.login if url.origin() == self.base.origin() else {}
            async with session.request(method, url, allow_redirects=False, headers=login) as response:
                if response.status not in REDIRECTS:
                    yield response
                    return
                url = self._next(url, response.headers.get("Location", ""))
        raise SourceError(f"{self.shown} redirects more than {MAX_REDIRECTS} times", AGAIN)

    def _next(self, url: URL, location: str) -> URL:
        try:
            # A signed URL must go back as it came.
            target = url.join(URL(location, encoded=location.isascii()))
        except ValueError as error:
            raise SourceError(f"{self.shown} redirects to what is no URL", AGAIN) from error
        if not location or target.scheme != url.scheme or not target.host:
            raise SourceError(
                f"{self.shown} redirects from {url.scheme} to {target.scheme or 'nowhere'}, which is not followed",
                f"if that is right, give the {target.scheme}:// URL of the folder itself"
                if target.scheme == "https"
                else AGAIN,
            )
        return target

    def _check(self, response: aiohttp.ClientResponse, name: str) -> None:
        status, where = response.status, f"{self.shown}{name}"
        if status in (401, 403):
            hint = (
                "give credentials in the URL (https://user:password@host/…), or download the folder yourself"
            )
            raise SourceError(f"{where} is not given to us (HTTP {status})", hint)
        if status == 429 or status >= 500:
            raise SourceUnavailable(f"{where} cannot be had now (HTTP {status})", AGAIN)
        if status != 200:
            raise SourceError(f"{where} is answered with HTTP {status}", "check the URL")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(f"{where} comes compressed although that was not asked for", AGAIN)
        if response.content_type == "text/html":
            raise SourceError(
                f"{where} is a web page, not a file", f"give the folder that {name} can be downloaded from"
            )


@contextmanager
def _explained(transfer: Transfer, guard: Guard) -> Iterator[None]:
    """Turn what aiohttp raises into our errors; none of its words are passed on, as they may hold credentials."""
    shown, limits = transfer.shown, transfer.limits
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise SourceError(
            f"{shown} has no valid certificate", "check the host's name and its certificate"
        ) from error
    except aiohttp.ClientConnectorError as error:
        if guard.refused:
            raise SourceError(
                f"{shown} leads to an address that is not asked: {guard.refused[0]}",
                "if that host is yours, allow it with --allow-private-hosts or TENON_ALLOW_PRIVATE_SOURCES=1",
            ) from error
        raise SourceUnavailable(
            f"{shown} cannot be reached", "check the host's name and the network"
        ) from error
    except TimeoutError as error:
        transfer.check_time()
        raise SourceUnavailable(
            f"{shown} sent nothing for {limits.stall:g} seconds, or did not accept a connection in "
            f"{limits.connect:g}",
            AGAIN,
        ) from error
    except (aiohttp.ClientError, ValueError) as error:
        raise SourceUnavailable(f"{shown} broke off the download", AGAIN) from error
