"""The client for event loops."""

from kzoo.client.questions import Question, explanation, image_explanation
from kzoo.client.runtimes import Asynchronous
from kzoo.client.session import AHEAD, Session
from kzoo.client.tls import Tls


class AsyncClient:
    """`Client` for asyncio: the same methods with the same results and errors, as coroutines.

    Any number of calls may be under way at once. A call that is cancelled leaves the client as it
    was: its request is taken back, later ones go on. A client belongs to the event loop of its
    first call. REST needs aiohttp, gRPC grpcio and protobuf: `pip install kzoo[client]`.

    Args:
        address, model, version, label, timeout, retries, root_certificates, private_key,
            certificate_chain: as for `Client`.

    Example:

    >>> async with AsyncClient("localhost:8500", model="digits") as client:
    ...     results = await asyncio.gather(*map(client.predict, batches))
    ...     async for result in client.predict_batches(images, chunk=64):
    ...         save(result["probabilities"])
    """

    def __init__(
        self,
        address,
        model,
        version=None,
        label=None,
        timeout=10.0,
        retries=2,
        root_certificates=None,
        private_key=None,
        certificate_chain=None,
    ):
        self.model = model
        tls = Tls(root_certificates, private_key, certificate_chain)
        self._session = Session(
            Asynchronous(), address, model, version, label, timeout, retries, tls
        )

    async def predict(
        self, inputs, signature_name="serving_default", outputs=None, timeout=None, chunk=None
    ):
        """As `Client.predict`."""
        question = Question(signature_name, inputs, outputs)
        return await self._session.answer(question, timeout, chunk)

    def predict_batches(
        self,
        inputs,
        chunk=64,
        signature_name="serving_default",
        outputs=None,
        timeout=None,
        ahead=AHEAD,
    ):
        """As `Client.predict_batches`, an asynchronous generator.

        With `chunk=None` the batches may come from an asynchronous iterable. Who leaves the loop
        over the results early closes the generator (`contextlib.aclosing`), which takes back the
        requests that are under way.
        """
        question = Question(signature_name, inputs, outputs)
        return self._session.stream(question, timeout, chunk, ahead)

    async def encode(self, inputs, signature_name="serving_default", outputs=None):
        """As `Client.encode`."""
        return await self._session.encode(Question(signature_name, inputs, outputs))

    async def explain(
        self, method, inputs, target=None, outputs=None, timeout=None, chunk=None, **request
    ):
        """As `Client.explain`."""
        question = explanation(method, inputs, {"target": target, **request}, outputs)
        return await self._session.answer(question, timeout, chunk)

    def explain_batches(
        self,
        method,
        inputs,
        target=None,
        chunk=64,
        outputs=None,
        timeout=None,
        ahead=AHEAD,
        **request,
    ):
        """As `Client.explain_batches`, an asynchronous generator like `predict_batches`."""
        question = explanation(method, inputs, {"target": target, **request}, outputs)
        return self._session.stream(question, timeout, chunk, ahead)

    async def explain_image(
        self, method, images, target=None, outputs=None, timeout=None, chunk=None, **request
    ):
        """As `Client.explain_image`."""
        question = image_explanation(method, images, {"target": target, **request}, outputs)
        return await self._session.answer(question, timeout, chunk)

    async def classify(
        self, examples, signature_name="serving_default", context=None, timeout=None
    ):
        """As `Client.classify`."""
        return await self._session.classify(examples, signature_name, context, timeout)

    async def regress(self, examples, signature_name="serving_default", context=None, timeout=None):
        """As `Client.regress`."""
        return await self._session.regress(examples, signature_name, context, timeout)

    async def methods(self, timeout=None):
        """As `Client.methods`."""
        return await self._session.methods(timeout)

    async def metadata(self, timeout=None):
        """As `Client.metadata`."""
        return await self._session.metadata(timeout)

    async def status(self, timeout=None):
        """As `Client.status`."""
        return await self._session.status(timeout)

    async def wait_ready(self, timeout=60.0):
        """As `Client.wait_ready`."""
        await self._session.wait_ready(timeout)

    async def close(self):
        """Closes the connections and ends calls under way with `Cancelled`."""
        await self._session.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exception):
        await self.close()
