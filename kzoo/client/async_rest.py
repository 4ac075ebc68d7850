"""Calls over REST for an event loop: aiohttp."""

import asyncio
import io

import aiohttp
import yarl

from kzoo.client.errors import error
from kzoo.client.rest import HEADERS

_LARGE = 1 << 19


class AsyncRestTransport:
    """Connections to a server, of the event loop of the first call; as many as calls under way.

    Args:
        address: `Address` of scheme "http" or "https".
        tls: `Tls`; used if the address is secure.
    """

    def __init__(self, address, tls):
        self._address = address
        self._context = tls.context() if address.is_secure else True
        self._session = None

    async def send(self, call, deadline):
        """Returns the (HTTP status, body) that answers a `Call`."""
        if self._session is None:
            self._session = self._open()
        try:
            async with asyncio.timeout(deadline.left()):
                return await self._send(call)
        except TimeoutError:
            raise deadline.exceeded() from None
        except (OSError, aiohttp.ClientError) as problem:
            if self._session.closed:
                raise error("CANCELLED", "The client was closed.") from None
            raise error("UNAVAILABLE", f"{self._address.location}: {problem!r}") from problem

    async def close(self):
        if self._session is not None:
            await self._session.close()

    def _open(self):
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._context),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
        )

    async def _send(self, call):
        while True:
            reused = []
            try:
                return await self._exchange(call, reused)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # An idle connection that the server had closed: see the blocking transport.
                if not reused or self._session.closed:
                    raise

    async def _exchange(self, call, reused):
        request = self._session.request(
            "GET" if call.body is None else "POST",
            yarl.URL(self._address.url_of(call), encoded=True),
            data=_payload(call.body),
            headers=None if call.body is None else HEADERS,
            allow_redirects=False,
            trace_request_ctx=reused,
        )
        async with request as response:
            return response.status, await response.read()


def _payload(body):
    # Large bodies are handed over piece by piece: as bytes they would block the event loop.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE else body


async def _note_reuse(session, context, parameters):
    context.trace_request_ctx.append(True)
