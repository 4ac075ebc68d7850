"""SmoothGrad: the map of any explainer, averaged over noisy copies of the input.

    M(x) = 1/n sum_s M_base(x + sigma e_s),    e_s ~ N(0, 1),    sigma = level (max x - min x)

For the gradient this is the gradient of the score smoothed by a Gaussian of width sigma.

"SmoothGrad: removing noise by adding noise", Smilkov, Thorat, Kim, Viegas, Wattenberg, 2017,
arXiv 1706.03825; section 3. The mean of squares and the variance (SmoothGrad-Squared, VarGrad) are
the common variants.

Deviations: all images of a batch share the n noises, which depend on the seed alone, so that an
answer does not depend on the company in which a server's batcher sends the request.
"""

import keras
import tensorflow as tf

from kzoo.explain.composition import base_config, make_base
from kzoo.explain.explainer import Explainer
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="SmoothGrad: removing noise by adding noise",
    authors=(
        "Daniel Smilkov", "Nikhil Thorat", "Been Kim", "Fernanda Viegas", "Martin Wattenberg",
    ),
    year=2017,
    arxiv="1706.03825",
)  # fmt: skip

_REDUCTIONS = ("mean", "square", "variance")


@component(PAPER, example=Example(kwargs={"samples": 4}))
class SmoothGrad(Explainer):
    """The average of another explainer's maps of noisy copies of the input.

    Args:
        model: see `Explainer`, as are `score`, `tap` and `rows`.
        base: the explainer to smooth: None for the signed gradient, a class (made with `score` and
            `tap`), an instance for the same model, or {"class_name", "config"} as in `get_config`.
        samples: number n of noisy copies, at least 1. Defaults to 50.
        noise_level: standard deviation of the noise as a fraction of the range (maximum less
            minimum) of each input, at least 0; 0.1 to 0.2 look best. 0 gives the base's map bit for
            bit. Defaults to 0.15.
        reduction: "mean", "square" (mean of the squares) or "variance" of the maps. Defaults to
            "mean".
        seed: integer from which the noise comes. Defaults to 0.

    Returns (when called): `attributions` of the shape of the base's; `score`, `target` and
    `predictions` of the clean input, the target being chosen once.

    Example:

    >>> smooth = SmoothGrad(model, base=GradCAM, samples=20)(images)
    >>> smooth["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Smilkov et al. (2017), section 3, arxiv.org/abs/1706.03825
    """

    def __init__(
        self,
        model,
        base=None,
        samples=50,
        noise_level=0.15,
        reduction="mean",
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        if not noise_level >= 0:
            raise ValueError(f"`noise_level` must be at least 0. Received: {noise_level!r}")
        if reduction not in _REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {', '.join(_REDUCTIONS)}. Received: {reduction!r}"
            )
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer. Received: {seed!r}")
        self.base = make_base(model, base, score, tap)
        super().__init__(model, score=self.base.score, tap=self.base.tap, rows=rows)
        self.samples = samples
        self.noise_level = noise_level
        self.reduction = reduction
        self.seed = seed

    def attribute(self, values, target, inputs):
        scored = self.scores(values, target, inputs)
        # Without noise one copy is like the other.
        samples = self.samples if self.noise_level else 1

        def mean(function, shared):
            weights = tf.fill([samples], tf.constant(1 / samples, scored["score"].dtype))
            noisy = self._noisy(values, samples)
            return self.weighted_sum(function, noisy, weights, scored["target"], shared)

        def maps(values, target, inputs):
            return self.base.attribute(values, target, inputs)["attributions"]

        def squares(values, target, inputs):
            return keras.tree.map_structure(tf.square, maps(values, target, inputs))

        def deviations(values, target, shared):
            inputs, clean = shared
            deviation = keras.tree.map_structure(tf.subtract, maps(values, target, inputs), clean)
            return deviation, keras.tree.map_structure(tf.square, deviation)

        if self.reduction == "mean":
            reduced = mean(maps, inputs)
        elif self.reduction == "square":
            reduced = mean(squares, inputs)
        else:
            # About the clean map: the rounding is that of the deviations, not of the maps.
            first, second = mean(deviations, (inputs, maps(values, scored["target"], inputs)))
            reduced = keras.tree.map_structure(
                lambda m, s: tf.maximum(s - tf.square(m), 0), first, second
            )
        return {"attributions": reduced, **scored}

    def _noisy(self, values, samples):
        """Points for `weighted_sum`: steps int32 [k] -> noisy copies [k, batch, ...]."""
        leaves = keras.tree.flatten(values)
        noises = [
            # Named, because the default algorithm is the device's choice.
            tf.random.stateless_normal(
                tf.concat([[samples, 1], tf.shape(x)[1:]], 0),
                seed=[self.seed, position],
                dtype=x.dtype,
                alg="philox",
            )
            for position, x in enumerate(leaves)
        ]
        widths = [self.noise_level * _range_per_row(x) for x in leaves]
        return lambda steps: keras.tree.pack_sequence_as(
            values,
            [
                x + width * tf.gather(noise, steps)
                for x, width, noise in zip(leaves, widths, noises, strict=True)
            ],
        )

    def get_config(self):
        return {
            "base": base_config(self.base),
            "samples": self.samples,
            "noise_level": self.noise_level,
            "reduction": self.reduction,
            "seed": self.seed,
            "rows": self.rows,
        }


def _range_per_row(x):
    axes = range(1, x.shape.rank)
    return tf.reduce_max(x, axes, keepdims=True) - tf.reduce_min(x, axes, keepdims=True)
