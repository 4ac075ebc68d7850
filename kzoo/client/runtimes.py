"""The two ways to run the client's coroutines: blocking, and on an event loop.

What the client does is written once, in coroutines. The blocking runtime's own never suspend, so
that one step takes them to their end, in the caller's thread.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncIterable, Iterable


class Blocking:
    """Waits in the caller's thread; what goes on at the same time is in threads of a pool."""

    iterables: tuple[type, ...] = (Iterable,)  # what it can draw batches from

    def connect(self, address, tls):
        """Returns the transport to an `Address`."""
        if address.is_rest:
            from kzoo.client.rest import RestTransport

            return RestTransport(address, tls)
        from kzoo.client.grpc_transport import GrpcTransport

        return GrpcTransport(address, tls)

    async def sleep(self, seconds):
        time.sleep(seconds)

    @contextlib.asynccontextmanager
    async def tasks(self, limit):
        """A function that starts `function(*arguments)`, a coroutine, up to `limit` at a time.

        When the context ends, those that have not begun never will; those under way, whose
        requests cannot be taken back, end by their deadline unheard.
        """
        pool = concurrent.futures.ThreadPoolExecutor(limit, thread_name_prefix="kzoo-client")

        def start(function, *arguments):
            return pool.submit(lambda: run(function(*arguments)))

        try:
            yield start
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def result(self, task):
        """Returns what a task returned; raises what it raised."""
        return task.result()


class Asynchronous:
    """The same on the running event loop."""

    iterables: tuple[type, ...] = (Iterable, AsyncIterable)

    def connect(self, address, tls):
        if address.is_rest:
            from kzoo.client.async_rest import AsyncRestTransport

            return AsyncRestTransport(address, tls)
        from kzoo.client.grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(address, tls)

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)

    @contextlib.asynccontextmanager
    async def tasks(self, limit):
        started = set()

        def start(function, *arguments):
            task = asyncio.create_task(function(*arguments))
            started.add(task)
            task.add_done_callback(started.discard)
            return task

        try:
            yield start
        finally:
            left = list(started)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def result(self, task):
        return await task


def run(coroutine):
    """Returns the result of a coroutine of the blocking runtime."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("A coroutine of the blocking runtime has been suspended.")


def iterate(generator):
    """Yields the items of an asynchronous generator of the blocking runtime."""
    try:
        while True:
            try:
                item = run(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
            del item
    finally:
        run(generator.aclose())
