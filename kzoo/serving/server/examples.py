"""The `Input` of Classify, Regress and MultiInference as the tensor that their graphs parse."""

import numpy as np

from kzoo.serving.server.errors import Code, ServingError, invalid_argument
from kzoo.serving.server.tensors import MAX_TENSOR_BYTES


def serialized_examples(request_input):
    """Returns the serialized Examples of an `Input`.

    A context stands before each Example: the bytes of two messages in a row are their merged
    message, so the graph sees the features of both.

    Args:
        request_input: `tensorflow.serving.Input`.

    Returns:
        An object array [batch] of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT for no Examples, RESOURCE_EXHAUSTED where the context,
            repeated, takes more memory than a request may send.
    """
    context = b""
    if request_input.WhichOneof("kind") == "example_list_with_context":
        examples = request_input.example_list_with_context.examples
        context = request_input.example_list_with_context.context.SerializeToString()
    else:
        examples = request_input.example_list.examples
    if not examples:
        raise invalid_argument("Input is empty.")
    if len(context) * len(examples) > MAX_TENSOR_BYTES:
        raise ServingError(
            Code.RESOURCE_EXHAUSTED,
            f"The context of {len(context)} bytes is too large for {len(examples)} examples.",
        )
    return np.fromiter(
        (context + example.SerializeToString() for example in examples), object, len(examples)
    )
