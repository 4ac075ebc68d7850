"""Products with the Hessian of a scalar function of several tensors, and what is made of them.

Gradients of gradients: exact, at about twice the cost of a gradient, without the Hessian itself.
"""

import tensorflow as tf


def hessian_vector_product(function, values, vectors):
    """H v, the derivative of the gradient of a function along v.

    Args:
        function: `function(values)` returns a scalar tensor; it is called once.
        values: list of floating tensors, where the derivatives are taken.
        vectors: list of tensors of the shapes and dtypes of `values`, v.

    Returns:
        (gradients, products), two lists like `values`; zeros where there is no dependence.
    """
    values = [tf.convert_to_tensor(value) for value in values]
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            result = function(values)
        gradients = inner.gradient(result, values, unconnected_gradients=zero)
        # The vectors may depend on the values; the derivative is along what they are.
        vectors = [tf.stop_gradient(vector) for vector in vectors]
        along = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)])
    return gradients, outer.gradient(along, values, unconnected_gradients=zero)


def rademacher_like(values, seed):
    """Tensors of -1 and 1 with equal probability, in the shapes and dtypes of `values`.

    Args:
        values: list of floating tensors.
        seed: int32 [2], or two integers; the tensors differ from each other.
    """
    seeds = tf.random.split(tf.convert_to_tensor(seed, tf.int32), len(values), alg="philox")
    return [
        2 * tf.cast(tf.random.stateless_uniform(tf.shape(x), s, 0, 2, tf.int32, "philox"), x.dtype)
        - 1
        for x, s in zip(values, tf.unstack(seeds, len(values)), strict=True)
    ]


def hessian_diagonal(function, values, probes):
    """Hutchinson's estimate of the diagonal of the Hessian, the mean of z * (H z) over the probes.

    One probe of random signs is exact for a diagonal Hessian; its variance elsewhere is the sum of
    the squares of the entries off the diagonal.

    Args:
        function, values: see `hessian_vector_product`.
        probes: list of z, each a list like `values` with entries of mean 0 and variance 1, such as
            those of `rademacher_like`.

    Returns:
        List of tensors like `values`.

    Reference:
        Bekas, Kokiopoulou, Saad (2007), "An estimator for the diagonal of a matrix"
    """
    totals = [tf.zeros_like(value) for value in values]
    for probe in probes:
        _, products = hessian_vector_product(function, values, probe)
        totals = [t + z * hz for t, z, hz in zip(totals, probe, products, strict=True)]
    return [total / len(probes) for total in totals]
