"""MoreauGrad: the gradient of the Moreau envelope of the score, smooth and, if wanted, sparse.

    delta* = argmin_delta  F(x + delta) + |delta|^2 / (2 rho) + eta |delta|_1
    MG(x)  = -delta* / rho

For eta = 0 this is the gradient at x of the envelope min_x' F(x') + |x' - x|^2 / (2 rho). With
groups the penalty is eta times the sum of the groups' Euclidean norms. F may be smoothed by
Gaussian noise, E F(x + z).

"MoreauGrad: Sparse and Robust Interpretation of Neural Networks via Moreau Envelope", Zhang,
Farnia, 2023, arXiv 2302.05294; definitions 1 to 3, algorithm 1.

Open choices: a fixed number of proximal gradient steps from delta = 0, half of rho long unless said
otherwise; each draws its noise anew, the same for all images of a batch.
"""

import keras
import tensorflow as tf

from kzoo.explain.explainer import Explainer
from kzoo.explain.regions import Regions
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="MoreauGrad: Sparse and Robust Interpretation of Neural Networks via Moreau Envelope",
    authors=("Jingwei Zhang", "Farzan Farnia"),
    year=2023,
    arxiv="2302.05294",
)


@component(PAPER, example=Example(kwargs={"steps": 4, "sparsity": 0.01}))
class MoreauGrad(Explainer):
    """A gradient that changes little where the input does, with few values other than zero.

    Args:
        model: see `Explainer`, as are `score`, `tap` and `rows`.
        rho: how far the envelope looks, above 0; towards 0 it gives the plain gradient. Defaults
            to 0.1.
        steps: number of proximal gradient steps. Defaults to 50.
        step_size: their length, in (0, rho]. Defaults to rho / 2.
        noise: standard deviation of the Gaussian noise, at least 0. Defaults to 0.
        samples: noises drawn in each step, at least 1. Defaults to 10; without noise it is 1.
        sparsity: eta, at least 0: gradients below it become zero. Defaults to 0.
        groups: what becomes zero together, see `Regions`; the channels of a place always do.
            None for each value by itself.
        seed: integer from which the noise comes; under XLA it gives other noise. Defaults to 0.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`.

    Reference:
        Zhang and Farnia (2023), algorithm 1, arxiv.org/abs/2302.05294
    """

    def __init__(
        self,
        model,
        rho=0.1,
        steps=50,
        step_size=None,
        noise=0.0,
        samples=10,
        sparsity=0.0,
        groups=None,
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        super().__init__(model, score=score, tap=tap, rows=rows)
        if not rho > 0:
            raise ValueError(f"`rho` must be positive. Received: {rho!r}")
        step_size = rho / 2 if step_size is None else step_size
        if not 0 < step_size <= rho:
            raise ValueError(f"`step_size` must be in (0, rho]. Received: {step_size!r}")
        for name, value in (("steps", steps), ("samples", samples)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        for name, value in (("noise", noise), ("sparsity", sparsity)):
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0. Received: {value!r}")
        self.rho, self.steps, self.step_size = rho, steps, step_size
        self.noise, self.samples, self.seed = noise, samples, seed
        self.sparsity = sparsity
        self.groups = None if groups is None else Regions(groups)

    def attribute(self, values, target, inputs):
        scored = self.scores(values, target, inputs)

        def descend(step, delta):
            gradient = self._gradient(step, values, delta, scored["target"], inputs)
            moved = keras.tree.map_structure(
                lambda d, g: (1 - self.step_size / self.rho) * d - self.step_size * g,
                delta,
                gradient,
            )
            return step + 1, keras.tree.map_structure(self._shrink, moved)

        _, delta = tf.while_loop(
            lambda step, _: step < self.steps,
            descend,
            (0, keras.tree.map_structure(tf.zeros_like, values)),
            maximum_iterations=self.steps,
        )
        attributions = keras.tree.map_structure(lambda d: -d / self.rho, delta)
        return {"attributions": attributions, **scored}

    def _gradient(self, step, values, delta, target, inputs):
        """The gradient at x + delta, averaged over the noises of this step."""
        moved = keras.tree.map_structure(tf.add, values, delta)
        if not self.noise:
            return self.gradients(moved, target, inputs)[0]
        leaves = keras.tree.flatten(moved)
        noises = [
            self.noise
            * tf.random.stateless_normal(
                tf.concat([[self.samples, 1], tf.shape(x)[1:]], 0),
                seed=[self.seed + position, step],
                dtype=x.dtype,
                alg="philox",
            )
            for position, x in enumerate(leaves)
        ]

        def points(sample):
            noisy = [x + tf.gather(z, sample) for x, z in zip(leaves, noises, strict=True)]
            return keras.tree.pack_sequence_as(values, noisy)

        weights = tf.fill([self.samples], tf.constant(1 / self.samples, leaves[0].dtype))
        return self.weighted_sum(
            lambda *rows: self.gradients(*rows)[0], points, weights, target, inputs
        )

    def _shrink(self, x):
        """The proximal operator of `step_size * sparsity` times the norm."""
        threshold = self.step_size * self.sparsity
        if not threshold:
            return x
        norm = tf.abs(x) if self.groups is None else self._group_norms(x)
        return x * tf.nn.relu(1 - threshold / tf.maximum(norm, threshold))

    def _group_norms(self, x):
        """At each place the Euclidean norm of its group, in a shape that broadcasts to x."""
        square = tf.square(x) if x.shape.rank == 2 else tf.reduce_sum(tf.square(x), -1)
        ids = tf.broadcast_to(self.groups.ids(x), tf.shape(square))
        batch, count = tf.shape(x)[0], self.groups.count(x.shape)
        first = count * tf.reshape(tf.range(batch), [-1] + [1] * (ids.shape.rank - 1))
        sums = tf.math.unsorted_segment_sum(square, ids + first, batch * count)
        norm = tf.sqrt(tf.gather(sums, ids + first))
        return norm if x.shape.rank == 2 else norm[..., tf.newaxis]

    def get_config(self):
        return {
            "rho": self.rho,
            "steps": self.steps,
            "step_size": self.step_size,
            "noise": self.noise,
            "samples": self.samples,
            "sparsity": self.sparsity,
            "groups": None if self.groups is None else self.groups.to_config(),
            "seed": self.seed,
            "rows": self.rows,
        }
