"""Multiply-adds of a model's forward pass, the measure of cost that papers print.

Counted are the operations of the graph in which multiply-adds are: convolutions, matrix products
and Einstein sums, whatever layers they come from. As in the papers on image models, what is done
element by element (normalisation, activations, biases, pooling) is left out.
"""

import math

import keras
import tensorflow as tf


def multiply_adds(model, input_shape=None):
    """Returns how many multiply-adds the prediction for one example takes.

    Many papers call this number FLOPs; floating point operations are twice as many.

    Args:
        model: a `keras.Model`.
        input_shape: of one example, where the model leaves sizes open; with several inputs a
            structure as that of the inputs. Defaults to that of the model.

    Raises:
        ValueError: if a size is still open.

    Example:

    >>> multiply_adds(kzoo.models.ResNet18())
    1814073344
    """
    specs = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype), model.input
    )
    if input_shape is not None:
        specs = keras.tree.map_structure_up_to(
            specs, lambda spec, shape: tf.TensorSpec([1, *shape], spec.dtype), specs, input_shape
        )
    for spec in keras.tree.flatten(specs):
        if not spec.shape.is_fully_defined():
            raise ValueError(
                "`input_shape` must give all sizes that the model leaves open. Received: "
                f"{input_shape} for an input of shape {tuple(spec.shape)}"
            )
    return sum(_of_operation(operation) for operation in _graph(model, specs).get_operations())


def _graph(model, specs):
    """The graph of the prediction, with inner functions (Keras has some) in their place."""
    graph = tf.__internal__.FuncGraph("multiply_adds")
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with graph.as_default():
            placeholders = keras.tree.map_structure(
                lambda spec: tf.compat.v1.placeholder(spec.dtype, spec.shape), specs
            )
            model(placeholders, training=False)
    finally:
        tf.config.run_functions_eagerly(eagerly)
    return graph


def _of_operation(operation):
    if operation.type in ("Conv2D", "Conv3D"):
        return _size(operation.outputs[0]) * math.prod(operation.inputs[1].shape[:-1])
    if operation.type == "DepthwiseConv2dNative":
        return _size(operation.outputs[0]) * math.prod(operation.inputs[1].shape[:2])
    if operation.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        transposed = "transpose_a" if operation.type == "MatMul" else "adj_x"
        axis = -2 if operation.get_attr(transposed) else -1
        return _size(operation.outputs[0]) * operation.inputs[0].shape[axis]
    if operation.type == "Einsum":
        return _of_einsum(operation)
    return 0


def _of_einsum(operation):
    """The product of the sizes of all axes, those of an ellipsis included."""
    terms, result = operation.get_attr("equation").decode().split("->")
    sizes = {}
    for term, tensor in zip(terms.split(","), operation.inputs, strict=True):
        before, _, after = term.partition("...")
        shape = list(tensor.shape)
        sizes |= zip(before, shape, strict=False)
        sizes |= zip(reversed(after), reversed(shape), strict=False)
    summed = [size for axis, size in sizes.items() if axis not in result]
    return _size(operation.outputs[0]) * math.prod(summed)


def _size(tensor):
    return math.prod(tensor.shape)
