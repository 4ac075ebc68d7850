"""FullGrad: a map of the input's and all biases' contributions to the score.

    S(x) = psi(df/dx * x) + sum_l sum_c psi((df/dz_l * b_l)_c),   psi = upsample(rescale(|.|))

with the biases b_l of the layers l, added to give z_l (see `full_gradient_decomposition`), and the
channels c.

"Full-Gradient Representation for Neural Network Visualization", Srinivas, Fleuret, 2019, arXiv
1905.00780; the equation of FullGrad for convolutional networks.

Open choices: `rescale` takes a minimum to 0 and a maximum to 1, over each channel as the equation
has it, or over the whole layer as the authors' code does; a constant becomes 0; the input's term is
rescaled over all its channels together, as there; bilinear resizing is with half-pixel centres
(theirs aligns corners).
"""

import keras
import tensorflow as tf

from kzoo.explain.activation_map import input_size, resize_map
from kzoo.explain.full_gradients import PAPER, FullGradients
from kzoo.papers import Example, component


@component(PAPER, example=Example())
class FullGrad(FullGradients):
    """A map of what matters by the input and by the biases, sharp where objects are.

    One forward and one backward pass. Biases and nonlinearities are found in the layers of a model
    of any build and in the operations of functional graphs; what a layer computes with other
    constants or nonlinearities in its own code (attention, layer normalization, recurrent cells) is
    not in the sum, which `convergence_delta` shows.

    Args:
        model: a Keras model, channels last, with one input [batch, height, width, channels] or
            [batch, steps, channels]; see `Explainer`, as are `score` and `tap`.
        rescale: over what bias terms are brought to [0, 1] before they are summed: each "channel"
            by itself, or all those of a "layer" together, which keeps the channels' proportions.
            Defaults to "channel".

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences), at
    least 0; `score`, `target`, `predictions`; and `convergence_delta` [batch], the sum of the
    input's and all biases' terms less the score.

    Example:

    >>> result = FullGrad(model)(images)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Srinivas and Fleuret (2019), arxiv.org/abs/1905.00780
    """

    def __init__(self, model, rescale="channel", score=None, tap=None):
        if rescale not in ("channel", "layer"):
            raise ValueError(f'`rescale` must be "channel" or "layer". Received: {rescale!r}')
        super().__init__(model, score=score, tap=tap)
        self.rescale = rescale

    def attribute(self, values, target, inputs):
        if keras.tree.is_nested(values) or values.shape.rank not in (3, 4):
            shapes = keras.tree.map_structure(lambda x: x.shape, values)
            raise ValueError(
                "FullGrad explains one input of shape [batch, height, width, channels] or [batch, "
                f"steps, channels]. Received: {shapes}"
            )
        decomposed = super().attribute(values, target, inputs)
        size = input_size(values, values.shape.rank - 2)
        # Dense layers have no places, and no part in the map.
        terms = [
            x for x in decomposed.pop("bias_terms").values() if x.shape.rank == values.shape.rank
        ]
        saliency = _psi(decomposed.pop("input_term"), "layer", size)
        for term in terms:
            saliency += tf.cast(_psi(term, self.rescale, size), saliency.dtype)
        return {"attributions": saliency, **decomposed}

    def get_config(self):
        return {"rescale": self.rescale}


def _psi(term, over, size):
    """upsample(rescale(|term|)), summed over the channels, [batch, *size]."""
    magnitude = tf.abs(term)
    rank = term.shape.rank
    axes = range(1, rank - 1) if over == "channel" else range(1, rank)
    magnitude -= tf.reduce_min(magnitude, axes, keepdims=True)
    rescaled = tf.math.divide_no_nan(magnitude, tf.reduce_max(magnitude, axes, keepdims=True))
    return resize_map(tf.reduce_sum(rescaled, axis=-1), size)
