"""Integrated Jacobians: which pairs of features make two inputs alike for a siamese encoder.

    J_a = integral_0^1 de/dx (r + t (a - r)) dt
    A_ij = (a - r)_i  (J_a^T J_b)_ij  (b - r)_j                  (equation 5)
    sum_ij A_ij = f(a, b) - f(a, r) - f(r, b) + f(r, r),   f(a, b) = e(a) . e(b)

summed over the embedding dimensions to a matrix of tokens (or places) by tokens.

"An Attribution Method for Siamese Encoders", Moeller, Nikolaev, Pado, 2023, arXiv 2310.05703.

Deviations: a Gauss-Legendre rule instead of equal steps. The cosine variant normalizes e inside, so
that a reference whose encoding is zero has no direction: its terms are then zero.
"""

import keras
import tensorflow as tf

from kzoo.explain.baselines import baseline_config, broadcast_baseline
from kzoo.explain.explainer import Explainer, merge_steps, tile_steps
from kzoo.explain.graph import find_layer, on_output, replace_call
from kzoo.explain.quadrature import nodes_and_weights
from kzoo.papers import Paper, component

PAPER = Paper(
    title="An Attribution Method for Siamese Encoders",
    authors=("Lucas Moeller", "Dmitry Nikolaev", "Sebastian Pado"),
    year=2023,
    arxiv="2310.05703",
)


@component(PAPER)
class IntegratedJacobians(Explainer):
    """Attributions of the similarity of two inputs to pairs of their features.

    It costs `steps` times the encoding's size in gradients for each of both inputs.

    Args:
        model: a model of two inputs of which both go through `encoder`.
        encoder: the layer or nested model e (or its name) that maps one input to [batch, size].
        steps: number of points on each path. Defaults to 50.
        reference: where the paths begin: a number, or an array of the shape of one input (of the
            tapped output, with `tap`). Defaults to 0.
        cosine: whether encodings are scaled to length 1, for cosine similarities. Defaults to
            False.
        tap: name of the encoder's embedding layer, for integer inputs; see `Explainer`.
        rows: see `Explainer`.
        rule: quadrature rule, see `kzoo.explain.quadrature`. Defaults to "gauss_legendre".

    Returns (when called): `attributions` [batch, tokens of a, tokens of b] (features or places of
    inputs without tokens); `score` [batch], e(a) . e(b); `target`, as it came; `predictions`;
    `convergence_delta` [batch], their sum less the four terms above.

    Example:

    >>> explainer = IntegratedJacobians(model, "encoder", tap="embedding")
    >>> explainer([a, b])["attributions"].shape
    TensorShape([batch, tokens, tokens])

    Reference:
        Moeller et al. (2023), equation 5, arxiv.org/abs/2310.05703
    """

    differentiates_inputs = False

    def __init__(
        self,
        model,
        encoder,
        steps=50,
        reference=0.0,
        cosine=False,
        tap=None,
        rows="auto",
        rule="gauss_legendre",
    ):
        super().__init__(model, rows=rows)
        self.encoder = find_layer(model, encoder)
        self.embedding = None if tap is None else find_layer(self.encoder, tap)
        self.nodes, self.weights = nodes_and_weights(rule, steps)
        self.steps, self.rule = steps, rule
        self.reference = reference
        self.cosine = bool(cosine)

    def attribute(self, values, target, inputs):
        pair = keras.tree.flatten(inputs)
        if len(pair) != 2:
            raise ValueError(f"A siamese model has two inputs. Received a model with {len(pair)}.")
        points = [self._embed(x) for x in pair]
        starts = [broadcast_baseline(self.reference, x) for x in points]
        shares = [self._integrate(*each) for each in zip(points, starts, pair, strict=True)]
        attributions = tf.einsum("ebi,ebj->bij", *shares)
        ends, begins = (
            [self._encode(x, tokens) for x, tokens in zip(each, pair, strict=True)]
            for each in (points, starts)
        )
        score = tf.reduce_sum(ends[0] * ends[1], -1)
        change = tf.reduce_sum((ends[0] - begins[0]) * (ends[1] - begins[1]), -1)
        return {
            "attributions": attributions,
            "score": score,
            "target": target,
            "predictions": self.predict(inputs),
            "convergence_delta": tf.reduce_sum(attributions, [1, 2]) - change,
        }

    def _embed(self, x):
        """What the paths go through: the input, or the output of the embedding layer."""
        if self.embedding is None:
            if not x.dtype.is_floating:
                raise ValueError(
                    f"There is no path between inputs of dtype {x.dtype.name}. Pass `tap`, the "
                    "name of the encoder's embedding layer."
                )
            return x
        seen = []
        with replace_call(self.embedding, on_output(lambda y: seen.append(y) or y)):
            self.encoder(x, training=False)
        return seen[-1]

    def _encode(self, values, inputs):
        if self.embedding is None:
            encoding = self.encoder(values, training=False)
        else:
            with replace_call(self.embedding, on_output(lambda y: tf.cast(values, y.dtype))):
                encoding = self.encoder(inputs, training=False)
        encoding = tf.cast(encoding, keras.config.floatx())
        return tf.math.l2_normalize(encoding, -1) if self.cosine else encoding

    def _integrate(self, values, start, inputs):
        """(x - r)_i times the integrated Jacobian, [encoding size, batch, places]."""
        way, batch = values - start, tf.shape(values)[0]
        size = self._encode(values[:0], inputs[:0]).shape[-1]
        nodes, weights = (tf.constant(x, values.dtype) for x in (self.nodes, self.weights))

        def evaluate(step):
            node, unit = step % self.steps, step // self.steps
            place = tf.reshape(tf.gather(nodes, node), [-1] + [1] * values.shape.rank)
            rows = merge_steps(start + place * way)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(rows)
                encoding = self._encode(rows, tile_steps(inputs, tf.size(step)))
                wanted = tf.gather(encoding, tf.repeat(unit, batch), batch_dims=1)
            gradient = tape.gradient(wanted, rows) * tile_steps(way, tf.size(step))
            shares = gradient if values.shape.rank == 2 else tf.reduce_sum(gradient, -1)
            shares = tf.reshape(shares, [tf.size(step), batch, -1])
            weight = tf.gather(weights, node)[:, tf.newaxis, tf.newaxis]
            return tf.math.unsorted_segment_sum(weight * shares, unit, size)

        return self.sum_over_steps(evaluate, self.steps * size, batch)

    def get_config(self):
        return {
            "encoder": self.encoder.name,
            "steps": self.steps,
            "reference": baseline_config(self.reference),
            "cosine": self.cosine,
            "tap": None if self.embedding is None else self.embedding.name,
            "rows": self.rows,
            "rule": self.rule,
        }
