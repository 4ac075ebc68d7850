"""Expected gradients: integrated gradients averaged over a background of baselines.

    EG_i(x) = E_{x' ~ D, a ~ U(0, 1)} [ (x_i - x'_i) dF/dx_i (x' + a (x - x')) ]
    sum_i EG_i(x) = F(x) - E_D F                                          (completeness)

"Improving performance of deep learning models with axiomatic attribution priors and expected
gradients", Erion, Janizek, Sturmfels, Lundberg, Lee, 2019, arXiv 1906.10670; the section "Expected
gradients". The SHAP library's GradientExplainer is this method. Captum's GradientShap adds Gaussian
noise to the input of each draw: that is `noise` here.

Open choices: F is the logit, not the probability. All rows of a batch share the draws of (x', a),
which depend on the seed alone, so that an answer does not depend on the company in which a server's
batcher sends the request. During training (section "Attribution priors") the background is the
batch itself, and draws differ from row to row and from step to step: `BatchExpectedGradients`.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.baselines import sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.graph import input_structure
from kzoo.explain.quadrature import nodes_and_weights
from kzoo.papers import Example, component
from kzoo.regularizers.attribution_priors import PAPER

_SAMPLINGS = ("random", "grid")


def _example():
    background = np.random.default_rng(1).uniform(size=(3, 8, 8, 3))
    return {"background": background, "samples": 6}


@component(PAPER, example=Example(kwargs=_example))
class ExpectedGradients(Explainer):
    """Attributions that add up to the difference of the score from its mean over a background.

    No baseline has to be chosen: a feature matters by how far it is from what is usual. Also known
    as GradientSHAP.

    Args:
        model: see `Explainer`, as are `score`, `tap` and `rows`.
        background: [references, ...], inputs of the model (a structure of arrays, for several)
            from the distribution D, for example 100 of the training data. With `tap`, too, they are
            inputs; the references are then what the tapped layer makes of them.
        samples: number of gradients for each row, at least 1. Defaults to 200.
        sampling: "random" draws pairs of a reference and a place on the way from it; "grid" takes
            every reference with the same number of Gauss-Legendre nodes, so that no chance is left:
            then `samples` must be a multiple of the number of references. Defaults to "random".
        noise: standard deviation of Gaussian noise that is added to the input in each draw, in the
            units of the input. Defaults to 0.
        seed: integer from which the draws and the noise come. Defaults to 0.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`;
    and `convergence_delta` [batch], the sum of the attributions less F(x) - mean F(background).

    Example:

    >>> result = ExpectedGradients(model, background=x_train[:100])(images)
    >>> result["attributions"].shape == images.shape
    True

    Reference:
        Erion et al. (2019), section "Expected gradients", arxiv.org/abs/1906.10670
    """

    def __init__(
        self,
        model,
        background,
        samples=200,
        sampling="random",
        noise=0.0,
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        super().__init__(model, score=score, tap=tap, rows=rows)
        self.background = _arrays(model, background)
        self.references = len(keras.tree.flatten(self.background)[0])
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        if sampling not in _SAMPLINGS:
            raise ValueError(
                f"`sampling` must be one of {', '.join(_SAMPLINGS)}. Received: {sampling!r}"
            )
        if sampling == "grid" and samples % self.references:
            raise ValueError(
                "`samples` must be a multiple of the number of references, "
                f"{self.references}, on a grid. Received: {samples}"
            )
        if not isinstance(noise, int | float) or not noise >= 0:
            raise ValueError(f"`noise` must be a number of at least 0. Received: {noise!r}")
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer. Received: {seed!r}")
        self.samples = samples
        self.sampling = sampling
        self.noise = noise
        self.seed = seed

    def attribute(self, values, target, inputs):
        background = keras.tree.map_structure(
            lambda x, rows: tf.constant(rows, x.dtype), inputs, self.background
        )
        references = background if self.tap is None else self._tapped(background)
        scored = self.scores(values, target, inputs)
        reference, alpha, weights = self._draws(scored["score"].dtype)
        noisy = self._noisy(values)

        def points(step):
            start = keras.tree.map_structure(
                lambda x: tf.gather(x, tf.gather(reference, step))[:, tf.newaxis], references
            )
            return _on_the_way(start, noisy(step), tf.gather(alpha, step)[:, tf.newaxis])

        attributions = _sum_of_products(self, points, weights, scored["target"], inputs)
        usual = self._mean_score(references, background, scored["target"], scored["score"].dtype)
        return {
            "attributions": attributions,
            **scored,
            "convergence_delta": sum_per_row(attributions) - (scored["score"] - usual),
        }

    def _draws(self, dtype):
        """The number of the reference, the place and the weight of each sample, [samples]."""
        if self.sampling == "grid":
            count = self.references
            nodes, weights = nodes_and_weights("gauss_legendre", self.samples // count)
            return (
                tf.constant(np.repeat(np.arange(count), len(nodes)), tf.int32),
                tf.constant(np.tile(nodes, count), dtype),
                tf.constant(np.tile(weights / count, count), dtype),
            )
        # The algorithm is named, because the default one is the device's choice.
        shape, alg = [self.samples], "philox"
        return (
            tf.random.stateless_uniform(
                shape, [self.seed, 0], maxval=self.references, dtype=tf.int32, alg=alg
            ),
            tf.random.stateless_uniform(shape, [self.seed, 1], dtype=dtype, alg=alg),
            tf.fill(shape, tf.constant(1 / self.samples, dtype)),
        )

    def _noisy(self, values):
        """For steps int32 [k]: the values [1, batch, ...], or [k, batch, ...] with their noise."""
        if not self.noise:
            return lambda step: keras.tree.map_structure(lambda x: x[tf.newaxis], values)
        leaves = keras.tree.flatten(values)
        noises = [
            self.noise
            * tf.random.stateless_normal(
                tf.concat([[self.samples, 1], tf.shape(x)[1:]], 0),
                seed=[self.seed, 2 + position],
                dtype=x.dtype,
                alg="philox",
            )
            for position, x in enumerate(leaves)
        ]
        return lambda step: keras.tree.pack_sequence_as(
            values,
            [x + tf.gather(noise, step) for x, noise in zip(leaves, noises, strict=True)],
        )

    def _mean_score(self, references, background, target, dtype):
        """The mean score of the background for the target of each row, [batch]."""
        some_class = tf.zeros([self.references], tf.int32)
        outputs = self.scores(references, some_class, background)["predictions"]
        batch = tf.shape(target)[0]

        def points(step):
            return keras.tree.map_structure(
                lambda x: tf.repeat(tf.gather(x, step)[:, tf.newaxis], batch, axis=1), outputs
            )

        return self.weighted_sum(
            lambda outputs, target, _: tf.cast(self.score(outputs, target)[0], dtype),
            points,
            tf.fill([self.references], tf.constant(1 / self.references, dtype)),
            target,
            (),
        )

    def get_config(self):
        return {
            "background": keras.tree.map_structure(np.ndarray.tolist, self.background),
            "samples": self.samples,
            "sampling": self.sampling,
            "noise": self.noise,
            "seed": self.seed,
            "rows": self.rows,
        }


@component(PAPER, not_served="what a row gets depends on its batch")
class BatchExpectedGradients(Explainer):
    """Expected gradients whose references are other rows of the batch: for attribution priors.

    One sample is enough in training, where the optimizer averages over the steps: the price is that
    of one gradient. Sample s of row r begins at row r - s - 1, around the end, so batches must be
    shuffled; each sample of each row has its own random place on the way. Under `tf.distribute`
    the references are rows of the replica's own share. A batch of one has no other row: its
    attributions are 0. What a row gets depends on its batch, so this is nothing to serve:
    `ExpectedGradients` is.

    Args:
        model: see `Explainer`, as are `score` and `tap`. Of several inputs a reference is the same
            row of all.
        samples: number of references for each row, at least 1. Defaults to 1.
        seed: seed of `seed_generator`, from which the places come. Defaults to 0.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`.

    Example:

    >>> prior = kzoo.regularizers.AttributionTotalVariation()
    >>> explainer = BatchExpectedGradients(model)
    >>> trainer = kzoo.training.ExplanationGuided(model, explainer, prior, weight=0.01)

    Reference:
        Erion et al. (2019), section "Expected gradients", arxiv.org/abs/1906.10670
    """

    def __init__(self, model, samples=1, seed=0, score=None, tap=None):
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        if not isinstance(seed, int):
            raise ValueError(f"`seed` must be an integer. Received: {seed!r}")
        super().__init__(model, score=score, tap=tap)
        self.samples = samples
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def attribute(self, values, target, inputs):
        scored = self.scores(values, target, inputs)
        dtype = scored["score"].dtype
        batch = tf.shape(target)[0]
        alpha = keras.random.uniform([self.samples, batch], dtype=dtype, seed=self.seed_generator)

        def points(step):
            shift = 1 + step % tf.maximum(batch - 1, 1)
            row = (tf.range(batch) - shift[:, tf.newaxis]) % batch
            start = keras.tree.map_structure(lambda x: tf.gather(x, row), values)
            end = keras.tree.map_structure(lambda x: x[tf.newaxis], values)
            return _on_the_way(start, end, tf.gather(alpha, step))

        weights = tf.fill([self.samples], tf.constant(1 / self.samples, dtype))
        attributions = _sum_of_products(self, points, weights, scored["target"], inputs)
        return {"attributions": attributions, **scored}

    def sum_over_steps(self, evaluate, steps, batch):
        # Training keeps every step for the second derivative: a loop would save nothing, and XLA
        # cannot differentiate one whose chunks depend on the batch.
        return evaluate(tf.range(steps))

    def get_config(self):
        return {"samples": self.samples, "seed": self.seed}


def _on_the_way(start, end, alpha):
    """The points start + alpha (end - start) and the differences end - start.

    Args:
        start, end: structures of [k or 1, batch or 1, ...].
        alpha: [k, batch or 1].
    """
    difference = keras.tree.map_structure(tf.subtract, end, start)
    point = keras.tree.map_structure(
        lambda x, way: x + _expand_like(tf.cast(alpha, way.dtype), way) * way, start, difference
    )
    return point, difference


def _sum_of_products(explainer, points, weights, target, inputs):
    """The weighted sum of (x - x') dF/dx over the points and differences that `points` gives."""

    def products(drawn, target, inputs):
        point, difference = drawn
        gradients, _ = explainer.gradients(point, target, inputs)
        return keras.tree.map_structure(tf.multiply, difference, gradients)

    return explainer.weighted_sum(products, points, weights, target, inputs)


def _expand_like(alpha, x):
    return tf.reshape(alpha, tf.concat([tf.shape(alpha), [1] * (x.shape.rank - 2)], 0))


def _arrays(model, background):
    """The background as arrays, in the structure of the model's inputs."""
    known = input_structure(model)
    if known is None:
        structured = isinstance(background, dict) or _holds_arrays(background)
        known = background if structured else 0
    try:
        arrays = keras.tree.map_structure_up_to(known, np.asarray, background)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`background` must have the structure of the model's inputs, "
            f"{keras.tree.map_structure(lambda _: 'array', known)}. Received: {type(background)}"
        ) from error
    leaves = keras.tree.flatten(arrays)
    if any(x.ndim == 0 for x in leaves) or len({len(x) for x in leaves}) != 1 or not len(leaves[0]):
        raise ValueError(
            "`background` must have the same number of references, at least 1, in its first axis "
            f"for each input. Received: {[x.shape for x in leaves]}"
        )
    if input_structure(model) is not None:
        for x, tensor in zip(leaves, keras.tree.flatten(known), strict=True):
            if not tf.TensorShape(tensor.shape[1:]).is_compatible_with(x.shape[1:]):
                raise ValueError(
                    f"`background` must have the shape [references, *{list(tensor.shape[1:])}]. "
                    f"Received: {list(x.shape)}"
                )
    if not all(np.isfinite(x).all() for x in leaves if np.issubdtype(x.dtype, np.floating)):
        raise ValueError("`background` must be finite. Received: NaN or infinity in it")
    return arrays


def _holds_arrays(background):
    return isinstance(background, list | tuple) and hasattr(background[0], "shape")
