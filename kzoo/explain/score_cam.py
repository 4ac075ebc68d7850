"""Score-CAM: activation maps weighted by the score of the input that each of them leaves visible.

    H_k = scale01(upsample(A_k)),   S_k = F(x * H_k),   alpha = softmax_k(S)
    L = relu(sum_k alpha_k A_k)                             (equation 8, algorithm 1)

"Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", Wang, Wang, Du,
Yang, Zhang, Ding, Mardziel, Hu, 2019, arXiv 1910.01279.

Open choices: F is the logit; the softmax makes the score of the empty image, which the paper takes
off, drop out. A map that is the same everywhere hides everything.
"""

import keras
import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap, input_size, resize_map
from kzoo.explain.explainer import merge_steps, split_steps, tile_steps
from kzoo.explain.graph import on_output, replace_call
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    authors=(
        "Haofan Wang", "Zifan Wang", "Mengnan Du", "Fan Yang", "Zijian Zhang", "Sirui Ding",
        "Piotr Mardziel", "Xia Hu",
    ),
    year=2019,
    arxiv="1910.01279",
)  # fmt: skip


@component(PAPER, example=Example())
class ScoreCAM(ActivationMap):
    """A coarse map of the regions that speak for the target class, without a gradient.

    It costs a prediction for each channel of the layer.

    Args:
        model: a model with one input [batch, height, width, channels]; see `ActivationMap`, as are
            `layer`, `relu`, `upsample`, `score`.
        rows: see `Explainer`.

    Returns (when called): `attributions` [batch, height, width]; `score`, `target`, `predictions`.

    Reference:
        Wang et al. (2019), algorithm 1, arxiv.org/abs/1910.01279
    """

    def __init__(self, model, layer=None, relu=True, upsample=True, score=None, rows="auto"):
        super().__init__(model, layer, relu=relu, upsample=upsample, score=score, rows=rows)

    def attribute(self, values, target, inputs):
        seen = []
        with replace_call(self.layer, on_output(lambda output: seen.append(output) or output)):
            scored = self.scores(values, target, inputs)
        if keras.tree.is_nested(values) or values.shape.rank != 4 or seen[-1].shape.rank != 4:
            raise ValueError(
                "Score-CAM masks images: the one input and the output of `layer` must have the "
                "shape [batch, height, width, channels]."
            )
        activations = tf.cast(seen[-1], scored["score"].dtype)
        weights = tf.nn.softmax(self._channel_scores(activations, values, scored["target"]), -1)
        cam = tf.einsum("bk,byxk->byx", weights, activations)
        return {"attributions": self.finish(cam, values), **scored}

    def _channel_scores(self, activations, images, target):
        """Scores [batch, channels] of the image that each channel leaves visible."""
        batch, channels = tf.shape(images)[0], activations.shape[-1]
        size = input_size(images, 2)
        by_channel = tf.transpose(activations, [3, 0, 1, 2])

        def evaluate(step):
            maps = resize_map(merge_steps(tf.gather(by_channel, step)), size)
            visible = tf.cast(_scale(maps), images.dtype)[..., tf.newaxis]
            masked = visible * tile_steps(images, tf.size(step))
            score = self.scores(masked, tf.tile(target, tf.shape(step)), masked)["score"]
            score = split_steps(score, tf.size(step))
            return tf.scatter_nd(step[:, tf.newaxis], score, [channels, batch])

        return tf.transpose(self.sum_over_steps(evaluate, channels, batch))

    def get_config(self):
        config = super().get_config()
        config.pop("counterfactual")
        return {**config, "rows": self.rows}


def _scale(maps):
    """Maps [n, height, width], each scaled to [0, 1]."""
    low = tf.reduce_min(maps, [1, 2], keepdims=True)
    high = tf.reduce_max(maps, [1, 2], keepdims=True)
    return tf.math.divide_no_nan(maps - low, high - low)
