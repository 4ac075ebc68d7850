"""Fréchet distance of two sets of features: how far generated images are from real ones.

    d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)

of the Gaussians with the means and covariances of the sets; on features of InceptionV3's last
pooling, it is the Fréchet inception distance (FID).

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", Heusel,
Ramsauer, Unterthiner, Nessler, Hochreiter, 2017, arXiv 1706.08500; equation 6.

The equation has tr (C_1 C_2)^1/2. The matrix under the root here has the same eigenvalues, and is
symmetric: so its root is real, and comes from an eigendecomposition without an offset on the
diagonal where a covariance is singular, as it is with fewer samples than features. Covariances are
the unbiased ones (divided by n - 1), as in the authors' code.

Deviations: none. Published FIDs need the very weights that the authors' code loads; any features
will do here, also those of `keras.applications.InceptionV3(include_top=False, pooling="avg")`.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.papers import Paper, component

PAPER = Paper(
    title="GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    authors=(
        "Martin Heusel", "Hubert Ramsauer", "Thomas Unterthiner", "Bernhard Nessler",
        "Sepp Hochreiter",
    ),
    year=2017,
    arxiv="1706.08500",
)  # fmt: skip


@component(PAPER)
def frechet_distance(mean_1, covariance_1, mean_2, covariance_2):
    """The squared Fréchet distance of two Gaussians, d^2.

    Args:
        mean_1, mean_2: [d].
        covariance_1, covariance_2: [d, d], symmetric and positive semidefinite.

    Returns:
        float64 scalar tensor, at least 0.

    Reference:
        Heusel et al. (2017), equation 6, arxiv.org/abs/1706.08500
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        tf.cast(x if tf.is_tensor(x) else np.asarray(x), tf.float64)
        for x in (mean_1, covariance_1, mean_2, covariance_2)
    )
    root = _square_root(covariance_1)
    product = root @ covariance_2 @ root
    # The trace of a root is the sum of the roots of the eigenvalues.
    eigenvalues = tf.linalg.eigvalsh((product + tf.transpose(product)) / 2)
    cross = tf.reduce_sum(tf.sqrt(tf.maximum(eigenvalues, 0)))
    traces = tf.linalg.trace(covariance_1) + tf.linalg.trace(covariance_2)
    squared = tf.reduce_sum(tf.square(mean_1 - mean_2)) + traces - 2 * cross
    return tf.maximum(squared, 0)


@component(PAPER)
class FrechetDistance(keras.metrics.Metric):
    """The squared Fréchet distance of two streams of features.

    Counts, sums and sums of outer products are kept in float64, 2 d^2 numbers, so batches may be of
    any size and the sets of different sizes; under a `tf.distribute` strategy, and in
    `merge_state`, they are added up.

    Features with a mean far beyond their spread, by a factor of 1e6 or more, lose digits: centre
    them first.

    Args:
        dim: number of features, d.
        name: of the metric.
        dtype: of the result.

    Example:

    >>> metric = FrechetDistance(2048)
    >>> for images in real:
    ...     metric.update_reference(extractor(images))
    >>> for images in fakes:
    ...     metric.update_generated(extractor(images))
    >>> float(metric.result())

    Reference:
        Heusel et al. (2017), equation 6, arxiv.org/abs/1706.08500
    """

    def __init__(self, dim, name="frechet_distance", dtype=None):
        super().__init__(name=name, dtype=dtype)
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"`dim` must be a positive integer. Received: {dim!r}")
        self.dim = dim
        self._reference = self._add_moments("reference")
        self._generated = self._add_moments("generated")

    def update_state(self, y_true, y_pred):
        """Adds features of the reference set, `y_true`, and of the generated one, `y_pred`.

        Both are float [batch, d]; their batches may differ.
        """
        self.update_reference(y_true)
        self.update_generated(y_pred)

    def update_reference(self, features):
        """Adds features of the reference set, float [batch, d]."""
        self._add(self._reference, "reference", features)

    def update_generated(self, features):
        """Adds features of the generated set, float [batch, d]."""
        self._add(self._generated, "generated", features)

    def merge_state(self, metrics):
        """Adds what other metrics of the same `dim` have seen."""
        for metric in metrics:
            for ours, theirs in zip(self.variables, metric.variables, strict=True):
                ours.assign_add(theirs)

    def result(self):
        """d^2; 0 while a set has fewer than two members."""
        reference, generated = (
            [tf.convert_to_tensor(x) for x in moments]
            for moments in (self._reference, self._generated)
        )
        squared = frechet_distance(
            *mean_and_covariance(*reference), *mean_and_covariance(*generated)
        )
        enough = (reference[0] >= 2) & (generated[0] >= 2)
        return tf.cast(tf.where(enough, squared, 0), self.dtype)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}

    def _add_moments(self, kind):
        """The variables of one set: count, sum, sum of outer products."""
        shapes = {"count": (), "sum": (self.dim,), "outer_sum": (self.dim, self.dim)}
        return [
            self.add_variable(shape, "zeros", dtype="float64", name=f"{kind}_{name}")
            for name, shape in shapes.items()
        ]

    def _add(self, moments, kind, features):
        features = tf.cast(features, tf.float64)
        if features.shape.rank != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"The {kind} features must be [batch, {self.dim}]. Received: {features.shape}"
            )
        count, total, outer_sum = moments
        count.assign_add(tf.cast(tf.shape(features)[0], tf.float64))
        total.assign_add(tf.reduce_sum(features, axis=0))
        outer_sum.assign_add(tf.matmul(features, features, transpose_a=True))


def mean_and_covariance(count, total, outer_sum):
    """Mean [d] and unbiased covariance [d, d] from count, sum and sum of outer products.

    All are float64 tensors; fewer than two members have a covariance of zero.
    """
    mean = tf.math.divide_no_nan(total, count)
    scatter = outer_sum - count * mean[:, tf.newaxis] * mean
    return mean, tf.math.divide_no_nan(scatter, tf.maximum(count - 1, 0))


def _square_root(matrix):
    """The symmetric root of a symmetric, positive semidefinite matrix."""
    eigenvalues, vectors = tf.linalg.eigh(matrix)
    # Rounding leaves some eigenvalues of a singular matrix just below zero.
    return (vectors * tf.sqrt(tf.maximum(eigenvalues, 0))) @ tf.transpose(vectors)
