"""The optimisation loop that feature visualisations share: gradient ascent inside one graph."""

import keras
import tensorflow as tf


def ascend(start, evaluate, steps, optimizer, total=(), project=None):
    """Climbs from `start`, all steps in one `tf.while_loop`.

    Args:
        start: tensor [n, ...], a row for each target.
        evaluate: `evaluate(value, step)` returns the gradient to climb, shape of `value`;
            the activations [n] at `value`; and what is added to `total`.
        steps: number of steps, a positive int.
        optimizer: Keras optimizer, its configuration, or its name. A copy is used, so that neither
            its state nor its step counter is carried from one visualisation to the next.
        total: structure of tensors that begins the sum over the steps. Defaults to an empty one.
        project: `project(value, step)` replaces the value after each step. None for nothing.

    Returns:
        the last value [n, ...], the activations [steps, n] before each step, the total.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer. Received: {steps!r}")
    variable = keras.Variable(start, dtype=start.dtype.name, name="visualization")
    optimizer = _copy(optimizer)
    optimizer.build([variable])

    def climb(step, history, total):
        gradient, activation, addend = evaluate(variable.value, step)
        optimizer.apply([-gradient], [variable])
        if project is not None:
            variable.assign(project(variable.value, step))
        total = keras.tree.map_structure(tf.add, total, addend)
        return step + 1, history.write(step, activation), total

    def run():
        history = tf.TensorArray(start.dtype, steps, element_shape=[start.shape[0]])
        _, history, result = tf.while_loop(
            lambda step, *_: step < steps, climb, (0, history, total), maximum_iterations=steps
        )
        return history.stack(), result

    activations, result = in_graph(run)
    return tf.convert_to_tensor(variable.value), activations, result


def in_graph(function, *tensors):
    """function(*tensors), traced for this one call."""
    # Not by calling the tf.function, which would warn of retracing where pictures are many.
    return tf.function(function, autograph=False).get_concrete_function(*tensors)(*tensors)


def _copy(optimizer):
    optimizer = keras.optimizers.get(optimizer)
    return type(optimizer).from_config(optimizer.get_config())
