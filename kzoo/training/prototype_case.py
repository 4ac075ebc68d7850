"""How a `PrototypeCaseNet` is trained: four terms at once.

    L = CE + reconstruction 1/n sum_i ||g(f(x_i)) - x_i||^2 + r1 R1 + r2 R2

with R1 and R2 of `kzoo.losses.prototype_interpretability_terms`, f the encoder, g the decoder.

"Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", Li, Liu, Chen, Rudin, 2017, arXiv 1710.04806; section "Cost Function". All three
weights are 0.05, as in its experiments.

Open choice: sample weights, which the paper does not have, weigh the terms that are means over
examples (CE, reconstruction, R2).
"""

import keras
import tensorflow as tf

from kzoo.layers.prototype_distance import PAPER
from kzoo.losses.prototype_interpretability import prototype_interpretability_terms
from kzoo.models.prototype_case_net import PrototypeCaseNet
from kzoo.ops.distribute import num_replicas
from kzoo.papers import Example, component
from kzoo.training.method import TrainingMethod


def _example():
    layers = keras.layers
    encoder = keras.Sequential([keras.Input([6]), layers.Dense(4, "tanh")], name="encoder")
    decoder = keras.Sequential([keras.Input([4]), layers.Dense(6)], name="decoder")
    model = PrototypeCaseNet(
        5, [6], classes=3, classifier_activation=None, encoder=encoder, decoder=decoder
    )
    return {"model": model}


@component(PAPER, example=Example(kwargs=_example))
class PrototypeCaseTraining(TrainingMethod):
    """Trains a `kzoo.models.PrototypeCaseNet`: classification, reconstruction and prototypes.

    The loss that it is compiled with is the CE. The loss that it reports is that of all terms,
    while training and in `evaluate`. Under `tf.distribute` the terms are averaged over the global
    batch; only the minimum over the batch in R1 is taken by each replica over its own rows, so that
    R1 is then a little larger.

    Args:
        model: a `PrototypeCaseNet`.
        reconstruction: weight of the squared error of the autoencoder, summed over an input's
            values. Defaults to 0.05.
        r1: weight of the distances of prototypes to their nearest example. Defaults to 0.05.
        r2: weight of the distances of examples to their nearest prototype. Defaults to 0.05.

    Example:

    >>> trainer = PrototypeCaseTraining(PrototypeCaseNet(15, input_shape=(8, 8, 1)))
    >>> trainer.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> history = trainer.fit(images, labels, epochs=50)

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """

    def __init__(self, model, reconstruction=0.05, r1=0.05, r2=0.05, **kwargs):
        if not isinstance(model, PrototypeCaseNet):
            raise TypeError(f"`model` must be a PrototypeCaseNet. Received: {type(model).__name__}")
        for name, value in (("reconstruction", reconstruction), ("r1", r1), ("r2", r2)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"`{name}` must be a number of at least 0. Received: {value!r}")
        super().__init__(model, **kwargs)
        self.reconstruction = reconstruction
        self.r1 = r1
        self.r2 = r2
        self.build(model.input_shape)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            outputs, loss = self._loss(x, y, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [weight.value for weight in weights])
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=tf.shape(x)[0])
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs, loss = self._loss(x, y, sample_weight, training=False)
        self._loss_tracker.update_state(loss * num_replicas(), sample_weight=tf.shape(x)[0])
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def _loss(self, x, y, sample_weight, training):
        """The model's outputs, and the loss as Keras takes it on a replica."""
        outputs, distances, decoded = self.model.forward(x, training=training)
        loss = self.compute_loss(
            x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=training
        )
        # The sum of an input's squared errors does not fit 16 bits.
        errors = tf.cast(decoded, distances.dtype) - tf.cast(x, distances.dtype)
        errors = tf.reduce_sum(tf.square(errors), axis=range(1, errors.shape.rank))
        if sample_weight is not None:
            errors *= tf.reshape(tf.cast(sample_weight, errors.dtype), [-1])
        r1, r2 = prototype_interpretability_terms(distances, sample_weight)
        terms = self.reconstruction * tf.reduce_mean(errors) + self.r1 * r1 + self.r2 * r2
        # Of which `compute_loss` has taken its share already.
        return outputs, loss + tf.cast(terms / num_replicas(), loss.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "reconstruction": self.reconstruction,
            "r1": self.r1,
            "r2": self.r2,
        }
