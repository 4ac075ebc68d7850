"""Models of every build, for the contract of the explainers: as small as they can be."""

import keras
import numpy as np

IMAGES = np.random.default_rng(0).uniform(size=(5, 8, 8, 3)).astype("float32")
FEATURES = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
TOKENS = np.random.default_rng(2).integers(0, 12, size=(5, 6)).astype("int32")
# Names of layers with a feature map, for the methods that want several of them.
PLACES = ("first", "rectified", "convolved", "patches")


def classifier():
    """A functional model of images with the usual layers, the same weights at every call."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = keras.layers.Conv2D(6, 3, name="second")(x)
    x = keras.layers.BatchNormalization(name="normalized")(x)
    x = keras.layers.ReLU(name="rectified")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    # The last layer in float32 whatever the policy, as for training in half precision.
    outputs = keras.layers.Dense(3, "softmax", dtype="float32", name="classes")(x)
    model = keras.Model(inputs, outputs)
    # Away from the values of an untrained model, for which the layer is nearly the identity.
    rng = np.random.default_rng(0)
    model.get_layer("normalized").set_weights(
        [rng.uniform(0.5, 1.5, 6), rng.normal(0, 0.1, 6), *rng.uniform(0.1, 0.5, (2, 6))]
    )
    return model


def sequential(model):
    """The layers of `model` as a Sequential model."""
    return keras.Sequential([keras.Input([8, 8, 3]), *model.layers[1:]])


def nested(model):
    """The layers of `model`, all but the head inside of a model of their own."""
    body = keras.Model(model.inputs, model.get_layer("rectified").output, name="body")
    inputs = keras.Input([8, 8, 3])
    x = model.get_layer("pooled")(body(inputs))
    return keras.Model(inputs, model.get_layer("classes")(x))


def wrapped(model):
    """`model` as the only layer of a Sequential model."""
    return keras.Sequential([keras.Input([8, 8, 3]), model])


class Subclassed(keras.Model):
    """The layers of `model`, called in code of its own."""

    def __init__(self, model):
        super().__init__()
        self.chain = model.layers[1:]

    def call(self, x):
        for layer in self.chain:
            x = layer(x)
        return x


def convolved_twice(shared):
    """A model that calls one layer twice, or its twin with two layers of the same weights."""
    keras.utils.set_random_seed(0)
    layer = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name="convolved")
    before = (
        layer
        if shared
        else keras.layers.Conv2D.from_config({**layer.get_config(), "name": "before"})
    )
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.GlobalAveragePooling2D()(layer(before(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3, name="classes")(x))
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.4, size=(3, 3, 3, 3)), rng.normal(0, 0.1, size=3)]
    before.set_weights(weights)
    layer.set_weights(weights)
    model.get_layer("classes").set_weights([rng.normal(size=(3, 3)), np.zeros(3)])
    return model


def one_convolution():
    """The least that every method of images explains, for what takes long."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(4, 3, activation="relu", name="convolved"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax"),
        ]
    )


def of_several_inputs():
    """One network of an image and features: (of a dict, of a list of inputs)."""
    keras.utils.set_random_seed(0)
    image, features = keras.Input([8, 8, 3], name="image"), keras.Input([4], name="features")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="convolved")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, keras.layers.Dense(3, "relu")(features)])
    outputs = keras.layers.Dense(3, "softmax")(x)
    return (
        keras.Model({"image": image, "features": features}, outputs),
        # In the order of the keys, in which a dict is flattened: noise is drawn in it.
        keras.Model([features, image], outputs),
    )


def of_text():
    """A classifier of sequences of integers."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(12, 4, name="embedding")(x)
    x = keras.layers.Conv1D(5, 2, activation="relu", name="convolved")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))


def without_places():
    """A classifier of features, which has no feature map."""
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
