"""What methods share that follow the gradient of the gradient's norm."""

import tensorflow as tf


def hessian_gradient_product(batch, direction=None, weights=None):
    """The Hessian of the loss times its own gradient, exactly, by double backpropagation.

    It costs about three gradients, the gradient included.

    Args:
        batch: `kzoo.training.several_passes.Batch`.
        direction: `direction(gradients)` makes the vectors that are multiplied; None for the
            gradients themselves.
        weights: list of tensors, where the derivatives are taken; None for where they are.

    Returns:
        (gradients, products, `Pass`): two lists like the weights, this replica's part of each, and
        zeros where the loss does not depend on a weight.
    """
    values = [tf.convert_to_tensor(w) for w in (batch.weights if weights is None else weights)]
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            found = batch.forward(values)
            scaled = found.loss * tf.cast(batch.scale, found.loss.dtype)
        gradients = inner.gradient(scaled, values, unconnected_gradients=zero)
    unscaled = batch.unscaled(gradients)
    vectors = unscaled if direction is None else direction(unscaled)
    products = outer.gradient(
        gradients, values, output_gradients=vectors, unconnected_gradients=zero
    )
    return unscaled, batch.unscaled(products), found
