"""NormGrad: how much each place would change the weights of a convolution put in there.

An identity layer put in after a layer leaves its output x as it is, and the gradient of its weights
is a sum over places u of what x_u and the gradient g_u there contribute:

    bias       g_u                       scaling      g_u * x_u (by channel)
    1x1 conv   g_u x_u^T                 kxk conv     g_u patch_u(x)^T

A map is an aggregate of each place's contribution: the sum, the Euclidean (Frobenius) norm, the
norm of the positive part, or the maximum of its entries.

    NormGrad            1x1 or kxk conv, norm:      ||g_u|| ||patch_u(x)||
    selective NormGrad  scaling, norm of positive:  ||relu(g_u * x_u)||
    linear approximation   scaling, sum             sum_k g_uk x_uk
    Grad-CAM               scaling, sum, with g averaged over all places
    gradient               bias, maximum, of |g|

"There and Back Again: Revisiting Backpropagation Saliency Methods", Rebuffi, Fong, Ji, Vedaldi,
2020, arXiv 2004.02866; section 3 (framework), table 2 (methods). For several layers see
`CombinedLayers`.

Open choices: patches reach beyond the edge with zeros, as in the authors' code.
"""

import tensorflow as tf

from kzoo.explain.activation_map import ActivationMap
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="There and Back Again: Revisiting Backpropagation Saliency Methods",
    authors=("Sylvestre-Alvise Rebuffi", "Ruth Fong", "Xu Ji", "Andrea Vedaldi"),
    year=2020,
    arxiv="2004.02866",
)

_IDENTITIES = ("bias", "scaling", "conv")
_AGGREGATIONS = ("sum", "norm", "positive_norm", "max")


@component(PAPER, not_served="it is a function of tensors that explainers are made of")
def extract_and_aggregate(activations, gradients, identity, aggregation, kernel_size=1):
    """The framework of the paper: a map of what each place adds to the gradient of an identity.

    `identity="scaling", aggregation="sum"` is the linear approximation, or Grad-CAM where the
    gradients were averaged over the places before; "conv" and "norm" is NormGrad.

    Args:
        activations: x [batch, height, width, channels] or [batch, steps, channels], the output of
            the layer at which the identity is put in.
        gradients: g, of the same shape, of the score with respect to it.
        identity: the layer put in: "bias", "scaling" (a factor for each channel) or "conv".
        aggregation: "sum", "norm", "positive_norm" or "max", over the entries of the contribution.
        kernel_size: of the convolution, an odd number. Defaults to 1.

    Returns:
        Tensor [batch, height, width] or [batch, steps]. The outer products of "conv" are never
        made: the memory is that of the patches.

    Reference:
        Rebuffi et al. (2020), section 3 and table 2, arxiv.org/abs/2004.02866
    """
    _check_one_of("identity", identity, _IDENTITIES)
    _check_one_of("aggregation", aggregation, _AGGREGATIONS)
    _check_kernel_size(kernel_size)
    if activations.shape.rank not in (3, 4):
        raise ValueError(
            "`activations` must be of shape [batch, height, width, channels] or [batch, steps, "
            f"channels]. Received: {activations.shape}"
        )
    if identity == "conv":
        return _of_outer_product(gradients, _patches(activations, kernel_size), aggregation)
    contribution = gradients if identity == "bias" else gradients * activations
    if aggregation == "sum":
        return tf.reduce_sum(contribution, axis=-1)
    if aggregation == "max":
        return tf.reduce_max(contribution, axis=-1)
    positive = tf.nn.relu(contribution) if aggregation == "positive_norm" else contribution
    return tf.norm(positive, axis=-1)


@component(PAPER, example=Example())
class NormGrad(ActivationMap):
    """A map of the places where training on the image would change a convolution most.

    It is sharp at early layers as well, where Grad-CAM fails, but says less about the class.

    Args:
        model: see `ActivationMap`, as are `layer`, `upsample` and `score`.
        kernel_size: of the convolution put in, an odd number; a place has the activations around
            it with those there. Defaults to 1.
        selective: whether to take the norm of the positive part of g * x instead, the places that
            speak for the class. `kernel_size` must then be 1. Defaults to False.
        counterfactual: negates the gradients, which makes a difference to the selective map only.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences), at
    least 0; `score`, `target`, `predictions`.

    Example:

    >>> result = NormGrad(model, layer="conv2d", kernel_size=3)(images)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Rebuffi et al. (2020), table 2, arxiv.org/abs/2004.02866
    """

    def __init__(
        self,
        model,
        layer=None,
        kernel_size=1,
        selective=False,
        counterfactual=False,
        upsample=True,
        score=None,
    ):
        _check_kernel_size(kernel_size)
        if selective and kernel_size != 1:
            raise ValueError(
                f"`kernel_size` must be 1 for the selective map. Received: {kernel_size}"
            )
        super().__init__(
            model, layer=layer, counterfactual=counterfactual, upsample=upsample, score=score
        )
        self.kernel_size = kernel_size
        self.selective = bool(selective)

    def combine(self, activations, gradients):
        if self.selective:
            return extract_and_aggregate(activations, gradients, "scaling", "positive_norm")
        return extract_and_aggregate(activations, gradients, "conv", "norm", self.kernel_size)

    def get_config(self):
        return {
            "layer": self.layer.name,
            "kernel_size": self.kernel_size,
            "selective": self.selective,
            "counterfactual": self.counterfactual,
            "upsample": self.upsample,
        }


@component(PAPER, example=Example())
class LinearApproximation(ActivationMap):
    """Activations times gradients, place by place: Grad-CAM without its averaging of gradients.

    Args:
        model: see `ActivationMap`, as are `layer`, `counterfactual`, `upsample` and `score`.
        relu: whether to keep only positive values. Defaults to False.

    Returns (when called): `attributions` [batch, height, width] ([batch, steps] for sequences);
    `score`, `target`, `predictions`.

    Reference:
        Rebuffi et al. (2020), table 2, arxiv.org/abs/2004.02866
    """

    def __init__(
        self, model, layer=None, counterfactual=False, relu=False, upsample=True, score=None
    ):
        super().__init__(
            model,
            layer=layer,
            counterfactual=counterfactual,
            relu=relu,
            upsample=upsample,
            score=score,
        )

    def combine(self, activations, gradients):
        return extract_and_aggregate(activations, gradients, "scaling", "sum")


def _of_outer_product(g, x, aggregation):
    """Aggregate of the entries g_i x_j at each place, without making them."""
    if aggregation == "sum":
        return tf.reduce_sum(g, -1) * tf.reduce_sum(x, -1)
    if aggregation == "norm":
        return tf.norm(g, axis=-1) * tf.norm(x, axis=-1)
    if aggregation == "positive_norm":
        # g_i x_j is positive where both are, or neither is.
        both, neither = (
            tf.reduce_sum(tf.square(tf.nn.relu(sign * g)), -1)
            * tf.reduce_sum(tf.square(tf.nn.relu(sign * x)), -1)
            for sign in (1, -1)
        )
        return tf.sqrt(both + neither)
    ends = [(tf.reduce_min(each, -1), tf.reduce_max(each, -1)) for each in (g, x)]
    return tf.reduce_max(tf.stack([a * b for a in ends[0] for b in ends[1]]), axis=0)


def _patches(x, kernel_size):
    """[..., channels] -> [..., kernel_size^positions * channels], with zeros beyond the edge."""
    if kernel_size == 1:
        return x
    if x.shape.rank == 4:
        sizes = [1, kernel_size, kernel_size, 1]
        return tf.image.extract_patches(x, sizes, [1] * 4, [1] * 4, "SAME")
    sizes = [1, 1, kernel_size, 1]
    return tf.image.extract_patches(x[:, tf.newaxis], sizes, [1] * 4, [1] * 4, "SAME")[:, 0]


def _check_one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}. Received: {value!r}")


def _check_kernel_size(kernel_size):
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"`kernel_size` must be a positive odd number. Received: {kernel_size!r}")
