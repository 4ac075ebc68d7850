"""ProtoPNet and ST-ProtoPNet: classifiers that compare parts of an image with learned prototypes.

    features = add_on(backbone(image))           two 1x1 convolutions
    s_j = similarity of prototype j to the patch of the features nearest to it
    logits = W s                                 W starts with 1 for the own class, -0.5 for others

ST-ProtoPNet has two such branches over one backbone, with trivial prototypes (far from the boundary
between the classes) and support prototypes (near it); its logits are the sum of theirs. What makes
them different is how they are trained: see `kzoo.training.PrototypeTrainer`.

"This Looks Like That: Deep Learning for Interpretable Image Recognition", Chen et al., 2018, arXiv
1806.10574, section 2.1; "Learning Support and Trivial Prototypes for Interpretable Image
Classification", Wang et al., 2023, arXiv 2301.04011.

Open choices: ProtoPNet's add-on layers are those of its main text (ReLU, then sigmoid); the
bottleneck form of its code is left out. ST-ProtoPNet's are linear, as in the authors' code, which
also doubles the size of some backbones' feature maps (`upsampling=2`).
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kzoo.layers.prototype_patches import PAPER, PROTOPNET_PAPER, PrototypePatchSimilarity
from kzoo.models.builder import conv
from kzoo.papers import Example, component

_BRANCHES = ("", "trivial", "support")


@keras.saving.register_keras_serializable("kzoo")
class ClassConnections(keras.initializers.Initializer):
    """Kernel [prototypes, classes] with 1 from a prototype to its class, else `other`."""

    def __init__(self, other=-0.5):
        self.other = other

    def __call__(self, shape, dtype=None):
        prototypes, classes = shape
        own = np.repeat(np.eye(classes), prototypes // classes, axis=0)
        return keras.ops.convert_to_tensor(own + self.other * (1.0 - own), dtype)

    def get_config(self):
        return {"other": self.other}


@dataclass(frozen=True)
class Branch:
    """The layers that turn the backbone's features into logits.

    Args:
        name: "trivial" or "support"; of a ProtoPNet, which has one branch, "".
        add_on: the 1x1 convolutions.
        prototypes: the `PrototypePatchSimilarity`.
        classifier: the `Dense` layer from similarities to logits.
    """

    name: str
    add_on: keras.Layer
    prototypes: PrototypePatchSimilarity
    classifier: keras.layers.Dense


def _example_backbone():
    layers = [
        keras.Input([6, 6, 2]),
        keras.layers.Conv2D(4, 3, strides=2, activation="gelu", padding="same"),
    ]
    return keras.Sequential(layers, name="backbone")


def _images(rng, batch):
    return (rng.normal(size=(batch, 6, 6, 2)).astype("float32"),)


def _example():
    return {
        "backbone": _example_backbone(),
        "classes": 2,
        "prototypes_per_class": 2,
        "prototype_size": 5,
    }


@component(PROTOPNET_PAPER, PAPER, example=Example(kwargs=_example, inputs=_images))
def ProtoPNet(
    backbone, classes, prototypes_per_class=10, prototype_size=128, patch_size=1, name="protopnet"
):
    """A prototypical part network: this looks like that.

    Args:
        backbone: a Keras model that ends with a feature map [batch, height, width, channels], for
            example of `keras.applications` with `include_top=False`. It is not copied.
        classes: number of classes, at least 2.
        prototypes_per_class: number of prototypes of each class. Defaults to 10.
        prototype_size: channels of the features and the prototypes. Defaults to 128.
        patch_size: height and width of a prototype in positions of the feature map. Defaults to 1.
        name: of the model.

    Returns:
        A functional `keras.Model`: the backbone's inputs -> float32 logits [batch, classes].

    Reference:
        Chen et al. (2018), section 2.1, arxiv.org/abs/1806.10574
    """
    _check(backbone, classes)
    inputs = keras.Input(backbone.input_shape[1:], name="images")
    activations = ("relu", "sigmoid")
    logits = _branch(
        backbone(inputs), "", classes, prototypes_per_class, prototype_size, patch_size,
        activations=activations, similarity="log", upsampling=1,
    )  # fmt: skip
    return keras.Model(inputs, logits, name=name)


@component(PAPER, example=Example(kwargs=_example, inputs=_images))
def STProtoPNet(
    backbone,
    classes,
    prototypes_per_class=5,
    prototype_size=64,
    patch_size=1,
    upsampling=1,
    name="st_protopnet",
):
    """A prototypical part network with support and trivial prototypes.

    Args:
        backbone: a Keras model that ends with a feature map, see `ProtoPNet`.
        classes: number of classes, at least 2.
        prototypes_per_class: number of prototypes of each class in each branch. Defaults to 5.
        prototype_size: channels of the features and the prototypes. Defaults to 64.
        patch_size: height and width of a prototype in positions of the feature map. Defaults to 1.
        upsampling: factor by which the backbone's feature map is enlarged (bilinear). Defaults
            to 1.
        name: of the model.

    Returns:
        A functional `keras.Model`: the backbone's inputs -> float32 logits [batch, classes].

    Reference:
        Wang et al. (2023), arxiv.org/abs/2301.04011
    """
    _check(backbone, classes)
    inputs = keras.Input(backbone.input_shape[1:], name="images")
    features = backbone(inputs)
    logits = [
        _branch(
            features, branch, classes, prototypes_per_class, prototype_size, patch_size,
            activations=(None, None), similarity="cosine", upsampling=upsampling,
        )
        for branch in ("trivial", "support")
    ]  # fmt: skip
    outputs = keras.layers.Add(dtype=logits[0].dtype, name="logits")(logits)
    return keras.Model(inputs, outputs, name=name)


def branches(model):
    """The `Branch`es of a model that `ProtoPNet` or `STProtoPNet` made, also of a loaded one.

    Raises:
        ValueError: for any other model.
    """
    layers = {layer.name: layer for layer in model.layers}
    found = [
        Branch(name, *(layers[_layer_name(name, part)] for part in _PARTS))
        for name in _BRANCHES
        if _layer_name(name, "prototypes") in layers
    ]
    if not found:
        raise ValueError(
            "`model` must come from kzoo.models.ProtoPNet or STProtoPNet. "
            f"Received: {model.name!r}, whose layers are {', '.join(layers)}"
        )
    return found


def feature_extractor(model):
    """A `keras.Model` on the same layers: images -> a list of each branch's features."""
    return keras.Model(model.input, [branch.prototypes.input for branch in branches(model)])


def similarity_maps(model):
    """A function of images: similarities of all prototypes at all positions.

    Returns:
        Function of images [batch, ...] that returns float [batch, height', width', prototypes],
        with the prototypes of the model's branches one after another.
    """
    extract, layers = feature_extractor(model), [b.prototypes for b in branches(model)]

    def maps(images):
        features = keras.tree.flatten(extract(images, training=False))
        each = [layer.similarity_map(x) for layer, x in zip(layers, features, strict=True)]
        return tf.concat(each, axis=-1)

    return maps


_PARTS = ("add_on", "prototypes", "classifier")


def _layer_name(branch, part):
    return f"{branch}_{part}" if branch else part


def _branch(
    x, branch, classes, prototypes_per_class, prototype_size, patch_size, *,
    activations, similarity, upsampling,
):  # fmt: skip
    """The logits of one branch."""
    layers = [keras.layers.UpSampling2D(upsampling, interpolation="bilinear")] * (upsampling != 1)
    for number, activation in enumerate(activations, 1):
        layers.append(conv(prototype_size, 1, f"conv{number}", use_bias=True))
        if activation:
            layers.append(keras.layers.Activation(activation, name=activation))
    add_on = keras.Sequential(layers, name=_layer_name(branch, "add_on"))
    similarities = PrototypePatchSimilarity(
        classes,
        prototypes_per_class,
        similarity=similarity,
        patch_size=patch_size,
        name=_layer_name(branch, "prototypes"),
    )(add_on(x))
    return keras.layers.Dense(
        classes,
        use_bias=False,
        kernel_initializer=ClassConnections(),
        # Outputs and losses stay in full precision under a mixed policy.
        dtype=similarities.dtype,
        name=_layer_name(branch, "classifier"),
    )(similarities)


def _check(backbone, classes):
    if not isinstance(backbone, keras.Model):
        raise TypeError(f"`backbone` must be a keras.Model. Received: {type(backbone).__name__}")
    shape = backbone.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(
            "`backbone` must end with one feature map [batch, height, width, channels]. "
            f"Received: {backbone.name!r} with output shape {shape}"
        )
    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f"`classes` must be an integer of at least 2. Received: {classes!r}")
