"""Takes one request to an engine and its answer back, and to another engine if the first did nothing for it."""

import io
import logging

from yarl import URL

from serve.gateway.balance.pool import EngineTicket
from serve.gateway.balance.retry import Outcome
from serve.gateway.call import headers_to
from serve.gateway.engines import Engines
from serve.gateway.failures import engine_failure, engine_words, lost_adapter
from serve.gateway.meter import Meter
from serve.gateway.metrics import Metrics
from serve.gateway.relay import BROKEN, Exchange, Relay, RelayFailed
from serve.gateway.wire import NotConnected, Reply, Wires

logger = logging.getLogger(__name__)

LARGE_BODY = 2**20
"""Bytes above which a body is written in pieces, so that other requests go on meanwhile."""
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


class Courier:
    """One exchange on its way.

    ``engine`` is the one that was asked last (empty: none was), ``engine_seconds`` its share of the engines' time, all
    attempts together; ``reply`` is the last good one, for whoever closes it.
    """

    def __init__(
        self,
        engines: Engines,
        metrics: Metrics,
        meter: Meter,
        session: Wires,
        exchange: Exchange,
        relay: Relay,
    ) -> None:
        self.engine = ""
        self.engine_seconds = 0.0
        self.reply: Reply | None = None
        self._engines = engines
        self._metrics = metrics
        self._meter = meter
        self._session = session
        self._exchange = exchange
        self._relay = relay

    async def run(self) -> None:
        """Have the request answered, as soon as an engine has a place for it.

        It is tried again only where another engine holds the adapter, nothing was sent to the client yet, and
        the budget allows it. Raises RelayFailed, Overloaded, AdapterNotReady or EngineUnavailable.
        """
        exchange = self._exchange
        adapter = exchange.route.adapter
        pool = self._engines.pool(exchange.route.base)
        attempts = pool.attempts()
        while True:
            ticket = pool.choose(
                adapter,
                exchange.conversation,
                cost=exchange.cost,
                tried=attempts.tried,
                place=exchange.endpoint.computes,
                waiting=exchange.route.meters.waits,
                called=exchange.route.public_name,
            )
            async with ticket:
                self.engine = ticket.engine
                if exchange.endpoint.computes:
                    self._metrics.engine(ticket.engine).waited.observe(ticket.waited)
                share = self._meter.share(ticket.engine)
                try:
                    with share:
                        failed = await self._attempt(ticket)
                finally:
                    self.engine_seconds += share.seconds
            if failed is None:
                return
            if not pool.another(adapter, attempts.tried | {ticket.engine}) or not attempts.again(
                ticket.engine, ticket.outcome, begun=self._relay.begun
            ):
                raise failed
            self._metrics.engine(ticket.engine).retries.inc()

    async def _attempt(self, ticket: EngineTicket) -> RelayFailed | None:
        """Ask the engine of a ticket and relay its answer; tell the ticket how that went."""
        url = self._engines.address(ticket.engine, self._exchange.endpoint.path)
        if url is None:
            ticket.report(Outcome.REFUSED)
            return RelayFailed.unreachable(ConnectionError("the engine has gone"), self._exchange)
        try:
            self.reply = await self._ask(url, ticket)
            await self._relay.run(self.reply)
        except RelayFailed as error:
            if ticket.outcome is Outcome.UNKNOWN:
                # What breaks off after its head is never retried, whatever the client is told.
                ticket.report(Outcome.REJECTED if error.failure.status < 500 else Outcome.FAILED)
            return error
        ticket.report(Outcome.OK)
        return None

    async def _ask(self, url: URL, ticket: EngineTicket) -> Reply:
        """Send the request; return the engine's good reply, of which only the head has been read."""
        exchange = self._exchange
        model, payload = exchange.route.public_name, exchange.payload
        headers = headers_to(url, HEADERS)
        try:
            if payload is None:
                reply = await self._session.get(url, headers=headers)
            else:
                data = payload if len(payload) <= LARGE_BODY else io.BytesIO(payload)
                reply = await self._session.post(url, data=data, headers=headers)
            self._engines.note_reached(ticket.engine)
            if reply.status == 200:
                return reply
            async with reply:
                body = await reply.read()
        except BROKEN as error:
            self._engines.note_unreachable(ticket.engine)
            ticket.report(outcome_of(error))
            raise RelayFailed.unreachable(error, exchange) from error
        if reply.status >= 500:
            logger.warning("engine answered %d for %s: %s", reply.status, model, engine_words(body))
        lost = exchange.route.adapter is not None and lost_adapter(reply.status, body)
        ticket.report(Outcome.LOST if lost else Outcome.of_status(reply.status))
        raise RelayFailed(engine_failure(reply.status, body, model, exchange.public_names))


def outcome_of(error: BaseException) -> Outcome:
    """What an error before the head of an answer says of the engine."""
    if isinstance(error, NotConnected):
        return Outcome.REFUSED
    if isinstance(error, TimeoutError):
        return Outcome.FAILED  # it works on it still, as far as one can know
    return Outcome.CUT
