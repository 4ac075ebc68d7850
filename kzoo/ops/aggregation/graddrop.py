"""GradDrop: in each coordinate only the gradients of one sign, chosen at random, are kept.

    P = 1/2 (1 + sum_i g_i / sum_i |g_i|),   U ~ uniform on [0, 1), for each coordinate
    M_i = [P > U] [g_i > 0] + [P < U] [g_i < 0]
    A(J) = sum_i (l_i + (1 - l_i) M_i) g_i

"Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", Chen, Ngiam, Huang,
Luong, Kretzschmar, Chai, Anguelov, 2020, arXiv 2010.06808, algorithm 1, lines 10 to 15, with f the
identity. The authors apply it to the gradients of the shared activations; as an aggregator it acts
on those of the weights, as in Quinton and Rey (2024).
"""

import tensorflow as tf

from kzoo.ops.aggregation.aggregator import (
    Aggregator,
    check_seed,
    check_vector,
    draw_seed,
    matched,
    register,
)


@register
class GradDrop(Aggregator):
    """The sum of the gradients of one sign in each coordinate, the purer sign more often.

    Args:
        leak: list of m numbers in [0, 1], the share l_i of each gradient that is always kept; None
            for 0.
        seed: integer of at least 0; the signs depend on it and on the number of the step.

    Reference:
        Chen et al. (2020), algorithm 1, arxiv.org/abs/2010.06808
    """

    def __init__(self, leak=None, seed=0):
        self.leak = check_vector("leak", leak, low=0)
        if self.leak is not None and max(self.leak) > 1:
            raise ValueError(f"`leak` must be in [0, 1]. Received: {leak!r}")
        self.seed = check_seed(seed)

    def updates(self, pieces, step):
        seeds = tf.random.split(draw_seed(self.seed, step), len(pieces), alg="philox")
        seeds = tf.unstack(seeds, len(pieces))
        return [self._kept(piece, seed) for piece, seed in zip(pieces, seeds, strict=True)]

    def _kept(self, piece, seed):
        total = tf.reduce_sum(piece, axis=0)
        purity = tf.math.divide_no_nan(total, tf.reduce_sum(tf.abs(piece), axis=0))
        purity = 0.5 * (1 + purity)
        uniform = tf.random.stateless_uniform(tf.shape(purity), seed, alg="philox")
        uniform = tf.cast(uniform, piece.dtype)
        kept = ((purity > uniform) & (piece > 0)) | ((purity < uniform) & (piece < 0))
        share = tf.cast(kept, piece.dtype)
        if self.leak is not None:
            leak = tf.cast(matched("leak", self.leak, piece), piece.dtype)
            leak = tf.reshape(leak, [-1] + [1] * (piece.shape.rank - 1))
            share = leak + (1 - leak) * share
        return tf.reduce_sum(share * piece, axis=0)

    def get_config(self):
        return {"leak": None if self.leak is None else list(self.leak), "seed": self.seed}
