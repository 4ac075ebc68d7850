"""The client: one class for gRPC and REST."""

import urllib.parse

import numpy as np

from kzoo.client.arguments import named_arrays, output_names, per_row
from kzoo.client.deadlines import Deadline, call_with_retries, check_timeout
from kzoo.client.errors import InvalidArgument, NotFound, ServingError, error
from kzoo.client.rest import RestTransport
from kzoo.client.tensors import as_input

EXPLAIN_PREFIX = "explain_"
IMAGE_SUFFIX = "_png"
# Integers of a request, of each example, that it may leave to the explanation.
_CHOICES = ("target", "steps")
_POLL_SECONDS = 0.1


class Client:
    """Asks one model of a TensorFlow Serving server for predictions and explanations.

    Both transports give the same results and raise the same errors. A client may be used from
    several threads; it keeps its connections open until it is closed.

    Args:
        address: "host:port" or "grpc://host:port" for gRPC, "http://host:port" for REST; a path
            after the port is put before REST's "/v1".
        model: the model's name on the server.
        version: the version's number; None for the one that the server prefers, its newest.
        label: the version's label, instead of a number.
        timeout: seconds that a call may take, its retries included. Defaults to 10.
        retries: how many further attempts are made while the server is unavailable: UNAVAILABLE,
            HTTP 503, no connection. No other error is retried. Defaults to 2.

    Example:

    >>> with Client("localhost:8500", model="digits") as client:
    ...     probabilities = client.predict(images)["probabilities"]
    ...     maps = client.explain("saliency", images)["attributions"]
    """

    def __init__(self, address, model, version=None, label=None, timeout=10.0, retries=2):
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
        self.model = model
        self._timeout = check_timeout(timeout)
        self._retries = retries
        self._transport = _connect(address, model, version, label)
        self._label = label
        self._signatures = None
        self._closed = False

    def predict(self, inputs, signature_name="serving_default", outputs=None, timeout=None):
        """Calls a signature.

        Args:
            inputs: one array, for a signature with a single input, or {input: array}. The batch
                is the first dimension. Strings may be bytes or str.
            signature_name: the signature to call.
            outputs: names of the outputs wanted. None for all.
            timeout: seconds for this call, instead of the client's.

        Returns:
            {output: array}, with the signature's dtypes; strings as arrays of bytes objects.

        Raises:
            InvalidArgument: an input or output does not fit the signature.
            NotFound: the server has no such model, version or signature.
            ServingError: any other error of the server or the way to it.
        """

        def arrays(signature):
            return named_arrays(inputs, signature, list(signature.inputs))

        return self._predict(signature_name, arrays, outputs, timeout)

    def encode(self, inputs, signature_name="serving_default", outputs=None):
        """Returns the request that `predict` would send, for programs that send it themselves.

        Returns:
            (URL, body): "grpc://host:port" and a serialized PredictRequest, or the "http://..."
            to post to and its JSON, as bytes.

        Raises:
            InvalidArgument, NotFound, ServingError: as `predict`.
        """

        def arrays(signature):
            return named_arrays(inputs, signature, list(signature.inputs))

        request = self._request(signature_name, arrays, outputs, self._deadline(None))
        return self._server.encode(signature_name, *request)

    def explain(self, method, inputs, target=None, outputs=None, timeout=None, **request):
        """Asks why: calls the signature `explain_<method>`.

        Args:
            method: the method's name; `methods` lists those of the server.
            inputs: the model's inputs, as in `predict`.
            target: the class to explain, for each example (int array of shape (batch,)) or one
                for all (an int). -1 is the model's own top class, as is None; -2 its second.
            outputs: names of the outputs wanted. None for all.
            timeout: seconds for this call, instead of the client's.
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

        return self._explain(method, "", inputs, {"target": target, **request}, outputs, timeout)

    def explain_image(self, method, images, target=None, outputs=None, timeout=None, **request):
        """As `explain`, for images as they are in files: calls `explain_<method>_png`.

        Args:
            images: JPEG or PNG bytes, one or a list. The rest is as for `explain`.

        Returns:
            What `explain` returns, and "overlay_bytes" (batch,): each image with its heat map, PNG.
        """
        images = [images] if isinstance(images, bytes) else images
        inputs = np.array(images, object)
        options = {"target": target, **request}
        return self._explain(method, IMAGE_SUFFIX, inputs, options, outputs, timeout)

    def _explain(self, method, suffix, inputs, options, outputs, timeout):
        def arrays(signature):
            brought = {name for name, value in options.items() if value is not None}
            unknown = sorted(brought - set(signature.inputs))
            if unknown:
                message = f"Method {method!r} takes no `{unknown[0]}`."
                raise error("INVALID_ARGUMENT", message)
            choices = [name for name in signature.inputs if name in (*_CHOICES, *options)]
            names = [name for name in signature.inputs if name not in choices]
            batch = named_arrays(inputs, signature, names)
            for name in choices:
                if name in _CHOICES:
                    batch[name] = per_row(name, options.get(name), batch)
                else:
                    batch[name] = as_input(name, options[name], signature.inputs[name])
            return batch

        return self._predict(f"{EXPLAIN_PREFIX}{method}{suffix}", arrays, outputs, timeout)

    def methods(self, timeout=None):
        """Returns the names of the explanation methods that the model is served with, sorted."""
        return _methods(self.metadata(timeout))

    def metadata(self, timeout=None):
        """Returns the model's signatures, {name: `Signature`}."""
        return self._fetch_signatures(self._deadline(timeout))

    def status(self, timeout=None):
        """Returns a `VersionStatus` for every version, or for the client's version, as a list.

        A label does not restrict it: servers give the status by number only.
        """
        return self._call(self._server.status, self._deadline(timeout))

    def wait_ready(self, timeout=60.0):
        """Waits until the model answers, also through a server that is not yet there.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DeadlineExceeded: the model was not ready in time; the message says what was last seen.
        """
        deadline = Deadline(timeout)
        seen = self._not_ready(deadline)
        while seen is not None:
            if not deadline.sleep(_POLL_SECONDS):
                message = f"Model {self.model!r} was not ready within {timeout:g} s: {seen}"
                raise error("DEADLINE_EXCEEDED", message)
            seen = self._not_ready(deadline)

    def close(self):
        """Closes the connections; the client cannot be used afterwards."""
        self._closed = True
        self._transport.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _predict(self, signature_name, arrays, outputs, timeout):
        deadline = self._deadline(timeout)
        request = self._request(signature_name, arrays, outputs, deadline)
        try:
            return self._call(
                lambda deadline: self._server.predict(signature_name, *request, deadline),
                deadline,
            )
        except ServingError:
            # The server may have gone on to a version with other signatures.
            self._signatures = None
            raise

    def _request(self, signature_name, arrays, outputs, deadline):
        """(signature, {input: array}, outputs), checked against the signatures known, and if they
        do not fit, against fresh ones."""

        def prepared(signatures):
            signature = self._signature(signatures, signature_name)
            return signature, arrays(signature), output_names(outputs, signature)

        known = self._signatures
        if known is not None:
            try:
                return prepared(known)
            except (InvalidArgument, NotFound):
                pass
        return prepared(self._fetch_signatures(deadline))

    def _fetch_signatures(self, deadline):
        signatures = self._call(self._server.metadata, deadline)
        self._signatures = signatures
        return signatures

    def _call(self, call, deadline):
        return call_with_retries(call, deadline, self._retries)

    def _deadline(self, timeout):
        return Deadline(self._timeout if timeout is None else timeout)

    @property
    def _server(self):
        if self._closed:
            raise ValueError("The client is closed.")
        return self._transport

    def _signature(self, signatures, name):
        if name in signatures:
            return signatures[name]
        if name.startswith(EXPLAIN_PREFIX):
            known, kind = _methods(signatures), "explanation method"
            name = name.removeprefix(EXPLAIN_PREFIX)
        else:
            known, kind = sorted(signatures), "signature"
        message = f"Model {self.model!r} has no {kind} {name!r}. It has: {', '.join(known)}"
        raise error("NOT_FOUND", message)

    def _not_ready(self, deadline):
        """Why the model does not answer yet; None if it does."""
        try:
            states = self._server.status(deadline)
            if all(state.state != "AVAILABLE" for state in states):
                return states
            if self._label is not None:
                self._server.metadata(deadline)
        except ServingError as problem:
            return problem
        return None


def _connect(address, model, version, label):
    url = _split(address)
    if url is None:
        raise ValueError(
            '`address` must be "host:port", "grpc://host:port" or "http://host:port". '
            f"Received: {address!r}"
        )
    if url.scheme == "http":
        return RestTransport(url.netloc, url.path.rstrip("/"), model, version, label)
    try:
        from kzoo.client.grpc_transport import GrpcTransport
    except ModuleNotFoundError as problem:
        raise ModuleNotFoundError(
            f"gRPC needs the packages grpcio and protobuf ({problem}): `pip install kzoo[client]`,"
            ' or use REST: "http://host:port".',
            name=problem.name,
        ) from None
    return GrpcTransport(url.netloc, model, version, label)


def _split(address):
    """The parts of an address; None if it is none."""
    if not isinstance(address, str):
        return None
    try:
        url = urllib.parse.urlsplit(address if "://" in address else f"grpc://{address}")
        port = url.port
    except ValueError:  # a port that is no number
        return None
    complete = url.hostname and (url.scheme == "http" or (port and not url.path))
    known = url.scheme in ("grpc", "http") and not (url.query or url.fragment or url.username)
    return url if known and complete else None


def _is_integer(value, at_least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _methods(signatures):
    """Methods with a signature of their own; those from image bytes are not counted again."""
    return sorted(
        name.removeprefix(EXPLAIN_PREFIX)
        for name in signatures
        if name.startswith(EXPLAIN_PREFIX) and not name.endswith(IMAGE_SUFFIX)
    )
