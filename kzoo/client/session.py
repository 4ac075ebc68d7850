"""What a client does between its caller and its transport, blocking or not."""

import collections
import contextlib

from kzoo.client.address import parse_address
from kzoo.client.arguments import output_names
from kzoo.client.deadlines import Deadline, check_timeout, pause_after
from kzoo.client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ServingError,
    Unavailable,
    error,
)
from kzoo.client.examples import check_examples, features
from kzoo.client.questions import (
    EXPLAIN_PREFIX,
    IMAGE_SUFFIX,
    check_stream,
    concatenated,
    parts,
)

AHEAD = 2
_POLL_SECONDS = 0.1


class Session:
    """The coroutines behind `Client` and `AsyncClient`.

    Args:
        runtime: of `runtimes`: how to wait, and which transports to use.
        tls: `Tls`.
        address, model, version, label, timeout, retries: of the client.
    """

    def __init__(self, runtime, address, model, version, label, timeout, retries, tls):
        _check_model(model, version, label, retries)
        self._runtime = runtime
        self._model = model
        self._label = label
        self._timeout = check_timeout(timeout)
        self._retries = retries
        self._address = parse_address(address)
        if tls and self._address.scheme in ("grpc", "http"):
            raise ValueError(
                "Certificates and keys need an address of grpcs://, https:// or unix:. "
                f"Received: {address!r}"
            )
        self._requests, self._transport = _connect(
            runtime, self._address, tls, (model, version, label)
        )
        self._signatures = None
        self._closed = False

    async def answer(self, question, timeout, chunk=None):
        """Returns {output: array} for a `Question`, asked in chunks of rows unless None."""
        if chunk is None:
            return await self._ask(question, timeout)
        async with contextlib.aclosing(self.stream(question, timeout, chunk, AHEAD)) as stream:
            results = [result async for result in stream]
        return concatenated(results, question.rows(), chunk)

    def stream(self, question, timeout, chunk, ahead):
        """Returns an asynchronous generator of {output: array}, one per chunk, in order."""
        check_stream(question, chunk, ahead, self._runtime.iterables)
        return self._stream(question, timeout, chunk, ahead)

    async def _stream(self, question, timeout, chunk, ahead):
        if self._signatures is None:  # rather than by each of the first requests
            await self.metadata(timeout)
        tasks = collections.deque()
        async with (
            contextlib.aclosing(parts(question, chunk)) as questions,
            self._runtime.tasks(ahead) as start,
        ):
            index = 0
            async for part in questions:
                tasks.append(start(self._ask_chunk, index, part, timeout))
                index += 1
                if len(tasks) == ahead:
                    yield await self._runtime.result(tasks.popleft())
            while tasks:
                yield await self._runtime.result(tasks.popleft())

    async def _ask_chunk(self, index, question, timeout):
        try:
            return await self._ask(question, timeout)
        except ServingError as problem:
            problem.chunk = index
            raise

    async def _ask(self, question, timeout):
        deadline = self._deadline(timeout)
        call = await self._prepare(question, deadline)
        try:
            return await self._send(call, deadline)
        except ServingError:
            # The server may have gone on to a version with other signatures.
            self._signatures = None
            raise

    async def encode(self, question):
        """Returns (URL, body) of the request that asks a `Question`."""
        call = await self._prepare(question, self._deadline(None))
        return self._address.url_of(call), call.body

    async def classify(self, examples, signature_name, context, timeout):
        """Returns a list of `ClassScore` per Example."""
        return await self._infer(
            self._requests.classify, examples, signature_name, context, timeout
        )

    async def regress(self, examples, signature_name, context, timeout):
        """Returns a number per Example, float32 of shape (batch,)."""
        return await self._infer(self._requests.regress, examples, signature_name, context, timeout)

    async def _infer(self, request, examples, signature_name, context, timeout):
        context = None if context is None else features(context, "context")
        call = request(signature_name, check_examples(examples), context)
        return await self._send(call, self._deadline(timeout))

    async def methods(self, timeout=None):
        """Returns the sorted names of the explanation methods."""
        return _methods(await self.metadata(timeout))

    async def metadata(self, timeout=None):
        """Returns {name: `Signature`}."""
        return await self._fetch_signatures(self._deadline(timeout))

    async def status(self, timeout=None):
        """Returns a list of `VersionStatus`."""
        return await self._send(self._requests.status(), self._deadline(timeout))

    async def wait_ready(self, timeout):
        """Returns when the model answers; raises DeadlineExceeded."""
        deadline, seen = Deadline(timeout), None
        while (problem := await self._not_ready(deadline)) is not None:
            # A question that the deadline cut short has seen nothing.
            if seen is None or not isinstance(problem, DeadlineExceeded):
                seen = problem
            if not deadline.allows(_POLL_SECONDS):
                message = f"Model {self._model!r} was not ready within {timeout:g} s: {seen}"
                raise error("DEADLINE_EXCEEDED", message)
            await self._runtime.sleep(_POLL_SECONDS)

    async def close(self):
        """Closes the connections."""
        self._closed = True
        await self._transport.close()

    async def _prepare(self, question, deadline):
        """Returns the `Call` that asks a question, checked against the signatures known, and if it
        does not fit, against fresh ones."""
        known = self._signatures
        if known is not None:
            try:
                return self._predict_call(question, known)
            except (InvalidArgument, NotFound):
                pass
        return self._predict_call(question, await self._fetch_signatures(deadline))

    def _predict_call(self, question, signatures):
        name = question.signature_name
        if name not in signatures:
            raise self._missing(signatures, name)
        signature = signatures[name]
        arrays, outputs = question.arrays(signature), output_names(question.outputs, signature)
        return self._requests.predict(name, signature, arrays, outputs)

    def _missing(self, signatures, name):
        known, kind = sorted(signatures), "signature"
        if name.startswith(EXPLAIN_PREFIX):
            known, kind = _methods(signatures), "explanation method"
            name = name.removeprefix(EXPLAIN_PREFIX)
        message = f"Model {self._model!r} has no {kind} {name!r}. It has: {', '.join(known)}"
        return error("NOT_FOUND", message)

    async def _fetch_signatures(self, deadline):
        signatures = await self._send(self._requests.metadata(), deadline)
        self._signatures = signatures
        return signatures

    async def _send(self, call, deadline):
        """Returns the result of a `Call`, sent again after a pause while it is `Unavailable`."""
        for attempt in range(self._retries):
            try:
                return await self._attempt(call, deadline)
            except Unavailable:
                pause = pause_after(attempt)
                if not deadline.allows(pause):
                    raise
            await self._runtime.sleep(pause)
        return await self._attempt(call, deadline)

    async def _attempt(self, call, deadline):
        if self._closed:
            raise ValueError("The client is closed.")
        return call.decode(await self._transport.send(call, deadline))

    def _deadline(self, timeout):
        return Deadline(self._timeout if timeout is None else timeout)

    async def _not_ready(self, deadline):
        """Why the model does not answer yet; None if it does."""
        try:
            states = await self._attempt(self._requests.status(), deadline)
            if all(state.state != "AVAILABLE" for state in states):
                return states
            if self._label is not None:
                await self._attempt(self._requests.metadata(), deadline)
        except ServingError as problem:
            return problem
        return None


def _check_model(model, version, label, retries):
    if not isinstance(model, str) or not model:
        raise ValueError(f"`model` must be a name. Received: {model!r}")
    if version is not None and label is not None:
        raise ValueError(
            f"Only one of `version` and `label` can be given. Received: {version}, {label!r}"
        )
    if version is not None and not _is_integer(version, at_least=0):
        raise ValueError(f"`version` must be a number, 0 or more. Received: {version!r}")
    if not _is_integer(retries, at_least=0):
        raise ValueError(f"`retries` must be a number, 0 or more. Received: {retries!r}")


def _connect(runtime, address, tls, model):
    """Returns the requests and the transport of an address; both import what they need."""
    try:
        transport = runtime.connect(address, tls)
        if address.is_rest:
            from kzoo.client.rest_requests import RestRequests

            return RestRequests(address.prefix, *model), transport
        from kzoo.client.grpc_requests import GrpcRequests

        return GrpcRequests(*model), transport
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"gRPC needs the packages grpcio and protobuf, asynchronous REST needs aiohttp "
            f"({problem}): `pip install kzoo[client]`. REST of `Client`, at http://host:port, "
            "needs neither.",
            name=problem.name,
        ) from None


def _is_integer(value, at_least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _methods(signatures):
    """Methods with a signature of their own; those from image bytes are not counted again."""
    return sorted(
        name.removeprefix(EXPLAIN_PREFIX)
        for name in signatures
        if name.startswith(EXPLAIN_PREFIX) and not name.endswith(IMAGE_SUFFIX)
    )
