"""The client: one class for gRPC and REST."""

from kzoo.client.questions import Question, explanation, image_explanation
from kzoo.client.runtimes import Blocking, iterate, run
from kzoo.client.session import AHEAD, Session
from kzoo.client.tls import Tls


class Client:
    """Asks one model of a TensorFlow Serving server for predictions and explanations.

    Both transports give the same results and raise the same errors: subclasses of `ServingError`,
    one per canonical code. A call ends by its timeout, whatever the server does, with
    `DeadlineExceeded`. A client may be used from several threads. It connects when it is first
    asked, reuses its connections (one for all calls over gRPC, one per call at the same time over
    REST) and keeps them open until it is closed; one that the server has closed is replaced.

    Args:
        address: "host:port" or "grpc://host:port" for gRPC, "grpcs://host:port" for gRPC over TLS,
            "unix:///path" for gRPC on a UNIX socket; "http://host:port" or "https://host:port" for
            REST; a path after the port is put before REST's "/v1".
        model: the model's name on the server.
        version: the version's number; None for the one that the server prefers, its newest.
        label: the version's label, instead of a number.
        timeout: seconds that a call may take, its retries included. Defaults to 10.
        retries: how many further attempts are made while the server is unavailable: UNAVAILABLE,
            HTTP 503, no connection. No other error is retried. Defaults to 2.
        root_certificates: the authorities to trust, for "grpcs" and "https": PEM as bytes, or the
            path of a file. None for the usual ones. With "unix" they say that the server wants TLS
            on its socket too, in the name of "localhost".
        private_key, certificate_chain: the client's own, for servers that ask for them (mutual
            TLS); as `root_certificates`, and the key not encrypted.

    Raises:
        ValueError: an argument is not one of those above.
        ModuleNotFoundError: the transport needs a package that is not installed.

    Example:

    >>> with Client("localhost:8500", model="digits") as client:
    ...     probabilities = client.predict(images)["probabilities"]
    ...     maps = client.explain("saliency", images)["attributions"]
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
        self._session = Session(Blocking(), address, model, version, label, timeout, retries, tls)

    def predict(
        self, inputs, signature_name="serving_default", outputs=None, timeout=None, chunk=None
    ):
        """Calls a signature.

        Args:
            inputs: one array, for a signature with a single input, or {input: array}. The batch
                is the first dimension. Strings may be bytes or str.
            signature_name: the signature to call.
            outputs: names of the outputs wanted. None for all.
            timeout: seconds for this call, instead of the client's; with `chunk` for each request.
            chunk: rows of one request, for batches that are too large for it; see
                `predict_batches`. None sends all in one.

        Returns:
            {output: array}, with the signature's dtypes; strings as arrays of bytes objects.

        Raises:
            InvalidArgument: an input or output does not fit the signature.
            NotFound: the server has no such model, version or signature.
            ServingError: any other error of the server or the way to it.
        """
        question = Question(signature_name, inputs, outputs)
        return run(self._session.answer(question, timeout, chunk))

    def predict_batches(
        self,
        inputs,
        chunk=64,
        signature_name="serving_default",
        outputs=None,
        timeout=None,
        ahead=AHEAD,
    ):
        """Calls a signature for more rows than fit into one request, or into memory.

        What is held is a few chunks, whatever the number of rows: inputs are sliced when their
        turn comes (a memory-mapped array is read then), and no request is sent before an earlier
        result has been taken where `ahead` are under way.

        Args:
            inputs: as in `predict`; arrays, lists or what can be sliced like them, with the same
                number of rows in all.
            chunk: rows of each request. None if `inputs` is an iterable of batches, which are sent
                as they are, each as in `predict`.
            signature_name, outputs: as in `predict`.
            timeout: seconds for each request, instead of the client's.
            ahead: how many requests are under way at most; 1 for one after the other.

        Returns:
            A generator of what `predict` returns, one per chunk and in their order. It ends at the
            first error; what was ahead of that is dropped, as when the generator is closed.

        Raises:
            ServingError: as `predict`, when the chunk's turn comes; `chunk` is its index.
        """
        question = Question(signature_name, inputs, outputs)
        return iterate(self._session.stream(question, timeout, chunk, ahead))

    def encode(self, inputs, signature_name="serving_default", outputs=None):
        """Returns the request that `predict` would send, for programs that send it themselves.

        Returns:
            (URL, body): "grpc://host:port" ("grpcs://..." or "unix:path") and a serialized
            PredictRequest, or the "http://..." or "https://..." to post to and its JSON, as bytes.

        Raises:
            InvalidArgument, NotFound, ServingError: as `predict`.
        """
        return run(self._session.encode(Question(signature_name, inputs, outputs)))

    def explain(
        self, method, inputs, target=None, outputs=None, timeout=None, chunk=None, **request
    ):
        """Asks why: calls the signature `explain_<method>`.

        Args:
            method: the method's name; `methods` lists those of the server.
            inputs: the model's inputs, as in `predict`.
            target: the class to explain, for each example (int array of shape (batch,)) or one
                for all (an int). -1 is the model's own top class, as is None; -2 its second.
            outputs: names of the outputs wanted. None for all.
            timeout: seconds for this call, instead of the client's; with `chunk` for each request.
            chunk: rows of one request, as in `predict`.
            request: what else the method takes, such as `steps`, for each example or for all.

        Returns:
            {"attributions": one value per input element, "score": the score explained (batch,),
            "target": the class explained (batch,)}, "convergence_delta" (batch,) for methods that
            have one, and what `predict` returns.

        Raises:
            NotFound: the server has no such method; the message lists those it has.
            InvalidArgument: an input or `target` does not fit.
            ServingError: any other error of the server or the way to it.
        """
        question = explanation(method, inputs, {"target": target, **request}, outputs)
        return run(self._session.answer(question, timeout, chunk))

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
        """As `explain`, for many rows: a generator as `predict_batches` returns it.

        Args:
            method, inputs, target, request: as for `explain`; a target for each example is
                split with the inputs. With `chunk=None` they must be one for all.
            chunk, outputs, timeout, ahead: as for `predict_batches`.
        """
        question = explanation(method, inputs, {"target": target, **request}, outputs)
        return iterate(self._session.stream(question, timeout, chunk, ahead))

    def explain_image(
        self, method, images, target=None, outputs=None, timeout=None, chunk=None, **request
    ):
        """As `explain`, for images as they are in files: calls `explain_<method>_png`.

        Args:
            images: JPEG or PNG bytes, one or a list. The rest is as for `explain`.

        Returns:
            What `explain` returns, and "overlay_bytes" (batch,): each image with its heat map, PNG.
        """
        question = image_explanation(method, images, {"target": target, **request}, outputs)
        return run(self._session.answer(question, timeout, chunk))

    def classify(self, examples, signature_name="serving_default", context=None, timeout=None):
        """Calls a signature over tf.Examples that classifies.

        Args:
            examples: a list of dicts {feature: value, list or array}, one per Example. Strings
                become a feature of bytes, whole numbers and booleans one of int64, other numbers
                one of float.
            signature_name: the signature to call.
            context: features that all the examples share, a dict; None for none.
            timeout: seconds for this call, instead of the client's.

        Returns:
            For each Example a list of `ClassScore`: pairs of label (str) and score (float). A
            model without labels or without scores gives "" or 0.

        Raises:
            InvalidArgument: a feature holds something else, or the signature does not classify.
            NotFound, ServingError: as `predict`.
        """
        return run(self._session.classify(examples, signature_name, context, timeout))

    def regress(self, examples, signature_name="serving_default", context=None, timeout=None):
        """Calls a signature over tf.Examples that gives one number for each.

        Args:
            examples, signature_name, context, timeout: as for `classify`.

        Returns:
            float32 array of shape (batch,).

        Raises:
            InvalidArgument: a feature holds something else, or the signature does not regress.
            NotFound, ServingError: as `predict`.
        """
        return run(self._session.regress(examples, signature_name, context, timeout))

    def methods(self, timeout=None):
        """Returns the names of the explanation methods that the model is served with, sorted."""
        return run(self._session.methods(timeout))

    def metadata(self, timeout=None):
        """Returns the model's signatures, {name: `Signature`}."""
        return run(self._session.metadata(timeout))

    def status(self, timeout=None):
        """Returns a `VersionStatus` for every version, or for the client's version, as a list.

        A label does not restrict it: servers give the status by number only.
        """
        return run(self._session.status(timeout))

    def wait_ready(self, timeout=60.0):
        """Waits until the model answers, also through a server that is not yet there.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DeadlineExceeded: the model was not ready in time; the message says what was last seen.
        """
        run(self._session.wait_ready(timeout))

    def close(self):
        """Closes the connections; the client cannot be used afterwards."""
        run(self._session.close())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
