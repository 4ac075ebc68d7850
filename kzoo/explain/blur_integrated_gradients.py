"""Blur integrated gradients: the gradient integrated along a path of less and less blurred images.

    BlurIG(x) = integral_{sigma_max}^{0} dF/dL(x, sigma) * dL(x, sigma)/dsigma dsigma
    sum BlurIG = F(x) - F(L(x, sigma_max))                    (completeness)

with L(x, sigma) the image convolved with a Gaussian of this width.

"Attribution in Scale and Space", Xu, Venugopalan, Sundararajan, 2020, arXiv 2004.03383; equation 3.

Deviations: the Gaussian is cut off at the border and scaled to sum 1 there, so that a blurred image
fades to its mean and not to black; Gauss-Legendre nodes in sigma and the exact derivative of the
blur, instead of equal steps and differences.
"""

import keras
import tensorflow as tf

from kzoo.explain.baselines import sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.quadrature import nodes_and_weights
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Attribution in Scale and Space",
    authors=("Shawn Xu", "Subhashini Venugopalan", "Mukund Sundararajan"),
    year=2020,
    arxiv="2004.03383",
)


@component(PAPER, example=Example(kwargs={"steps": 8, "sigma": 2.0}))
class BlurIntegratedGradients(Explainer):
    """Attributions that add up to what sharpness gives to the score, without a colour as baseline.

    Args:
        model: a model of one input [batch, height, width, channels]; see `Explainer`, as are
            `score` and `rows`.
        steps: number of blurred images. Defaults to 50.
        sigma: standard deviation of the widest blur, in pixels, above 0. Defaults to an eighth of
            the image's longer side.
        rule: quadrature rule, see `kzoo.explain.quadrature`. Defaults to "gauss_legendre".

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`;
    `convergence_delta` [batch], the sum of the attributions less F(x) - F(blurred).

    Reference:
        Xu et al. (2020), equation 3, arxiv.org/abs/2004.03383
    """

    def __init__(self, model, steps=50, sigma=None, rule="gauss_legendre", score=None, rows="auto"):
        super().__init__(model, score=score, rows=rows)
        if sigma is not None and not sigma > 0:
            raise ValueError(f"`sigma` must be positive. Received: {sigma!r}")
        self.nodes, self.weights = nodes_and_weights(rule, steps)
        self.steps, self.sigma, self.rule = steps, sigma, rule

    def attribute(self, values, target, inputs):
        if keras.tree.is_nested(values) or values.shape.rank != 4:
            shapes = keras.tree.map_structure(lambda x: x.shape, values)
            raise ValueError(
                "Only images can be blurred: one input [batch, height, width, channels]. "
                f"Received: {shapes}"
            )
        scored = self.scores(values, target, inputs)
        longest = tf.cast(tf.reduce_max(tf.shape(values)[1:3]), values.dtype)
        widest = longest / 8 if self.sigma is None else tf.constant(self.sigma, values.dtype)

        def points(step):
            sigma = widest * tf.gather(tf.constant(self.nodes, values.dtype), step)
            return _blur(values, sigma)

        def product(rows, target, inputs):
            blurred, derivative = rows
            return derivative * self.gradients(blurred, target, blurred)[0]

        # Along the path sigma falls, against the direction of the derivative.
        weights = -widest * tf.constant(self.weights, values.dtype)
        attributions = self.weighted_sum(product, points, weights, scored["target"], inputs)
        start = _blur(values, widest[tf.newaxis])[0][0]
        start = self.scores(start, scored["target"], start)["score"]
        return {
            "attributions": attributions,
            **scored,
            "convergence_delta": sum_per_row(attributions) - (scored["score"] - start),
        }

    def get_config(self):
        return {"steps": self.steps, "sigma": self.sigma, "rule": self.rule, "rows": self.rows}


def _blur(images, sigma):
    """Images blurred by each of `sigma` [k], and the derivatives with respect to it.

    Both [k, batch, height, width, channels].
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    (down, down_change), (across, across_change) = _gaussian(height, sigma), _gaussian(width, sigma)

    def apply(rows, columns):
        blurred = tf.einsum("kyi,bixc->kbyxc", rows, images)
        return tf.einsum("kxj,kbyjc->kbyxc", columns, blurred)

    return apply(down, across), apply(down_change, across) + apply(down, across_change)


def _gaussian(size, sigma):
    """Matrices [k, size, size] that blur an axis, and their derivatives by sigma."""
    place = tf.cast(tf.range(size), sigma.dtype)
    square = tf.square(place[:, tf.newaxis] - place)
    sigma = sigma[:, tf.newaxis, tf.newaxis]
    kernel = tf.nn.softmax(-square / (2 * tf.square(sigma)), axis=-1)
    slope = square / sigma**3
    return kernel, kernel * (slope - tf.reduce_sum(kernel * slope, -1, keepdims=True))
