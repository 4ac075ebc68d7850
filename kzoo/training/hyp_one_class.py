"""Hyp-OC: a one-class classifier in hyperbolic space, against negatives drawn from a Gaussian.

    f_i = encoder(x_i)                                     features of the real examples
    mu <- alpha mu + (1 - alpha) mean_i f_i                weighted running mean
    n_i ~ N(mu, sigma^2 I)                                 pseudo-negatives
    z = exp_0(clip(reduce(.)))  of f_i and n_i             points of the Poincaré ball
    loss = Hyp-CE(MLR(z), real or negative) + weight Hyp-PC(z of the real examples)

"Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing", Narayan, Patel, 2024,
arXiv 2404.14406; section III.

Deviations: the authors' code has the mean of the last batch in place of mu on the right-hand side.
Open choices: mu begins at 0 and no gradient goes through it or the negatives, as in the code; sigma
is a standard deviation (theirs is 1, where it is a variance as well); there are as many negatives
as examples; the exponential map is at the origin, where the code learns a base point and multiplies
the gradient of the points by (1 - c|z|^2)^2 / 4. The paper clips the gradients of the classifier to
a norm of 3: give the optimizer `global_clipnorm=3.0`, which here counts the encoder as well.
"""

import math

import keras
import tensorflow as tf

from kzoo.layers.poincare import HYP_OC_PAPER, ExpMap0, FeatureClipping
from kzoo.layers.poincare_dense import HyperbolicMLR
from kzoo.losses.hyperbolic import HyperbolicPairwiseConfusion
from kzoo.ops.distribute import num_replicas, sum_over_replicas
from kzoo.optimizers.optimizer import check_range
from kzoo.papers import Example, component
from kzoo.training.method import TrainingMethod


def hyp_one_class_model(encoder, units=(), ball_dim=128, curvature=0.1, clip_radius=2.0):
    """Puts a reduction, the way into the ball and a classifier of two classes behind an encoder.

    Args:
        encoder: functional `keras.Model` to features [batch, n].
        units: widths of the ReLU layers of the reduction. The paper's network has 8192, 1000 and
            512 for 4096 features.
        ball_dim: dimension of the ball. Defaults to 128.
        curvature: c, above 0. Defaults to 0.1.
        clip_radius: what vectors are clipped to before the exponential map. Defaults to 2.

    Returns:
        A functional `keras.Model` to logits [batch, 2] of "real" and "not", with the layers
        "features" (the encoder's output) and "embedding" (points of the ball).
    """
    # Not `input` and `output`, which a Sequential has only once it has been called.
    inputs = encoder.inputs[0] if len(encoder.inputs) == 1 else encoder.inputs
    x = features = keras.layers.Identity(name="features")(encoder.outputs[0])
    for index, width in enumerate(units):
        x = keras.layers.Dense(width, "relu", name=f"reduce_{index + 1}")(x)
    # No ReLU at the end: the ball has all directions.
    x = keras.layers.Dense(ball_dim, name="reduce")(x if units else features)
    x = FeatureClipping(clip_radius, name="clip")(x)
    x = ExpMap0(curvature, name="embedding")(x)
    x = HyperbolicMLR(2, curvature, name="logits")(x)
    return keras.Model(inputs, x)


def _example():
    encoder = keras.Sequential([keras.Input([6]), keras.layers.Dense(5, "tanh")])
    return {"model": hyp_one_class_model(encoder, (4,), ball_dim=3), "curvature": 0.1}


@component(HYP_OC_PAPER, example=Example(kwargs=_example))
class HypOneClass(TrainingMethod):
    """Trains a two-class model on examples of one class, the real one, alone.

    What it is compiled with is Hyp-CE, `SparseCategoricalCrossentropy(from_logits=True)`: it sees
    the model's logits of the batch, labelled 0, and of as many pseudo-negatives, labelled 1.
    Metrics see the same. Labels that `fit` is given are not looked at. `predict` gives the logits;
    the score of an anomaly is the second less the first.

    Args:
        model: functional `keras.Model` to logits [batch, 2], for example of
            `hyp_one_class_model`.
        features: name of the layer whose output [batch, n] the negatives resemble. Defaults to
            "features".
        embedding: name of the layer whose output, points of the ball [batch, d], Hyp-PC pulls
            together; all that comes before depends on the features only. Defaults to "embedding".
        curvature: c of that ball. Defaults to 0.1.
        alpha: share of the running mean that stays, in [0, 1). Defaults to 0.8.
        sigma: standard deviation of the negatives, above 0. Defaults to 1.
        confusion_weight: of Hyp-PC, at least 0. Defaults to 1.
        pairs: see `kzoo.losses.HyperbolicPairwiseConfusion`.
        seed: of the negatives, which depend on the step besides. Defaults to 0.

    Attributes:
        running_mean: mu, a variable [n].

    Example:

    >>> trainer = HypOneClass(hyp_one_class_model(encoder, (64,), ball_dim=16))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> trainer.compile(keras.optimizers.Adam(1e-3, global_clipnorm=3.0), loss)
    >>> history = trainer.fit(real_examples, epochs=20)

    Reference:
        Narayan and Patel (2024), section III, arxiv.org/abs/2404.14406
    """

    def __init__(
        self,
        model,
        features="features",
        embedding="embedding",
        curvature=0.1,
        alpha=0.8,
        sigma=1.0,
        confusion_weight=1.0,
        pairs="all",
        seed=0,
        **kwargs,
    ):
        check_range("alpha", alpha, 0, 1)
        check_range("sigma", sigma, 0, math.inf, low_open=True)
        check_range("confusion_weight", confusion_weight, 0, math.inf)
        super().__init__(model, **kwargs)
        if model.output_shape[1:] != (2,):
            raise ValueError(
                f"`model` must give logits [batch, 2]. Received: shape {model.output_shape}"
            )
        self.features = features
        self.embedding = embedding
        self.curvature = curvature
        self.alpha = alpha
        self.sigma = sigma
        self.confusion_weight = confusion_weight
        self.seed = seed
        values, points = (model.get_layer(name).output for name in (features, embedding))
        if len(values.shape) != 2:
            raise ValueError(
                f"The layer `features`, {features!r}, must give [batch, n]. "
                f"Received: shape {tuple(values.shape)}"
            )
        confusion = HyperbolicPairwiseConfusion(curvature, pairs)
        # Past Keras's attribute tracking: they are the model's own layers.
        object.__setattr__(self, "_encoder", keras.Model(model.input, values))
        object.__setattr__(self, "_head", keras.Model(values, [points, model.output]))
        object.__setattr__(self, "_confusion", confusion)
        self.running_mean = self._state("running_mean", values.shape[1:], keras.config.floatx())
        self._steps = self._state("steps", (), "int32")
        # No step calls the whole model, which would build it.
        self.build(model.input_shape)

    def _state(self, name, shape, dtype):
        # The replicas compute the same values, from sums over all of them.
        return self.add_weight(
            shape=tuple(shape),
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )

    def train_step(self, data):
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            features = self._encoder(x, training=True)
            negatives = self._pseudo_negatives(tf.stop_gradient(features))
            points, logits = self._head(tf.concat([features, negatives], 0), training=True)
            count = tf.shape(features)[0]
            labels = tf.repeat([0, 1], count)
            if sample_weight is not None:
                sample_weight = tf.concat([sample_weight, sample_weight], 0)
            loss = self.compute_loss(x, labels, logits, sample_weight, training=True)
            confusion = self._confusion(labels[:count], points[:count])
            # As `compute_loss` is, a part of the mean over the replicas.
            confusion = self.confusion_weight / num_replicas() * tf.cast(confusion, loss.dtype)
            loss += confusion
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=count)
        return self.compute_metrics(x, labels, logits, sample_weight=sample_weight)

    def _pseudo_negatives(self, features):
        """As many points of N(mu, sigma^2 I) as there are features, about the new mean."""
        values = tf.cast(features, self.running_mean.dtype)
        count = tf.cast(tf.shape(values)[0], values.dtype)
        total, count = sum_over_replicas([tf.reduce_sum(values, 0), count])
        mean = self.alpha * self.running_mean + (1.0 - self.alpha) * total / tf.maximum(count, 1.0)
        self.running_mean.assign(mean)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.stack([self.seed + 1000003 * tf.cast(replica, tf.int32), self._steps.value])
        self._steps.assign_add(1)
        noise = tf.random.stateless_normal(tf.shape(values), seed, dtype=values.dtype, alg="philox")
        return tf.cast(mean + self.sigma * noise, features.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "features": self.features,
            "embedding": self.embedding,
            "curvature": self.curvature,
            "alpha": self.alpha,
            "sigma": self.sigma,
            "confusion_weight": self.confusion_weight,
            "pairs": self._confusion.pairs,
            "seed": self.seed,
        }
