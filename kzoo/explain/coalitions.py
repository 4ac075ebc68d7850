"""Explanations that are linear in the scores of an input with some of its regions hidden.

Feature ablation, Shapley values by sampling, Kernel SHAP and LIME differ only in which coalitions
of regions they keep, and in the coefficients with which the scores add up:

    phi_i = a_i F(x) + b_i F(baseline) + sum_s C_si F(x with the regions of coalition s)

Neither depends on the input, so both are computed once, when the explainer is made, and what is
served is a weighted sum: no regression is solved in the graph.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline
from kzoo.explain.explainer import Explainer, merge_steps, split_steps, tile_steps
from kzoo.explain.regions import Regions


@dataclass(frozen=True)
class Design:
    """Which coalitions are asked for, and what their scores contribute.

    Args:
        kept: bool [coalitions, regions].
        coefficients: float [coalitions, regions], C.
        whole: float [regions], a.
        empty: float [regions], b.
    """

    kept: np.ndarray
    coefficients: np.ndarray
    whole: np.ndarray
    empty: np.ndarray


class CoalitionExplainer(Explainer):
    """Base of the explainers that hide regions. A subclass implements `design`.

    Args:
        model: a model of one input, see `Explainer`, as are `score`, `tap` and `rows`. It is asked
            for predictions only; integer inputs are taken as well.
        regions: what is hidden together, see `Regions`.
        baseline: what hidden values become: a number or an array that broadcasts to one input.
            Defaults to 0.
    """

    differentiates_inputs = False

    def __init__(self, model, regions=None, baseline=0.0, score=None, tap=None, rows="auto"):
        super().__init__(model, score=score, tap=tap, rows=rows)
        self.regions = Regions(regions)
        self.baseline = baseline

    def design(self, regions):
        """The `Design` for a number of regions."""
        raise NotImplementedError

    def attribute(self, values, target, inputs):
        ids = self.regions.ids(values)
        design = self.design(self.regions.count(values.shape))
        scored = self.scores(values, target, inputs)
        whole, target = scored["score"], scored["target"]
        empty = broadcast_baseline(self.baseline, values)
        nothing = self.scores(empty, target, inputs)["score"]
        coefficients = tf.constant(design.coefficients, whole.dtype)
        kept = tf.constant(design.kept)

        def evaluate(step):
            hidden = _spread(tf.gather(kept, step), ids, values)
            score = self.scores(
                merge_steps(tf.where(hidden, values, empty)),
                tf.tile(target, tf.shape(step)),
                keras.tree.map_structure(lambda x: tile_steps(x, tf.size(step)), inputs),
            )["score"]
            score = split_steps(score, tf.size(step))
            return tf.tensordot(score, tf.gather(coefficients, step), [[0], [0]])

        phi = self.sum_over_steps(evaluate, len(design.kept), tf.shape(target)[0])
        phi += _outer(whole, design.whole) + _outer(nothing, design.empty)
        # Along the regions of each row; the regions may be the same for all rows.
        ids = tf.broadcast_to(ids, tf.concat([tf.shape(phi)[:1], tf.shape(ids)[1:]], 0))
        return {
            "attributions": tf.gather(phi, ids, batch_dims=1),
            "region_attributions": phi,
            **scored,
            "convergence_delta": tf.reduce_sum(phi, -1) - (whole - nothing),
        }

    def get_config(self):
        return {
            "regions": self.regions.to_config(),
            "baseline": baseline_config(self.baseline),
            "rows": self.rows,
        }


def _spread(kept, ids, values):
    """bool [k, batch, ...]: which values the coalitions `kept` [k, regions] leave as they are."""
    spread = tf.gather(kept, ids, axis=1)
    return spread if values.shape.rank == 2 else spread[..., tf.newaxis]


def _outer(score, weights):
    return score[:, tf.newaxis] * tf.constant(weights, score.dtype)
