"""AsyncClient behind Client's methods, so that one test holds both to the same."""

import asyncio
import functools
import inspect
import threading

from kzoo.client import AsyncClient


@functools.cache
def background_loop():
    """An event loop that runs in a thread of its own until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def wait(coroutine):
    """Returns the result of a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop()).result(30)


class Waiting:
    """An AsyncClient of which every call waits for its result."""

    def __init__(self, *arguments, **keywords):
        self._client = AsyncClient(*arguments, **keywords)

    def __getattr__(self, name):
        def call(*arguments, **keywords):
            result = getattr(self._client, name)(*arguments, **keywords)
            return _items(result) if inspect.isasyncgen(result) else wait(result)

        return call

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _items(generator):
    async def next_item():
        return await anext(generator)

    try:
        while True:
            try:
                yield wait(next_item())
            except StopAsyncIteration:
                return
    finally:
        wait(_close(generator))


async def _close(generator):
    await generator.aclose()
