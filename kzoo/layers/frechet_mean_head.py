"""Loki: predict any label of a metric space from probabilities of the few that were trained.

    y^ = argmin over all labels y of  sum_i P_i d(y, y_i)^2

for the probabilities P_i of the observed labels y_i: the weighted Frechet mean of the observed
labels in place of the most probable one. With the 0-1 distance between labels that are all
observed it is argmax.

"Geometry-Aware Adaptation for Pretrained Models", Roberts, Li, Adila, Cromp, Huang, Zhao, Sala,
2023, arXiv 2307.12226; section 3.

Distances come from where the labels are. Of a graph or tree with sparse matrix `edges` they are
`scipy.sparse.csgraph.shortest_path(edges, directed=False)`, of class embeddings
`scipy.spatial.distance.cdist(embeddings, embeddings)`. Which labels can be predicted at all from
the observed ones is answered by `kzoo.analysis.label_locus`.

Open choices: of labels that are equally good the first is predicted; the paper leaves it open.
"""

import keras
import numpy as np
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Geometry-Aware Adaptation for Pretrained Models",
    authors=(
        "Nicholas Roberts",
        "Xintong Li",
        "Dyah Adila",
        "Sonia Cromp",
        "Tzu-Heng Huang",
        "Jitian Zhao",
        "Frederic Sala",
    ),
    year=2023,
    arxiv="2307.12226",
)

_OUTPUTS = ("scores", "label")


@component(
    PAPER,
    example=Example(
        kwargs={"labels": 5, "distances": [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], "temperature": 2.0},
        inputs=lambda rng, batch: (rng.dirichlet([1.0, 1.0], size=batch).astype("float32"),),
    ),
)
class FrechetMeanHead(keras.layers.Layer):
    """Turns probabilities of observed labels into scores, or the prediction, over all labels.

    Put it behind a trained classifier; it has nothing to train and costs one product of matrices.
    The distances are a weight that is not trained, so that weight files and SavedModels hold them,
    but the configuration does not: a layer made without them has NaN for distances, and scores,
    until weights are loaded. Under a 16-bit policy it computes, and returns, float32.

    Args:
        labels: size of the label space, at least 1.
        distances: [observed, labels], row i holds the distances d(y_i, y) of the observed label i
            to every label y: `matrix[observed]` of a square matrix. Finite and at least 0. None
            where weights will be loaded.
        temperature: T above 0; P is replaced by softmax(logits / T), which is P^(1/T) over its
            sum. Defaults to 1.
        from_logits: whether the inputs are logits. Defaults to False.
        output: "scores" for -sum_i P_i d(y, y_i)^2, whose argmax is the prediction; "label" for
            the prediction itself. Defaults to "scores".
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, ..., observed], probabilities or logits. Output shape: [batch, ..., labels]
    of scores, or int32 [batch, ...] of indices into the label space.

    Raises:
        ValueError: for arguments out of range, or inputs of another width than `distances` has
            rows.

    Example:

    >>> line = np.abs(np.array([[0], [4]]) - np.arange(5))  # labels 0 and 4 of 0, 1, 2, 3, 4
    >>> int(FrechetMeanHead(5, line, output="label")(np.array([[0.5, 0.5]]))[0])
    2

    Reference:
        Roberts et al. (2023), section 3, arxiv.org/abs/2307.12226
    """

    def __init__(
        self,
        labels,
        distances=None,
        temperature=1.0,
        from_logits=False,
        output="scores",
        dtype=None,
        **kwargs,
    ):
        if not isinstance(labels, int) or isinstance(labels, bool) or labels < 1:
            raise ValueError(f"`labels` must be an integer of at least 1. Received: {labels!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"`temperature` must be finite and above 0. Received: {temperature!r}")
        if output not in _OUTPUTS:
            raise ValueError(f"`output` must be one of {', '.join(_OUTPUTS)}. Received: {output!r}")
        policy = keras.dtype_policies.get(dtype)
        narrow = policy.compute_dtype in ("float16", "bfloat16")
        super().__init__(dtype="float32" if narrow else policy, **kwargs)
        self.labels = labels
        self.temperature = temperature
        self.from_logits = from_logits
        self.output_kind = output
        self._given = None if distances is None else _checked(distances, labels)

    def build(self, input_shape):
        observed = input_shape[-1]
        if self._given is not None and len(self._given) != observed:
            raise ValueError(
                f"`distances` must have one row per observed label, {observed} for inputs of shape "
                f"{tuple(input_shape)}. Received: {len(self._given)} rows"
            )
        given = np.nan if self._given is None else np.square(self._given)
        self.squared_distances = self.add_weight(
            name="squared_distances",
            shape=(observed, self.labels),
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                np.broadcast_to(given, shape), dtype
            ),
            trainable=False,
        )
        self._given = None  # the weight holds it now
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: observed})

    def call(self, inputs):
        cost = ops.matmul(self._probabilities(inputs), self.squared_distances)
        return ops.negative(cost) if self.output_kind == "scores" else ops.argmin(cost, axis=-1)

    def _probabilities(self, inputs):
        if self.from_logits:
            return ops.softmax(inputs / self.temperature, axis=-1)
        if self.temperature == 1:
            return inputs
        # The smallest normal number in place of 0 keeps the logarithm and its gradient finite.
        least = float(np.finfo(self.compute_dtype).tiny)
        return ops.softmax(ops.log(ops.maximum(inputs, least)) / self.temperature, axis=-1)

    def compute_output_shape(self, input_shape):
        leading = tuple(input_shape[:-1])
        return (*leading, self.labels) if self.output_kind == "scores" else leading

    def compute_output_spec(self, inputs):
        dtype = self.compute_dtype if self.output_kind == "scores" else "int32"
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "labels": self.labels,
            "distances": None,
            "temperature": self.temperature,
            "from_logits": self.from_logits,
            "output": self.output_kind,
        }


def _checked(distances, labels):
    distances = np.asarray(distances, "float64")
    if distances.ndim != 2 or distances.shape[1] != labels:
        raise ValueError(
            f"`distances` must be [observed, labels] with {labels} labels. "
            f"Received: shape {distances.shape}"
        )
    if not np.all(np.isfinite(distances) & (distances >= 0)):
        raise ValueError(
            "`distances` must be finite and at least 0; labels that no path joins have no "
            f"distance. Received: values from {distances.min()} to {distances.max()}"
        )
    return distances
