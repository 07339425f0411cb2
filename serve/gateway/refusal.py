"""Answers to what never became a request: under an id of their own, which is logged, as every answer has one."""

import logging
from typing import NamedTuple

from serve.gateway.call import HEADER, new_id
from serve.logs import SUBJECT

logger = logging.getLogger(__name__)

END = b"\r\n\r\n"
NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 30\r\nconnection: close\r\n\r\nInvalid HTTP request received."
)


class Refused(NamedTuple):
    """What a log line is about when no request could be read."""

    id: str
    trace_id: str | None = None


def with_id(answer: bytes) -> bytes:
    """A whole answer with a new id among its headers; that it is sent is logged."""
    refused = Refused(new_id())
    head, _, body = answer.partition(END)
    token = SUBJECT.set(refused)
    status = head.partition(b"\r\n")[0].partition(b" ")[2].decode()
    logger.info("no request could be read, answered with %s", status)
    SUBJECT.reset(token)
    return b"%b\r\n%b: %b%b%b" % (head, HEADER, refused.id.encode(), END, body)
