"""One HTTP connection: uvicorn's protocol with limits on what a client can hold and for how long.

uvicorn alone lets a silent client keep a connection, and a client that never ends its headers or
never reads its answer keep memory, for ever.
"""

import dataclasses
import http

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_NOTHING = object()


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """What a client of the REST API may use.

    Attributes:
        connections: open at once, idle ones included.
        head_bytes: of a request line with its headers, of the trailers, of a chunk's framing.
        interval: seconds between two looks at a connection.
        progress_bytes: that must come, or be read, from one look to the next while the server
            waits for the client.
    """

    connections: int = 4096
    head_bytes: int = 64 * 1024
    interval: float = 25.0
    progress_bytes: int = 1024


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's connection within `ConnectionLimits`.

    Args:
        limits: `ConnectionLimits`.
        drain_seconds: how long an idle connection stays open when the server stops, for the
            request that may be on its way.
        uvicorn: what uvicorn hands to its protocols.
    """

    def __init__(self, *, limits, drain_seconds, **uvicorn):
        super().__init__(**uvicorn)
        self._limits = limits
        self._drain_seconds = drain_seconds
        self._draining = False
        self._received = 0  # since the last look
        self._unparsed = 0  # since the parser last got somewhere
        self._unsent = 0  # at the last look
        self._awaited = _NOTHING  # the request that was incomplete at the last look
        self._look = None

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503)
        else:
            self._look = self.loop.call_later(self._limits.interval, self._check_progress)

    def connection_lost(self, exc):
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data):
        if self.transport.is_closing():
            return
        self._received += len(data)
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self._limits.head_bytes and not self.transport.is_closing():
            self._refuse(431)

    def on_headers_complete(self):
        self._unparsed = 0
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_header(self, name, value):
        # Trailers come this way too, when the request has long been handed on.
        if self.cycle is None or self.cycle.scope is not self.scope:
            super().on_header(name, value)

    def on_body(self, body):
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self):
        self._unparsed = 0
        super().on_message_complete()

    def send_400_response(self, msg):
        self._refuse(400)

    def shutdown(self):
        self._draining = True
        if self._is_idle():
            self.loop.call_later(self._drain_seconds, super().shutdown)
        else:
            super().shutdown()

    def _is_idle(self):
        return self.cycle is None or self.cycle.response_complete

    def _is_receiving(self):
        """True from a request's first byte to its last, and for a new connection."""
        if self._is_idle():
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body

    def _check_progress(self):
        """Ends a connection whose client neither sends what it began nor reads its answer."""
        limits, unsent = self._limits, self.transport.get_write_buffer_size()
        awaited = self.scope if self._is_receiving() else _NOTHING
        if self._unsent and unsent > max(0, self._unsent - limits.progress_bytes):
            self.transport.abort()
        elif awaited is self._awaited is not _NOTHING and self._received < limits.progress_bytes:
            self._refuse(408)
        else:
            self._received, self._unsent, self._awaited = 0, unsent, awaited
            self._look = self.loop.call_later(limits.interval, self._check_progress)

    def _refuse(self, status):
        """Answers what is no request, or too much of one, and closes the connection."""
        unanswered = self.cycle is not None and not self.cycle.response_started
        if not self.pipeline and (self._is_idle() or (unanswered and self.cycle.more_body)):
            body = error_page(status).encode()
            self.transport.write(
                b"HTTP/1.1 %s\r\ncontent-type: text/html\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (_status(status).encode(), len(body), body)
            )
        self.transport.close()


def error_page(status):
    """Returns the page for what is outside of the API, in the words of TensorFlow Serving."""
    return (
        f"<HTML><HEAD>\n<TITLE>{_status(status)}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{http.HTTPStatus(status).phrase}</H1>\n</BODY></HTML>\n"
    )


def _status(status):
    return f"{status} {http.HTTPStatus(status).phrase}"
