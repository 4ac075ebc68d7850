"""The arguments of a call, checked against the signature that it goes to."""

import numpy as np

from kzoo.client.errors import error
from kzoo.client.tensors import as_input


def named_arrays(inputs, signature, names):
    """Returns {input: array of the signature's dtype}.

    Args:
        inputs: a dict by input, or one array if there is a single name.
        signature: the `Signature`.
        names: those of its inputs that `inputs` may give. The server judges what is missing,
            because only it knows the defaults.

    Raises:
        InvalidArgument: a name, dtype or shape does not fit.
    """
    if not isinstance(inputs, dict):
        if len(names) != 1:
            message = f"`inputs` must be a dict with the arrays of {', '.join(names)}."
            raise error("INVALID_ARGUMENT", message)
        inputs = {names[0]: inputs}
    unknown = sorted(set(inputs) - set(names))
    if unknown:
        message = f"The signature has the inputs {', '.join(names)}. Received: {unknown}"
        raise error("INVALID_ARGUMENT", message)
    return {name: as_input(name, value, signature.inputs[name]) for name, value in inputs.items()}


def output_names(outputs, signature):
    """Returns the outputs wanted as a list: all for None; raises InvalidArgument for others."""
    if outputs is None:
        return list(signature.outputs)
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    unknown = sorted(set(names) - set(signature.outputs))
    if unknown:
        known = ", ".join(signature.outputs)
        message = f"The signature has the outputs {known}. Received: {unknown}"
        raise error("INVALID_ARGUMENT", message)
    return names


def per_row(name, value, arrays):
    """Returns an integer of each example, int32 of shape (batch,).

    Args:
        name: of the input, for errors.
        value: one integer for all examples, one for each, or None; -1 and None leave the choice to
            the explanation.
        arrays: the model's inputs, which say how large the batch is.

    Raises:
        InvalidArgument: `value` is something else, or the inputs' first dimensions differ.
    """
    sizes = {array.shape[:1] for array in arrays.values()}
    if len(sizes) != 1 or () in sizes:
        message = f"All inputs must have the batch as first dimension. Received: {sorted(sizes)}"
        raise error("INVALID_ARGUMENT", message)
    (shape,) = sizes
    rows = np.asarray(-1 if value is None else value)
    if rows.dtype.kind not in "iu" or rows.shape not in ((), shape):
        message = f"`{name}` must be one integer or {shape[0]} of them."
        raise error("INVALID_ARGUMENT", f"{message} Received: {value!r}")
    return np.full(shape, rows, dtype=np.int32)
