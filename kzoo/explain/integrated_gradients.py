"""Integrated gradients: the gradient averaged along the straight path from a baseline.

    IG_i(x) = (x_i - x'_i) * integral_0^1 dF/dx_i (x' + a (x - x')) da
    sum_i IG_i(x) = F(x) - F(x')            (completeness)

"Axiomatic Attribution for Deep Networks", Sundararajan, Taly, Yan, 2017, arXiv 1703.01365;
equation 1, completeness in proposition 1.

Deviations: the paper sums 20 to 300 equal steps; the default here is a Gauss-Legendre rule of 50
nodes, which needs fewer for the same error. F is the logit, not the probability.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline, sum_per_row
from kzoo.explain.explainer import Explainer
from kzoo.explain.quadrature import nodes_and_weights
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Axiomatic Attribution for Deep Networks",
    authors=("Mukund Sundararajan", "Ankur Taly", "Qiqi Yan"),
    year=2017,
    arxiv="1703.01365",
)


@component(PAPER, example=Example(kwargs={"steps": 8}))
class IntegratedGradients(Explainer):
    """Attributions that add up to the difference of the scores of input and baseline.

    Args:
        model: see `Explainer`, as are `score`, `tap` and `rows`.
        steps: number of points on the path. Defaults to 50.
        baseline: where the path begins: a number, or an array of the shape of one input without
            the batch (a structure of either, for several inputs). Defaults to 0.
        rule: quadrature rule, see `kzoo.explain.quadrature`. Defaults to "gauss_legendre".
        request: which of "steps" and "baseline" come with each request, a value for each row,
            instead of being fixed. `steps` is then the most that a request may ask for, also by
            -1, and the time is that of the row with the most; `baseline` has the form of the
            inputs, of which there must be one, without a `tap`. Defaults to neither.

    Returns (when called): `attributions` of the input's shape; `score`, `target`, `predictions`;
    and `convergence_delta` [batch], the sum of the attributions less F(x) - F(baseline): what the
    quadrature left out.

    Example:

    >>> result = IntegratedGradients(model)(images)
    >>> result["attributions"].shape == images.shape
    True
    >>> explainer = IntegratedGradients(model, steps=200, request=["steps"])
    >>> result = explainer(images, steps=20)

    Reference:
        Sundararajan et al. (2017), equation 1, arxiv.org/abs/1703.01365
    """

    def __init__(
        self,
        model,
        steps=50,
        baseline=0.0,
        rule="gauss_legendre",
        request=(),
        score=None,
        tap=None,
        rows="auto",
    ):
        super().__init__(model, score=score, tap=tap, rows=rows)
        if not set(request) <= {"steps", "baseline"}:
            raise ValueError(f'`request` may name "steps" and "baseline". Received: {request!r}')
        if "baseline" in request and self.tap is not None:
            raise ValueError("A request's baseline is one of the inputs; it cannot go with `tap`.")
        self.nodes, self.weights = nodes_and_weights(rule, steps)
        self.steps, self.rule, self.request = steps, rule, tuple(request)
        self.baseline = baseline

    def request_specs(self, spec):
        specs = {}
        if "steps" in self.request:
            specs["steps"] = tf.TensorSpec([None], tf.int32, "steps")
        if "baseline" in self.request:
            if keras.tree.is_nested(spec):
                raise ValueError(
                    "A request's `baseline` is for models with one input. Received a model with "
                    f"{len(keras.tree.flatten(spec))}."
                )
            specs["baseline"] = tf.TensorSpec(spec.shape, spec.dtype, "baseline")
        return specs

    def attribute(self, values, target, inputs, steps=None, baseline=None):
        baseline = broadcast_baseline(self.baseline, values) if baseline is None else baseline
        nodes, weights = self._rule(steps)
        scored = self.scores(values, target, inputs)
        difference = keras.tree.map_structure(tf.subtract, values, baseline)

        def path(step):
            return keras.tree.map_structure(
                lambda start, way: start + _outer(tf.gather(nodes, step), way),
                baseline,
                difference,
            )

        gradients = self.weighted_sum(
            lambda *rows: self.gradients(*rows)[0],
            path,
            tf.cast(weights, scored["score"].dtype),
            scored["target"],
            inputs,
        )
        attributions = keras.tree.map_structure(tf.multiply, difference, gradients)
        start = self.scores(baseline, scored["target"], inputs)["score"]
        return {
            "attributions": attributions,
            **scored,
            "convergence_delta": sum_per_row(attributions) - (scored["score"] - start),
        }

    def _rule(self, steps):
        """Nodes and weights, both [steps], or [most steps, batch] where rows have their own."""
        if steps is None:
            return tf.constant(self.nodes), tf.constant(self.weights)
        fewest = 2 if self.rule == "trapezoid" else 1
        steps = tf.where(steps == -1, self.steps, steps)
        checked = tf.debugging.Assert(
            tf.reduce_all((steps >= fewest) & (steps <= self.steps)),
            [f"`steps` must be from {fewest} to {self.steps}, or -1 for those. Received:", steps],
        )
        with tf.control_dependencies([] if checked is None else [checked]):
            row, most = steps - fewest, tf.reduce_max(steps)
        table = [nodes_and_weights(self.rule, n) for n in range(fewest, self.steps + 1)]
        padded = [
            np.stack([np.pad(rule[part], (0, self.steps - len(rule[part]))) for rule in table])
            for part in (0, 1)
        ]
        return [tf.transpose(tf.gather(part, row))[:most] for part in padded]

    def get_config(self):
        return {
            "steps": self.steps,
            "baseline": baseline_config(self.baseline),
            "rule": self.rule,
            "request": list(self.request),
            "rows": self.rows,
        }


def _outer(nodes, x):
    """nodes [k] or [k, batch] and x [batch, ...] -> [k, batch, ...]"""
    missing = 1 + x.shape.rank - nodes.shape.rank
    return tf.reshape(tf.cast(nodes, x.dtype), tf.concat([tf.shape(nodes), [1] * missing], 0)) * x
