"""RISE: the average of random masks, weighted by the scores of the images that they leave visible.

    S(x) = 1 / (N E[M]) sum_i f(x * M_i) M_i                (equation 6)

"RISE: Randomized Input Sampling for Explanation of Black-box Models", Petsiuk, Das, Saenko, 2018,
arXiv 1806.07421.

Deviations: all images of a batch see the same N masks, which depend on the seed alone, so that an
answer does not depend on the company in which a server's batcher sends the request.
"""

import keras
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline
from kzoo.explain.explainer import Explainer, merge_steps, split_steps, tile_steps
from kzoo.explain.random_masks import RandomMasks
from kzoo.explain.scores import probability_score
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="RISE: Randomized Input Sampling for Explanation of Black-box Models",
    authors=("Vitali Petsiuk", "Abir Das", "Kate Saenko"),
    year=2018,
    arxiv="1806.07421",
)


@component(PAPER, example=Example(kwargs={"samples": 8, "grid": 3}))
class RISE(Explainer):
    """A map of how much each pixel being visible raises the probability of the target.

    It asks for predictions only, so the model may be anything that maps images to scores.

    Args:
        model: a model of one input [height, width, channels]; see `Explainer`, as is `rows`.
        samples: number N of masks. Defaults to 4000, as in the paper.
        grid: cells of a mask in each direction. Defaults to 7.
        probability: of a cell to be visible, in (0, 1). Defaults to 0.5.
        baseline: what hidden pixels become: a number or an array that broadcasts to an image.
            Defaults to 0.
        seed: integer from which the masks come. Defaults to 0.
        score: see `Explainer`. Defaults to the probability of the target class.

    Returns (when called): `attributions` [batch, height, width], at least 0 for probabilities;
    `score`, `target`, `predictions`.

    Example:

    >>> result = RISE(model, samples=500)(images)
    >>> result["attributions"].shape == images.shape[:-1]
    True

    Reference:
        Petsiuk et al. (2018), equation 6, arxiv.org/abs/1806.07421
    """

    differentiates_inputs = False

    def __init__(
        self,
        model,
        samples=4000,
        grid=7,
        probability=0.5,
        baseline=0.0,
        seed=0,
        score=None,
        rows="auto",
    ):
        super().__init__(model, score=score or probability_score(model), rows=rows)
        self.masks = RandomMasks(samples, grid, probability, seed)
        self.baseline = baseline

    def attribute(self, values, target, inputs):
        scored = self.scores(values, target, inputs)
        explained = {"target": scored["target"]}
        return {"attributions": self.average_masks(values, explained), **scored}

    def average_masks(self, images, explained):
        """[batch, height, width]: the masks, weighted by `mask_weights` of the masked images."""
        if keras.tree.is_nested(images) or images.shape.rank != 4:
            shapes = keras.tree.map_structure(lambda x: x.shape, images)
            raise ValueError(
                "Random masks are for a model of one input [batch, height, width, channels]. "
                f"Received: {shapes}"
            )
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        draw = self.masks.draw(height, width)

        def evaluate(step):
            masks = draw(step)
            masked = merge_steps(self._hide(images, masks))
            repeated = {key: tile_steps(x, tf.size(step)) for key, x in explained.items()}
            weights = split_steps(self.mask_weights(masked, **repeated), tf.size(step))
            return tf.einsum("kb,kyx->byx", weights, tf.cast(masks, weights.dtype))

        total = self.sum_over_steps(evaluate, self.masks.count, batch)
        return total / (self.masks.count * self.masks.probability)

    def mask_weights(self, images, target):
        """Weights [n] of masks by what they leave of `images` [n, ...]."""
        return self.scores(images, target, images)["score"]

    def _hide(self, images, masks):
        """[k, batch, height, width, channels]"""
        masks = tf.cast(masks[:, tf.newaxis, ..., tf.newaxis], images.dtype)
        baseline = broadcast_baseline(self.baseline, images)
        return baseline + masks * (images - baseline)

    def get_config(self):
        masks = self.masks
        return {
            "samples": masks.count,
            "grid": masks.grid,
            "probability": masks.probability,
            "baseline": baseline_config(self.baseline),
            "seed": masks.seed,
            "rows": self.rows,
        }
