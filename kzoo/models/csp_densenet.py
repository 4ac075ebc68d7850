"""CSPDenseNet: the dense layers of a stage see only a part of its input.

    x_k = w_k * [x_0'', x_1, ..., x_{k-1}]        (partial dense block)
    x_T = w_T * [x_0'', x_1, ..., x_k]            (partial transition)
    x_U = w_U * [x_0', x_T]                       (transition)

gamma is the part of the stage's input, x_0', that goes around the block; w_k is that of
DenseNet-BC.

"CSPNet: A New Backbone that can Enhance Learning Capability of CNN", Wang, Liao, Yeh, Wu, Chen,
Hsieh, 2019, arXiv 1911.11929; section 3.1, equation 4, figures 2 and 3, table 1.

Open choices: the paper gives neither the widths of the two transitions nor where the maps are
pooled. Here w_T is a transition of DenseNet-BC, which keeps a fraction theta of the block's maps
and halves their size; x_0' is pooled as well; w_U, on the smaller maps, has the width of the plain
net's transition. PeleeNet, laid out this way with gamma = 0.5, has 14 % fewer multiply-adds and
2.85 million parameters, the paper's CSPPeleeNet 13 % and 2.83; with w_U before the pooling it had
9 % more. The last stage, which has no transition in DenseNet, concatenates its two parts. The
feature pyramid has the outputs of the partial dense blocks, and the last feature map.
"""

import keras

from kzoo.models.builder import (
    blocks_per_stage,
    bn_relu,
    build_image_model,
    conv,
    stage_end,
)
from kzoo.models.cross_stage_partial import PAPER, cross_stage_partial
from kzoo.models.densenet import dense_layer
from kzoo.papers import Example, component

_FUSIONS = ("both", "first", "last")


def _transition(x, filters, dropout_rate, name, pool=True):
    x = conv(filters, 1, f"{name}_conv")(bn_relu(x, f"{name}_"))
    if dropout_rate:
        x = keras.layers.Dropout(dropout_rate, name=f"{name}_dropout")(x)
    return _halved(x, name) if pool else x


def _halved(x, name):
    return keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def partial_dense_stage(x, layers, growth_rate, gamma, fusion, compression, dropout_rate, number):
    """A partial dense block and its transitions; the maps are half as high and wide after it.

    Args:
        x: a Keras tensor, [batch, height, width, channels].
        layers: number of dense layers.
        growth_rate: see `CSPDenseNet`, as are `gamma`, `fusion`, `compression`, `dropout_rate`.
        number: of the stage, for the names of its layers; the first is 2, as in `DenseNetBC`.
    """
    plain = x.shape[-1] + layers * growth_rate

    def partial_transition(y):
        filters = int(compression * y.shape[-1])
        return _transition(y, filters, dropout_rate, f"conv{number}_transition")

    def transition(y):
        filters = int(compression * plain)
        return _transition(y, filters, dropout_rate, f"pool{number}", pool=fusion == "first")

    parts = {}
    if fusion != "first":
        parts["partial_transition"] = partial_transition
        parts["shortcut"] = lambda y: _halved(y, f"conv{number}_shortcut")
    if fusion != "last":
        parts["transition"] = transition
    block = _dense_block(layers, growth_rate, dropout_rate, number)
    return cross_stage_partial(
        x, lambda y: stage_end(block(y), number - 2), gamma, **parts, name=f"conv{number}"
    )


def _dense_block(layers, growth_rate, dropout_rate, number):
    def block(x):
        for layer in range(1, layers + 1):
            x = dense_layer(x, growth_rate, True, dropout_rate, f"conv{number}_block{layer}")
        return x

    return block


@component(
    PAPER,
    example=Example(
        kwargs={"depth": 10, "growth_rate": 4, "input_shape": (8, 8, 3)},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),),
    ),
)
def CSPDenseNet(
    depth,
    growth_rate,
    gamma=0.5,
    fusion="both",
    stem_filters=None,
    compression=0.5,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    dropout_rate=0.0,
    name=None,
):
    """The cross-stage-partial DenseNet-BC for small images: 3 partial dense blocks.

    It saves the more, the wider the input of a stage is next to what its layers add.

    Args:
        depth: 6 n + 4 for n layers of two convolutions in each of 3 blocks, as in `DenseNetBC`.
        growth_rate: k, the feature maps that each layer adds, by way of 4k in its bottleneck.
        gamma: the part of each stage's input that goes around its block, in [0, 1), rounded to
            whole maps. 0 with fusion "first" is `DenseNetBC` itself. Defaults to 0.5.
        fusion: where the parts meet. "both": between two transitions, the paper's CSPDenseNet;
            "first": before the only transition; "last": after it, so that x_0' reaches the next
            stage as it is, only pooled. Defaults to "both".
        stem_filters: maps of the first convolution. Defaults to 2k.
        compression: theta in (0, 1], the fraction of feature maps that a transition keeps.
        include_top: see `DenseNetBC`, as are the other arguments and what is returned.

    Raises:
        ValueError: for an impossible depth (the message names the nearest possible ones), a gamma
            that leaves no map for one of the parts, and other arguments out of range.

    Reference:
        Wang et al. (2019), section 3.1, arxiv.org/abs/1911.11929
    """
    layers = blocks_per_stage(depth, 6, 4)
    stem = 2 * growth_rate if stem_filters is None else stem_filters
    _check_arguments(growth_rate, stem, fusion, compression, dropout_rate)

    def features(x):
        x = conv(stem, 3, "conv1_conv")(x)
        for number in (2, 3):
            x = partial_dense_stage(
                x, layers, growth_rate, gamma, fusion, compression, dropout_rate, number
            )
        x = cross_stage_partial(
            x, _dense_block(layers, growth_rate, dropout_rate, 4), gamma, name="conv4"
        )
        return stage_end(bn_relu(x, ""), 2)

    return build_image_model(
        features,
        default_shape=(32, 32, 3),
        min_size=4,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or f"csp_densenet_{depth}_{growth_rate}",
    )


def _check_arguments(growth_rate, stem_filters, fusion, compression, dropout_rate):
    for argument, number in {"growth_rate": growth_rate, "stem_filters": stem_filters}.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"`{argument}` must be a positive integer. Received: {number!r}")
    if fusion not in _FUSIONS:
        raise ValueError(f"`fusion` must be one of {', '.join(_FUSIONS)}. Received: {fusion!r}")
    if not 0 < compression <= 1:
        raise ValueError(f"`compression` must be in (0, 1]. Received: {compression!r}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"`dropout_rate` must be in [0, 1). Received: {dropout_rate!r}")
