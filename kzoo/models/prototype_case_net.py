"""PrototypeCaseNet: a classifier that reasons by distances to prototypes it can draw.

    f: input -> latent vector     g: latent vector -> input        (an autoencoder)
    d_j = ||f(x) - p_j||^2        logits = W d                     (prototype layer, no bias)
    g(p_j) shows prototype j

"Deep Learning for Case-Based Reasoning through Prototypes: A Neural Network that Explains Its
Predictions", Li, Liu, Chen, Rudin, 2017, arXiv 1710.04806; section "Network Architecture".

The standard autoencoder is the paper's for MNIST: 3x3 convolutions of stride 2 with ReLU, and their
transposes, the last with a sigmoid. Open choice: W begins uniform in [0, 1), as in the authors'
code. How it is trained: `kzoo.training.PrototypeCaseTraining`.
"""

import keras

from kzoo.layers.prototype_distance import PAPER, PrototypeDistance
from kzoo.papers import component


@component(PAPER)
class PrototypeCaseNet(keras.Model):
    """A classifier of an encoder, a layer of prototypes and one linear layer; with a decoder.

    It is a functional model from inputs to class probabilities: it is exported, and explained, like
    any other. The decoder is no part of that computation, but is trained, saved and loaded with it.

    Args:
        prototypes: number of prototypes. Defaults to 15, as in the paper for ten digits.
        input_shape: (height, width, channels) of images in [0, 1], for the standard autoencoder;
            or the shape of an input of the `encoder`. Defaults to (28, 28, 1).
        classes: number of classes. Defaults to 10.
        classifier_activation: "softmax", or None for logits. Defaults to "softmax".
        filters: channels of the standard encoder's convolutions, the first to the last. Defaults to
            (32, 32, 32, 10).
        encoder: a Keras model of your own from an input to a latent tensor, which is flattened for
            the prototypes; together with `decoder`, from such a tensor to an input. They are not
            copied.
        decoder: see `encoder`.
        weights: path of a `.weights.h5` file. None for random initialization.
        name: of the model.

    Attributes:
        encoder, prototypes, classifier, decoder: the parts; `prototypes` is the
            `PrototypeDistance`, `classifier` the `Dense` layer.

    Example:

    >>> model = PrototypeCaseNet(15, input_shape=(28, 28, 1), classes=10)
    >>> pictures = model.decoded_prototypes()  # [15, 28, 28, 1]

    Reference:
        Li et al. (2017), arxiv.org/abs/1710.04806
    """

    def __init__(
        self,
        prototypes=15,
        input_shape=(28, 28, 1),
        classes=10,
        classifier_activation="softmax",
        filters=(32, 32, 32, 10),
        encoder=None,
        decoder=None,
        weights=None,
        name="prototype_case_net",
        **kwargs,
    ):
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(f"`classes` must be an integer of at least 2. Received: {classes!r}")
        if (encoder is None) != (decoder is None):
            raise ValueError(
                "`encoder` and `decoder` must be given together or left out. Received: only "
                f"`{'decoder' if encoder is None else 'encoder'}`"
            )
        config = {
            "prototypes": prototypes,
            "input_shape": tuple(input_shape),
            "classes": classes,
            "classifier_activation": keras.activations.serialize(
                keras.activations.get(classifier_activation)
            ),
            "filters": tuple(filters),
        }
        is_standard = encoder is None
        if is_standard:
            encoder, decoder = _autoencoder(config["input_shape"], config["filters"])
        inputs = keras.Input(config["input_shape"], name="inputs")
        latent = encoder(inputs)
        _check_decoder(decoder, latent, config["input_shape"])
        distance = PrototypeDistance(prototypes, name="prototypes")
        classifier = keras.layers.Dense(
            classes,
            classifier_activation,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomUniform(0.0, 1.0),
            # Outputs stay in full precision under a mixed policy.
            dtype=distance.dtype,
            name="predictions",
        )
        distances = distance(keras.layers.Flatten(name="latent")(latent))
        super().__init__(inputs, classifier(distances), name=name, **kwargs)
        self.encoder = encoder
        self.prototypes = distance
        self.classifier = classifier
        self.decoder = decoder
        self._config = config
        self._is_standard = is_standard
        if weights is not None:
            self.load_weights(weights)

    def forward(self, inputs, training=None):
        """Everything that training looks at.

        Returns:
            (outputs [batch, classes], distances [batch, prototypes], reconstructions of the
            inputs)
        """
        latent = self.encoder(inputs, training=training)
        flat = keras.ops.reshape(latent, [-1, self.prototypes.prototypes.shape[1]])
        distances = self.prototypes(flat)
        return self.classifier(distances), distances, self.decoder(latent, training=training)

    def decoded_prototypes(self):
        """What the decoder makes of the prototypes: a tensor [prototypes, *input_shape]."""
        vectors = keras.ops.convert_to_tensor(self.prototypes.prototypes)
        latent = keras.ops.reshape(vectors, [-1, *self.encoder.output_shape[1:]])
        return self.decoder(latent, training=False)

    def prototype_classes(self):
        """The class that each prototype stands for, int [prototypes]: of its most negative weight.

        The nearer an input is to the prototype, the less that weight takes from its logit.
        """
        return keras.ops.argmin(keras.ops.convert_to_tensor(self.classifier.kernel), axis=1)

    def get_config(self):
        config = {**self._config, "name": self.name, "trainable": self.trainable}
        if not self._is_standard:
            config["encoder"] = keras.saving.serialize_keras_object(self.encoder)
            config["decoder"] = keras.saving.serialize_keras_object(self.decoder)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        for name in ("encoder", "decoder"):
            if name in config:
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        return cls(**config)


def _autoencoder(input_shape, filters):
    """Convolutions of stride 2, and their transposes through the same sizes."""
    if len(input_shape) != 3 or not all(isinstance(n, int) and n > 0 for n in input_shape):
        raise ValueError(
            "`input_shape` must be (height, width, channels) of known sizes; for other inputs pass "
            f"`encoder` and `decoder`. Received: {input_shape}"
        )
    if not filters or not all(isinstance(n, int) and n > 0 for n in filters):
        raise ValueError(f"`filters` must be positive integers. Received: {filters}")
    encoder = [keras.Input(input_shape)]
    sizes = [input_shape]
    for channels in filters:
        encoder.append(
            keras.layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu")
        )
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2), channels))
    decoder = [keras.Input(sizes[-1])]
    for height, width, channels in reversed(sizes[:-1]):
        decoder.append(keras.layers.Conv2DTranspose(channels, 3, strides=2, padding="same"))
        if height % 2 or width % 2:
            # Where the convolution has rounded an odd size up, its transpose begins one later.
            decoder.append(keras.layers.Cropping2D(((height % 2, 0), (width % 2, 0))))
        decoder.append(keras.layers.Activation("relu"))
    decoder[-1] = keras.layers.Activation("sigmoid")
    return (
        keras.Sequential(encoder, name="encoder"),
        keras.Sequential(decoder, name="decoder"),
    )


def _check_decoder(decoder, latent, input_shape):
    shape = tuple(decoder.compute_output_shape(latent.shape))[1:]
    if shape != input_shape:
        raise ValueError(
            f"`decoder` must give back the inputs, of shape {input_shape}. Received: one that "
            f"gives {shape}"
        )
