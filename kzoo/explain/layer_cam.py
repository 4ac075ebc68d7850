"""LayerCAM: activations weighted at each place by the positive gradient there.

    M_ij = relu(sum_k relu(g_ij^k) A_ij^k)                  (equations 6 to 8)

"LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", Jiang, Zhang, Hou, Cheng,
Wei, 2021, IEEE Transactions on Image Processing 30.

Deviations: the maps of several layers are not scaled and fused here; see `combine_layers`.
"""

import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
    authors=(
        "Peng-Tao Jiang", "Chang-Bin Zhang", "Qibin Hou", "Ming-Ming Cheng", "Yunchao Wei",
    ),
    year=2021,
)  # fmt: skip


@component(PAPER, example=Example())
class LayerCAM(ActivationMap):
    """A map of the regions that speak for the target class, fine at shallow layers as well.

    Args:
        model: see `ActivationMap`, as are `layer`, `counterfactual`, `relu`, `upsample`, `score`.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences);
    `score`, `target`, `predictions`.

    Reference:
        Jiang et al. (2021), equations 6 to 8
    """

    def combine(self, activations, gradients):
        return tf.reduce_sum(tf.nn.relu(gradients) * activations, axis=-1)
