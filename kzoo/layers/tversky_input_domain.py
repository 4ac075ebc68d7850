"""A Tversky projection whose prototypes and features are inputs, which can be looked at.

    S(h(x), h(P_j)) with the features h(F_k)

h is an encoder; the prototypes P_j and the features F_k, of the form of its inputs, are learned.

"Tversky Neural Networks: Psychologically Plausible Deep Learning with Differentiable Tversky
Similarity", Doumbouya, Jurafsky, Manning, 2025, arXiv 2506.11035; its visualization of parameters
in the data domain.

Open choices: P and F go through the encoder as in inference (moving statistics, no dropout), so
that one of them does not depend on the others; they begin uniform in [0, 1).
"""

import keras
from keras import ops

from kzoo.layers.tversky import PAPER, TverskyContrast, check_count
from kzoo.papers import Example, component


def _example():
    layers = [
        keras.Input([4, 4, 1]),
        keras.layers.Flatten(),
        # As an encoder's last layer shall be: membership needs more than 16 bits.
        keras.layers.Dense(3, dtype="float32"),
    ]
    return {"encoder": keras.Sequential(layers, name="encoder"), "units": 2, "features": 4}


@component(
    PAPER,
    example=Example(
        kwargs=_example,
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4, 4, 1)).astype("float32"),),
    ),
)
class TverskyInputDomainProjection(TverskyContrast):
    """Tversky similarities of encoded inputs to encoded prototypes.

    It is trained like a `TverskyProjection` behind the encoder, at the cost of sending units +
    features more inputs through it in each step. Look at it with
    `kzoo.explain.tversky_parameter_sheet`.

    Args:
        encoder: a Keras model from inputs to vectors [batch, d]. It is trained along, and not
            copied; set `encoder.trainable = False` to keep it as it is.
        units: number of prototypes, and size of the output.
        features: number of features.
        intersection, difference: see `kzoo.layers.TverskySimilarity`.
        prototypes_initializer, features_initializer: default to a uniform distribution over [0, 1).
        prototypes_constraint, features_constraint: default to None.
        kwargs: initializers, regularizer and constraint of alpha, beta and theta, see
            `kzoo.layers.TverskyContrast`.

    Input: as of the encoder, of known shape but for the batch. Output shape: [batch, units].

    Reference:
        Doumbouya et al. (2025), arxiv.org/abs/2506.11035
    """

    def __init__(
        self,
        encoder,
        units,
        features,
        intersection="product",
        difference="ignorematch",
        prototypes_initializer=None,
        features_initializer=None,
        prototypes_constraint=None,
        features_constraint=None,
        **kwargs,
    ):
        if not isinstance(encoder, keras.Model):
            raise TypeError(f"`encoder` must be a keras.Model. Received: {type(encoder).__name__}")
        check_count("units", units)
        check_count("features", features)
        super().__init__(intersection=intersection, difference=difference, **kwargs)
        self.encoder = encoder
        self.units = units
        self.num_features = features
        uniform = keras.initializers.RandomUniform(0.0, 1.0)
        self.prototypes_initializer = keras.initializers.get(prototypes_initializer or uniform)
        self.features_initializer = keras.initializers.get(features_initializer or uniform.clone())
        self.prototypes_constraint = keras.constraints.get(prototypes_constraint)
        self.features_constraint = keras.constraints.get(features_constraint)

    def build(self, input_shape):
        shape = tuple(input_shape[1:])
        if None in shape:
            raise ValueError(
                f"The inputs must be of known shape. Received: shape {tuple(input_shape)}"
            )
        if not self.encoder.built:
            self.encoder.build(input_shape)
        self.prototypes = self.add_weight(
            name="prototypes",
            shape=(self.units, *shape),
            initializer=self.prototypes_initializer,
            constraint=self.prototypes_constraint,
        )
        self.features = self.add_weight(
            name="features",
            shape=(self.num_features, *shape),
            initializer=self.features_initializer,
            constraint=self.features_constraint,
        )
        self.add_contrast_weights()

    def call(self, inputs, training=None):
        prototypes, features = self._encoded_parameters()
        vectors = self._encoded(inputs, training)
        to_measures = ops.transpose(features)
        return self.contrast(ops.matmul(vectors, to_measures), ops.matmul(prototypes, to_measures))

    def measures(self, x):
        """h(x) . h(F_k) of inputs, [batch, features], in inference."""
        _, features = self._encoded_parameters()
        return ops.matmul(self._encoded(x, training=False), ops.transpose(features))

    def prototype_measures(self):
        """h(P_j) . h(F_k), [units, features]."""
        prototypes, features = self._encoded_parameters()
        return ops.matmul(prototypes, ops.transpose(features))

    def _encoded(self, inputs, training):
        return ops.cast(self.encoder(inputs, training=training), self.compute_dtype)

    def _encoded_parameters(self):
        parameters = [ops.convert_to_tensor(each) for each in (self.prototypes, self.features)]
        vectors = self._encoded(ops.concatenate(parameters), training=False)
        return vectors[: self.units], vectors[self.units :]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "units": self.units,
            "features": self.num_features,
            "prototypes_initializer": keras.initializers.serialize(self.prototypes_initializer),
            "features_initializer": keras.initializers.serialize(self.features_initializer),
            "prototypes_constraint": keras.constraints.serialize(self.prototypes_constraint),
            "features_constraint": keras.constraints.serialize(self.features_constraint),
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config.pop("encoder"))
        return cls(encoder, **config)
