"""Calls over REST, on kept-alive connections of the standard library."""

import collections
import contextlib
import http.client

from kzoo.client.errors import error

HEADERS = {"Content-Type": "application/json"}
_CHUNK = 1 << 20


class RestTransport:
    """Connections to a server: as many as there are calls at the same time, kept for the next.

    Args:
        address: `Address` of scheme "http" or "https".
        tls: `Tls`; used if the address is secure.
    """

    def __init__(self, address, tls):
        self._location = address.location
        self._context = tls.context() if address.is_secure else None
        self._idle = collections.deque()  # connections; its methods are safe between threads
        self._closed = False

    async def send(self, call, deadline):
        """Returns the (HTTP status, body) that answers a `Call`, without ever suspending."""
        try:
            with contextlib.suppress(IndexError, ConnectionError):
                # Servers close idle connections without a word. What was sent into one of those
                # is sent again at once, on a new one; that is no retry of a failed call.
                return self._send(self._idle.pop(), call, deadline)
            return self._send(self._connection(), call, deadline)
        except TimeoutError:
            raise deadline.exceeded() from None
        except (OSError, http.client.HTTPException) as problem:
            raise error("UNAVAILABLE", f"{self._location}: {problem!r}") from problem

    async def close(self):
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _connection(self):
        if self._context is None:
            return http.client.HTTPConnection(self._location)
        return http.client.HTTPSConnection(self._location, context=self._context)

    def _send(self, connection, call, deadline):
        try:
            response = _exchange(connection, call, deadline)
        except BaseException:
            connection.close()
            raise
        if self._closed:  # by another thread, meanwhile
            connection.close()
        else:
            self._idle.append(connection)
        return response


def _exchange(connection, call, deadline):
    """Sends the call and returns (HTTP status, body) before the deadline."""
    connection.timeout = deadline.left()
    if connection.sock is None:
        connection.connect()
    sock = connection.sock
    sock.settimeout(deadline.left())
    if call.body is None:
        connection.request("GET", call.path)
    else:
        connection.request("POST", call.path, call.body, HEADERS)
    sock.settimeout(deadline.left())
    with connection.getresponse() as response:
        chunks = []
        # One receive at a time, so that a server that trickles cannot outlast the deadline.
        while chunk := response.read1(_CHUNK):
            chunks.append(chunk)
            sock.settimeout(deadline.left())
        if response.length:
            raise http.client.IncompleteRead(chunks[-1] if chunks else b"", response.length)
        return response.status, b"".join(chunks)
