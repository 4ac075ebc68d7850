"""Aligned-MTL: gradients whose principal components are made orthogonal and equally long.

    A(J) = J^T B p,   B = sigma_min (J J^T)^(-1/2),   sigma_min^2 the least eigenvalue above 0

so that B J is the matrix nearest to J up to scale with the condition number 1.

"Independent Component Alignment for Multi-Task Learning", Senushkin, Patakin, Kuznetsov, Konushin,
2023, arXiv 2305.19000, algorithm 1.
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import PreferenceWeighting, register
from kzoo.ops.aggregation.spectral import positive_eigenvalues


@register
class AlignedMTL(PreferenceWeighting):
    """A weighted sum of the gradients after they have been aligned with orthogonal ones.

    Dependent gradients are aligned within the space that they span. Eigenvalues that are rounding
    count as zero; one just above it makes the update tiny.

    Args:
        preference: list of m numbers of at least 0, the weights of the aligned gradients; None for
            1/m each.

    Reference:
        Senushkin et al. (2023), algorithm 1, arxiv.org/abs/2305.19000
    """

    def weights(self, gramian, step=0):
        values, positive, vectors = positive_eigenvalues(gramian)
        least = tf.reduce_min(tf.where(positive, values, tf.reduce_max(values)))
        factors = tf.where(positive, tf.sqrt(least / tf.where(positive, values, 1.0)), 0.0)
        components = tf.linalg.matvec(vectors, self.preferred(gramian), transpose_a=True)
        return tf.linalg.matvec(vectors, factors * components)
