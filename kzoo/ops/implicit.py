"""Derivatives of what an optimum depends on, by the implicit function theorem.

At w*(h) = argmin_w T(w, h) the gradient of V(w*(h), h) with respect to h is

    dV/dh - (dV/dw) H^-1 d2T/dw dh,   H = d2T/dw2

and H^-1 is only ever needed as the product H^-1 v with one vector, from products H v.
"""

import tensorflow as tf

_ZERO = tf.UnconnectedGradients.ZERO


def hypergradients(training_loss, validation_loss, weights, hyperparameters, inverse_hvp):
    """The gradients of a validation loss with respect to hyper-parameters of the training loss.

    Exact where `weights` minimize the training loss and `inverse_hvp` is exact. Memory is that of
    one gradient of a gradient, however many products `inverse_hvp` takes; the forward pass and the
    gradient are computed once for all of them.

    Args:
        training_loss, validation_loss: `loss(weights, hyperparameters)` returns a scalar tensor.
            The training loss must be twice differentiable with respect to the weights.
        weights, hyperparameters: lists of floating tensors.
        inverse_hvp: `inverse_hvp(product, vectors)` returns H^-1 v as a list like `vectors`, where
            `product(vectors)` is H v; such as `cg_inverse_hvp`, or `neumann_inverse_hvp` with its
            other arguments bound.

    Returns:
        (gradients, losses): a list like `hyperparameters`, and (training loss, validation loss).

    Reference:
        Lorraine, Vicol, Duvenaud (2019), algorithm 2, arxiv.org/abs/1911.02590
    """
    weights = [tf.convert_to_tensor(weight) for weight in weights]
    hyperparameters = [tf.convert_to_tensor(each) for each in hyperparameters]
    with tf.GradientTape() as tape:
        tape.watch([weights, hyperparameters])
        validation = validation_loss(weights, hyperparameters)
    vectors, direct = tape.gradient(
        validation, (weights, hyperparameters), unconnected_gradients=_ZERO
    )
    # Persistent, so that every product begins at the gradient and not at the forward pass.
    with tf.GradientTape(persistent=True) as outer:
        outer.watch([weights, hyperparameters])
        with tf.GradientTape() as inner:
            inner.watch(weights)
            training = training_loss(weights, hyperparameters)
        slopes = inner.gradient(training, weights, unconnected_gradients=_ZERO)

    def derivative(sources, vectors):
        """The derivative of <slopes, vectors>."""
        return outer.gradient(
            slopes, sources, output_gradients=list(vectors), unconnected_gradients=_ZERO
        )

    solved = inverse_hvp(lambda vectors: derivative(weights, vectors), vectors)
    indirect = derivative(hyperparameters, solved)
    gradients = [d - i for d, i in zip(direct, indirect, strict=True)]
    return gradients, (training, validation)


def neumann_inverse_hvp(product, vectors, terms, learning_rate):
    """H^-1 v by the first terms of a Neumann series, a sum over j of a (I - a H)^j v.

    At an optimum this is what differentiating through `terms` steps of gradient descent gives. The
    error falls like (1 - a l)^terms, l the least eigenvalue of H; the series diverges unless all
    eigenvalues are between 0 and 2 / a.

    Args:
        product: `product(vectors)` is H v, see `hypergradients`.
        vectors: list of tensors, v.
        terms: int, or int32 tensor, number of terms of at least 1; one is the identity times a.
        learning_rate: a, a float or a scalar tensor.

    Returns:
        List of tensors like `vectors`.

    Reference:
        Lorraine, Vicol, Duvenaud (2019), algorithm 3, arxiv.org/abs/1911.02590
    """

    def scaled(vector):
        is_tensor = tf.is_tensor(learning_rate)
        return (tf.cast(learning_rate, vector.dtype) if is_tensor else learning_rate) * vector

    def add_term(j, term, total):
        term = [t - scaled(p) for t, p in zip(term, product(term), strict=True)]
        return j + 1, term, [s + t for s, t in zip(total, term, strict=True)]

    start = [tf.convert_to_tensor(v) for v in vectors]
    _, _, total = tf.while_loop(lambda j, *_: j < terms, add_term, (tf.constant(1), start, start))
    return [scaled(t) for t in total]


def cg_inverse_hvp(product, vectors, iterations=20, tolerance=1e-5, damping=0.0):
    """(H + damping I)^-1 v by conjugate gradients; H + damping I must be positive definite.

    Args:
        product: `product(vectors)` is H v, see `hypergradients`.
        vectors: list of tensors of one dtype, v.
        iterations: largest number of products. Defaults to 20.
        tolerance: norm of the residual, relative to that of v, at which to end. Defaults to 1e-5.
        damping: added to the diagonal, at least 0. Defaults to 0.

    Returns:
        List of tensors like `vectors`.
    """
    operator = _Hessian(product, vectors, damping)
    solution = tf.linalg.experimental.conjugate_gradient(
        operator, operator.flatten(vectors), tol=tolerance, max_iter=iterations
    )
    return operator.unflatten(solution.x)


class _Hessian(tf.linalg.LinearOperator):
    """H + damping I, on the vectors laid end to end."""

    def __init__(self, product, vectors, damping):
        self._product = product
        self._shapes = [vector.shape for vector in vectors]
        self._size = sum(shape.num_elements() for shape in self._shapes)
        self._damping = damping
        super().__init__(
            dtype=vectors[0].dtype,
            is_self_adjoint=True,
            is_positive_definite=True,
            parameters={"product": product, "vectors": vectors, "damping": damping},
        )

    def flatten(self, vectors):
        return tf.concat([tf.reshape(vector, [-1]) for vector in vectors], axis=0)

    def unflatten(self, flat):
        parts = tf.split(flat, [shape.num_elements() for shape in self._shapes])
        return [tf.reshape(part, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _shape(self):
        return tf.TensorShape([self._size, self._size])

    def _shape_tensor(self):
        return tf.constant([self._size, self._size])

    def _matmul(self, x, adjoint=False, adjoint_arg=False):
        column = tf.reshape(x, [-1])
        product = self.flatten(self._product(self.unflatten(column)))
        return tf.reshape(product + self._damping * column, tf.shape(x))
