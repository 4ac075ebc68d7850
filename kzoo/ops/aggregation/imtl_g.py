"""IMTL-G: the update whose projections onto all gradients are equally long.

    A(J) = J^T a,   A(J) . g_i / ||g_i|| the same for all i,   sum_i a_i = 1
    a = G^+ d / (1^T G^+ d),   G = J J^T,   d_i = ||g_i||

"Towards Impartial Multi-task Learning", Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, 2021 (ICLR),
equations 5 and 6; the pseudo-inverse, which equals their closed form for independent gradients, is
from Quinton and Rey (2024), appendix B, for dependent ones.
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import Weighting, register
from kzoo.ops.aggregation.spectral import positive_eigenvalues


@register
class IMTLG(Weighting):
    """The combination of the gradients that progresses equally along the direction of each.

    Weights may be negative, and then the update conflicts with all objectives. Where they cannot
    be made to add up to 1, it is 0.

    Reference:
        Liu et al. (2021), openreview.net/forum?id=IMPnRXEWpvr
    """

    def weights(self, gramian, step=0):
        norms = tf.sqrt(tf.linalg.diag_part(gramian))
        values, positive, vectors = positive_eigenvalues(gramian)
        inverse = tf.where(positive, 1 / tf.where(positive, values, 1.0), 0.0)
        found = tf.linalg.matvec(
            vectors, inverse * tf.linalg.matvec(vectors, norms, transpose_a=True)
        )
        total = tf.reduce_sum(found)
        adds_up = tf.abs(total) > 1e-12 * tf.reduce_sum(tf.abs(found))
        return tf.where(adds_up, found / total, 0.0)
