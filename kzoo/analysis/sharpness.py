"""Sharpness: the largest eigenvalues of the Hessian of a loss, and of the neural tangent kernel.

    H = d^2 L / dw^2,   sharpness = lambda_max(H)         found by Lanczos from products H v alone
    K = J J^T,   J = d f(x_i)_c / dw                      one row for each example and output

"Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning",
Noci, Meterez, Hofmann, Orvieto, 2024, arXiv 2402.17457: in muP the sharpness along training is
nearly the same at all widths, which is why learning rates transfer.

Deviations: Lanczos with implicit restarts (ARPACK, `scipy.sparse.linalg.eigsh`) where the paper
uses power iteration; both find the same eigenvalues.
"""

import keras
import numpy as np
import tensorflow as tf

from kzoo.models.mup import DEPTH_PAPER as PAPER
from kzoo.ops.hessian import hessian_vector_product
from kzoo.papers import component


class HessianOperator:
    """The Hessian of a model's mean loss over fixed data, at wherever its weights are.

    Nothing of the size of the Hessian is made. The model is in inference mode: no dropout, and
    batch normalization by its moving statistics. What it was compiled with counts, with
    regularization. The products are traced once, also if the weights change in between.

    Args:
        model: a built and compiled `keras.Model`.
        data: (x, y) or (x, y, sample_weight) of arrays, or a `tf.data.Dataset` of batches of them;
            held in memory.
        batch_size: rows at a time, of arrays. Defaults to 256.
    """

    def __init__(self, model, data, batch_size=256):
        if not (isinstance(model, keras.Model) and model.built and model.compiled):
            raise ValueError("`model` must be a keras.Model that is built and compiled.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: {batch_size!r}")
        self._model = model
        self._variables = model.trainable_variables
        if not isinstance(data, tf.data.Dataset):
            data = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(batch_size)
        self._batches = [(batch, _rows(batch)) for batch in data]
        if not self._batches:
            raise ValueError("`data` must have at least one batch.")
        self._compiled = tf.function(self._product, autograph=False)
        self.size = sum(int(np.prod(variable.shape)) for variable in self._variables)

    def product(self, vector):
        """H v, float64 [size], of a vector [size] in the order of the trainable variables."""
        dtype = self._variables[0].dtype
        vector = tf.constant(np.reshape(vector, [self.size]), dtype)
        total = sum(rows for _, rows in self._batches)
        return sum(
            self._compiled(vector, batch).numpy().astype("float64") * (rows / total)
            for batch, rows in self._batches
        )

    def top_eigenvalues(self, k=1, tolerance=1e-4, seed=0):
        """The k largest eigenvalues (not magnitudes), float64 [k], from the largest.

        NaN where the model has diverged.
        """
        from scipy.sparse.linalg import LinearOperator, eigsh

        if not isinstance(k, int) or not 1 <= k <= self.size:
            raise ValueError(f"`k` must be in [1, {self.size}], the weights. Received: {k!r}")
        start = np.random.default_rng(seed).normal(size=self.size)
        if not np.isfinite(self.product(start)).all():  # ARPACK would fail.
            return np.full(k, np.nan)
        if self.size <= max(2 * k, 20):  # Lanczos needs more dimensions than it keeps vectors.
            dense = np.stack([self.product(row) for row in np.eye(self.size)])
            return np.linalg.eigvalsh((dense + dense.T) / 2)[::-1][:k]
        operator = LinearOperator([self.size] * 2, matvec=self.product, dtype="float64")
        values = eigsh(operator, k, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
        return np.sort(values)[::-1]

    def _product(self, vector, batch):
        sizes = [int(np.prod(variable.shape)) for variable in self._variables]
        vectors = [
            tf.reshape(part, variable.shape)
            for part, variable in zip(tf.split(vector, sizes), self._variables, strict=True)
        ]
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)

        def loss(values):
            mapping = list(zip(self._variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                y_pred = self._model(x, training=False)
                return self._model.compute_loss(x, y, y_pred, sample_weight, training=False)

        values = [variable.value for variable in self._variables]
        _, products = hessian_vector_product(loss, values, vectors)
        return tf.concat([tf.reshape(part, [-1]) for part in products], 0)


@component(PAPER)
def hessian_top_eigenvalues(model, data, k=1, batch_size=256, tolerance=1e-4, seed=0):
    """The largest eigenvalues of the Hessian of a model's mean loss, by Lanczos.

    For more than one call, or along a run, see `HessianOperator` and `SharpnessTrajectory`.

    Args:
        model, data, batch_size: see `HessianOperator`.
        k: how many, in [1, number of trainable weights].
        tolerance: relative accuracy of the eigenvalues; 0 for machine precision.
        seed: integer, of the vector that Lanczos begins with.

    Returns:
        float64 [k], from the largest; the first is the sharpness. NaN if the model has diverged.
    """
    return HessianOperator(model, data, batch_size).top_eigenvalues(k, tolerance, seed)


@component(PAPER)
class SharpnessTrajectory(keras.callbacks.Callback):
    """Records the largest eigenvalues of the Hessian along a training run.

    Gradient descent with the rate lr is stable only where the sharpness is below 2 / lr.

    Args:
        data: as for `HessianOperator`; some hundred rows of the training data will do.
        every: number of batches from one measurement to the next; None for every epoch. The first
            is before training.
        k: number of eigenvalues. Defaults to 1.
        batch_size, tolerance: see `hessian_top_eigenvalues`.

    Attributes:
        steps: [n], number of batches before each measurement.
        values: [n] of float64 [k].
    """

    def __init__(self, data, every=None, k=1, batch_size=256, tolerance=1e-3):
        super().__init__()
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"`every` must be a positive integer or None. Received: {every!r}")
        self.steps, self.values = [], []
        self._data, self._every = data, every
        self._k, self._batch_size, self._tolerance = k, batch_size, tolerance
        self._seen = 0

    def on_train_begin(self, logs=None):
        self._operator = HessianOperator(self.model, self._data, self._batch_size)
        self.steps, self.values, self._seen = [], [], 0
        self._measure()

    def on_train_batch_end(self, batch, logs=None):
        # Several steps may be one batch for callbacks, see `steps_per_execution`.
        steps = batch + 1 - self._batches_of_epoch
        self._batches_of_epoch = batch + 1
        before, self._seen = self._seen, self._seen + steps
        if self._every is not None and before // self._every < self._seen // self._every:
            self._measure()

    def on_epoch_begin(self, epoch, logs=None):
        self._batches_of_epoch = 0

    def on_epoch_end(self, epoch, logs=None):
        if self._every is None:
            self._measure()

    def _measure(self):
        self.steps.append(self._seen)
        self.values.append(self._operator.top_eigenvalues(self._k, self._tolerance))


@component(PAPER)
def ntk_eigenvalues(model, x):
    """The spectrum of the empirical neural tangent kernel of a model at its weights.

    Args:
        model: a built `keras.Model` with one output [batch, classes].
        x: its input, a batch of few examples: the Jacobian has batch * classes rows.

    Returns:
        float64 [batch * classes], from the largest.
    """
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def kernel(x):
        with tf.GradientTape() as tape:
            outputs = tf.reshape(model(x, training=False), [-1])
        zero = tf.UnconnectedGradients.ZERO
        rows = tf.size(outputs)
        jacobians = tape.jacobian(outputs, variables, unconnected_gradients=zero)
        flat = [tf.reshape(tf.convert_to_tensor(part), [rows, -1]) for part in jacobians]
        return tf.add_n([tf.matmul(part, part, transpose_b=True) for part in flat])

    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    return np.linalg.eigvalsh(kernel(x).numpy().astype("float64"))[::-1]


def _rows(batch):
    return len(keras.tree.flatten(batch)[0])
