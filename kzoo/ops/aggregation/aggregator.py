"""What aggregators share: the Jacobian in pieces, its Gramian, preferences, random numbers."""

import keras
import numpy as np
import tensorflow as tf


def register(cls):
    """Lets Keras save an aggregator by its name."""
    return keras.saving.register_keras_serializable("kzoo.aggregation")(cls)


class Aggregator:
    """A(J): the gradients of m objectives, the rows of J, to the one that an optimizer takes.

    An aggregator has no state: the same Jacobian and `step` give the same update, eager, in a
    graph and compiled by XLA. It is saved by `get_config`. No gradient goes through it.

    A subclass implements `updates`; one whose update is a combination of the rows with weights
    that depend on J J^T alone is a `Weighting`.
    """

    def __call__(self, jacobian, step=0):
        """A(J) of a Jacobian in one piece.

        Args:
            jacobian: floating [m, n].
            step: integer scalar, the number of the draw; only methods that draw look at it.

        Returns:
            [n], in the dtype of `jacobian`.

        Raises:
            ValueError: for another rank, or another number of rows than there are weights.
        """
        jacobian = tf.convert_to_tensor(jacobian)
        if jacobian.shape.rank != 2:
            raise ValueError(
                "`jacobian` must be [m, n], m the number of objectives. Received a shape of "
                f"{jacobian.shape}"
            )
        return self.aggregate([jacobian], step)[0]

    def aggregate(self, pieces, step=0):
        """A(J) of a Jacobian in pieces, one for each variable.

        Args:
            pieces: list of floating [m, ...], which side by side are J.
            step: see `__call__`.

        Returns:
            List of [...], in the dtypes of the pieces.
        """
        return self.updates([tf.stop_gradient(tf.convert_to_tensor(p)) for p in pieces], step)

    def updates(self, pieces, step):
        """The list of updates of the pieces [m, ...] of J; to be implemented."""
        raise NotImplementedError

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class Weighting(Aggregator):
    """An aggregator that is A(J) = J^T w, with weights w found from the Gramian J J^T."""

    def weights(self, gramian, step=0):
        """w; to be implemented.

        Args:
            gramian: float64 [m, m], J J^T.
            step: see `Aggregator.__call__`.

        Returns:
            float64 [m]
        """
        raise NotImplementedError

    def updates(self, pieces, step):
        return combine(self.weights(gramian(pieces), step), pieces)


class PreferenceWeighting(Weighting):
    """A `Weighting` whose user may prefer some objectives.

    Args:
        preference: list of m numbers of at least 0, what the weights would be if the gradients were
            in harmony; None for 1/m each.
    """

    def __init__(self, preference=None):
        self.preference = check_vector("preference", preference, low=0)

    def preferred(self, gramian):
        """The preference as float64 [m].

        Raises:
            ValueError: where m is known and `preference` has another length.
        """
        if self.preference is None:
            return uniform_weights(gramian)
        return matched("preference", self.preference, gramian)

    def get_config(self):
        return {"preference": None if self.preference is None else list(self.preference)}


def gramian(pieces):
    """J J^T as float64 [m, m], from the pieces [m, ...] of J.

    It is computed in float64 whatever the pieces are: their products square the condition number.
    """
    rows = [tf.cast(_matrix(piece), tf.float64) for piece in pieces]
    return tf.add_n([tf.matmul(each, each, transpose_b=True) for each in rows])


def combine(weights, pieces):
    """J^T w in pieces; half precision is summed in float32."""
    return [_combined(weights, piece) for piece in pieces]


def _combined(weights, piece):
    wide = tf.float32 if piece.dtype.size < 4 else piece.dtype
    total = tf.linalg.matvec(
        tf.cast(_matrix(piece), wide), tf.cast(weights, wide), transpose_a=True
    )
    return tf.cast(tf.reshape(total, tf.shape(piece)[1:]), piece.dtype)


def _matrix(piece):
    # Not [m, -1], which is ambiguous without rows.
    shape = tf.shape(piece)
    return tf.reshape(piece, [shape[0], tf.reduce_prod(shape[1:])])


def draw_seed(seed, step):
    """The seed of draw number `step`, int32 [2]."""
    return tf.random.fold_in([seed, 0], tf.cast(step, tf.int32), alg="philox")


def check_seed(seed):
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ValueError(f"`seed` must be an integer in [0, 2**31). Received: {seed!r}")
    return seed


def check_vector(name, values, low=None):
    """A tuple of finite floats, none below `low`; None stays None.

    Raises:
        ValueError: for anything else.
    """
    if values is None:
        return None
    array = np.asarray(values)
    numeric = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iuf"
    if not numeric or not np.isfinite(array).all() or (low is not None and array.min() < low):
        least = "" if low is None else f" of at least {low}"
        raise ValueError(
            f"`{name}` must be a list of finite numbers{least}, one for each objective. "
            f"Received: {values!r}"
        )
    return tuple(float(value) for value in array)


def uniform_weights(like):
    """1/m as float64 [m], for a tensor `like` of m rows."""
    count = tf.shape(like)[0]
    return tf.fill([count], 1.0 / tf.cast(tf.maximum(count, 1), tf.float64))


def matched(name, values, like):
    """The values as float64 [m], for a tensor `like` of m rows.

    Raises:
        ValueError: where m is known and differs from their number.
    """
    if like.shape[0] not in (None, len(values)):
        raise ValueError(
            f"`{name}` must have one entry for each of the {like.shape[0]} objectives. "
            f"Received: {len(values)}"
        )
    return tf.constant(values, tf.float64)
