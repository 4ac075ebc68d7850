"""Load on a server: one request sent over and over by many clients, and how long each took.

The request is encoded once, so that what is measured is the server and the way to it, and hardly
the client. Needs the extra `client`: gRPC's and aiohttp's asynchronous clients.
"""

import asyncio
import collections
import contextlib
import time
from dataclasses import dataclass, field

import aiohttp
import grpc
import numpy as np

from kzoo.client.errors import ServingError, error, error_of_http_status
from kzoo.client.grpc_transport import CHANNEL_OPTIONS, PREDICT
from kzoo.client.tensors import numpy_dtype

# Requests of an open loop that may be under way; a server that is this far behind stays behind.
_MAX_UNDER_WAY = 1000


@dataclass(frozen=True)
class Load:
    """What a server answered under load.

    Attributes:
        seconds: how long requests were sent and awaited.
        latencies: seconds of each answer, ascending; an open loop counts from the moment at which
            the request was due.
        errors: {canonical code: number of requests that it answered}.
    """

    seconds: float
    latencies: np.ndarray = field(repr=False)
    errors: collections.Counter

    @property
    def rate(self):
        """Answers per second, errors not counted."""
        return len(self.latencies) / self.seconds

    def percentile(self, q):
        """Seconds within which `q` percent were answered; NaN if none was."""
        return float(np.percentile(self.latencies, q)) if len(self.latencies) else float("nan")


def closed_loop(
    client, inputs, signature_name="serving_default", clients=1, seconds=5.0, timeout=60.0
):
    """Lets `clients` ask at once, each its next question when it has the answer to the last.

    Args:
        client: a `Client` of the server, gRPC or REST; it encodes the request.
        inputs, signature_name: of the request, as in `Client.predict`.
        clients: connections, with one request at a time on each.
        seconds: how long; a fifth more before that is not counted.
        timeout: seconds after which an answer is no longer awaited.

    Returns:
        `Load`.
    """

    async def run(senders, recorder):
        async def ask(send):
            while recorder.seconds < seconds:
                await recorder.time(send, time.perf_counter())

        await asyncio.gather(*map(ask, senders))

    request = client.encode(inputs, signature_name)
    return asyncio.run(_run(*request, clients, timeout, run, warm_up=seconds / 5))


def open_loop(
    client, inputs, rate, signature_name="serving_default", clients=32, seconds=5.0, timeout=60.0
):
    """Sends `rate` requests per second, whether or not the earlier ones are answered.

    Only so does a latency say what users who do not wait for one another would see.

    Args:
        rate: requests per second, above 0.
        clients: connections that share the requests. The rest is as for `closed_loop`.

    Returns:
        `Load`; a request that finds 1000 others under way counts as RESOURCE_EXHAUSTED.
    """

    async def run(senders, recorder):
        start, under_way = time.perf_counter(), set()
        for index in range(int(rate * seconds)):
            due = start + index / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(under_way) >= _MAX_UNDER_WAY:
                recorder.errors["RESOURCE_EXHAUSTED"] += 1
                continue
            task = asyncio.ensure_future(recorder.time(senders[index % len(senders)], due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    request = client.encode(inputs, signature_name)
    return asyncio.run(_run(*request, clients, timeout, run, warm_up=seconds / 5))


class _Recorder:
    """Latencies and errors of the requests after the warm-up."""

    def __init__(self):
        self.latencies, self.errors = [], collections.Counter()
        self._start = time.perf_counter()

    @property
    def seconds(self):
        return time.perf_counter() - self._start

    async def time(self, send, start):
        try:
            await send()
        except ServingError as problem:
            self.errors[problem.code] += 1
        else:
            self.latencies.append(time.perf_counter() - start)

    def load(self):
        return Load(self.seconds, np.sort(self.latencies), self.errors)


async def _run(url, body, clients, timeout, run, warm_up):
    scheme = url.partition(":")[0]
    if scheme not in ("grpc", "http"):
        raise ValueError(f"`client` must use an address without TLS. Received: {url!r}")
    senders = _grpc_senders if scheme == "grpc" else _rest_senders
    async with senders(url, body, clients, timeout) as sending:
        end = time.perf_counter() + warm_up
        while time.perf_counter() < end:
            await asyncio.gather(*(send() for send in sending), return_exceptions=True)
        recorder = _Recorder()
        await run(sending, recorder)
        return recorder.load()


@contextlib.asynccontextmanager
async def _grpc_senders(url, body, clients, timeout):
    """Functions that send the request, each over a connection of its own."""
    target = url.removeprefix("grpc://")
    async with contextlib.AsyncExitStack() as stack:

        async def sender():
            channel = grpc.aio.insecure_channel(target, options=list(CHANNEL_OPTIONS.items()))
            call = (await stack.enter_async_context(channel)).unary_unary(PREDICT)

            async def send():
                try:
                    await call(body, timeout=timeout)
                except grpc.RpcError as problem:
                    raise error(problem.code().name, problem.details()) from None

            return send

        yield [await sender() for _ in range(clients)]


@contextlib.asynccontextmanager
async def _rest_senders(url, body, clients, timeout):
    """The same for REST: as many connections are kept open as there are clients."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=clients),
        timeout=aiohttp.ClientTimeout(total=timeout),
        headers={"Content-Type": "application/json"},
    ) as session:

        async def send():
            try:
                async with session.post(url, data=body) as response:
                    answer = await response.read()
            except TimeoutError:
                raise error("DEADLINE_EXCEEDED", f"No answer within {timeout:g} s.") from None
            except aiohttp.ClientError as problem:
                raise error("UNAVAILABLE", repr(problem)) from None
            if response.status != 200:
                raise error_of_http_status(response.status, answer.decode(errors="replace"))

        yield [send] * clients


def rows_for(signature, rows, file=None):
    """Returns {input: array} of `rows` rows for a `Signature`.

    Args:
        signature: of which the inputs are wanted; sizes that it leaves open become 1.
        rows: number of rows, at least 1.
        file: an .npz with arrays under the inputs' names, whose rows are repeated as often as
            needed. None for random numbers: floats in [0, 1), integers and booleans 0.

    Raises:
        ValueError: an input is missing in the file, or is a string and there is no file.
    """
    given = {} if file is None else dict(np.load(file))
    arrays = {}
    for name, info in signature.inputs.items():
        if name in given:
            arrays[name] = np.resize(given[name], (rows, *given[name].shape[1:]))
            continue
        if file is not None or info.dtype == "string":
            raise ValueError(
                f"`inputs` must be an .npz with rows of {name!r}, of dtype {info.dtype} and shape "
                f"{info.shape}. Received: {', '.join(given) or 'no file'}"
            )
        shape = (rows, *(size or 1 for size in (info.shape or (None,))[1:]))
        floats = info.dtype in ("float16", "float32", "float64", "bfloat16")
        arrays[name] = (
            np.random.default_rng(0).random(shape)
            if floats
            else np.zeros(shape, numpy_dtype(info.dtype))
        )
    return arrays
