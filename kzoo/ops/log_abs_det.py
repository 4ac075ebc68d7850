"""log |det A| of matrices, which XLA compiles too."""

import tensorflow as tf


@tf.custom_gradient
def log_abs_det(matrices):
    """The logarithm of the magnitude of determinants.

    `tf.linalg.slogdet` without the sign, by a QR decomposition: XLA has no kernel for determinants.
    Its gradient, the inverse transposed, costs less than that through the decomposition.

    Args:
        matrices: floating [..., n, n].

    Returns:
        [...]; minus infinity for singular matrices, whose gradient does not exist.
    """
    diagonal = tf.linalg.diag_part(tf.linalg.qr(matrices)[1])

    def gradient(upstream):
        return upstream[..., None, None] * tf.linalg.matrix_transpose(tf.linalg.inv(matrices))

    return tf.reduce_sum(tf.math.log(tf.abs(diagonal)), axis=-1), gradient
