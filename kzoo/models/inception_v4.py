"""Inception-v4: a deeper and more uniform Inception net, without residual connections.

    stem -> 4 x A (35x35x384) -> Reduction-A -> 7 x B (17x17x1024) -> Reduction-B
         -> 3 x C (8x8x1536) -> GAP -> dropout -> Dense

Every block concatenates branches of factorised convolutions, 1x7 with 7x1 and 1x3 with 3x1, each
of them followed by BN and ReLU.

"Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning", Szegedy,
Ioffe, Vanhoucke, Alemi, 2016, arXiv 1602.07261; section 3.1, figures 3 to 9.

Open choices: BN has gammas as in timm, whose checkpoints load, epsilon 1e-3 as in the authors'
code, and Keras's momentum 0.99 (theirs: 0.9997, for millions of steps); kernels begin He-normal.
The order of branches is that of the authors' code. `width` and `blocks` are ours, for small data.
"""

import functools
import re

from kzoo.layers.scaled_residual import PAPER
from kzoo.models.builder import build_image_model, stage_end
from kzoo.models.inception_blocks import (
    AVG,
    MAX,
    MIN_SIZE,
    Conv,
    InceptionLayers,
    check_inception,
    dropout_head,
    inception_v4_stem,
    preprocess_input,
    reduction_a,
    split_name,
)
from kzoo.papers import Example, component

__all__ = ["InceptionV4", "preprocess_input"]

_A = (
    (Conv(96, 1),),
    (Conv(64, 1), Conv(96, 3)),
    (Conv(64, 1), Conv(96, 3), Conv(96, 3)),
    (AVG, Conv(96, 1)),
)
_B = (
    (Conv(384, 1),),
    (Conv(192, 1), Conv(224, (1, 7)), Conv(256, (7, 1))),
    (Conv(192, 1), Conv(192, (7, 1)), Conv(224, (1, 7)), Conv(224, (7, 1)), Conv(256, (1, 7))),
    (AVG, Conv(128, 1)),
)
_REDUCTION_B = (
    (Conv(192, 1), Conv(192, 3, 2, "valid")),
    (Conv(256, 1), Conv(256, (1, 7)), Conv(320, (7, 1)), Conv(320, 3, 2, "valid")),
    (MAX,),
)
_C = (
    (Conv(256, 1),),
    (Conv(384, 1), [Conv(256, (1, 3)), Conv(256, (3, 1))]),
    (Conv(384, 1), Conv(448, (3, 1)), Conv(512, (1, 3)), [Conv(256, (1, 3)), Conv(256, (3, 1))]),
    (AVG, Conv(256, 1)),
)
# Each stage: the letter of its blocks, their branches, and the reduction after them.
_STAGES = (
    ("a", _A, reduction_a(192, 224, 256, 384)),
    ("b", _B, _REDUCTION_B),
    ("c", _C, None),
)


def _features(layers, blocks):
    def features(x):
        x = inception_v4_stem(layers, x)
        stages = zip(blocks, _STAGES, strict=True)
        for level, (count, (letter, branches, reduction)) in enumerate(stages, 3):
            for number in range(1, count + 1):
                x = layers.block(x, branches, f"inception_{letter}{number}")
            x = stage_end(x, level)
            if reduction:
                x = layers.block(x, reduction, f"reduction_{letter}")
        return x

    return features


def timm_name(blocks, layer):
    """The names of a layer in timm's checkpoints, one of which is there."""
    if layer == "logits":
        return "last_linear"
    block, branch, step, kind = split_name(layer)
    module = f"features.{_timm_index(blocks, block)}"
    if branch is None:
        return f"{module}.{kind}"
    return (
        f"{module}.{branch}.{step}.{kind}",
        f"{module}.{branch}_{step}.{kind}",  # in C blocks, whose branches are no sequences
        f"{module}.{branch}.{kind}",  # the only step of its branch
        f"{module}.conv.{kind}",  # the only convolution of its block, in the stem
    )


def _timm_index(blocks, block):
    """The place of a block in the sequence of all blocks."""
    a, b, _ = blocks
    before = {
        "stem": 0,
        "inception_a": 5,
        "reduction_a": 6 + a,
        "inception_b": 6 + a,
        "reduction_b": 7 + a + b,
        "inception_c": 7 + a + b,
    }
    kind, number = re.fullmatch(r"(\D+)(\d*)", block).groups()
    return before[kind] + int(number or 0)


@component(
    PAPER,
    example=Example(
        kwargs={
            "input_shape": (MIN_SIZE, MIN_SIZE, 3),
            "classes": 3,
            "dropout_rate": 0.0,
            "blocks": (1, 0, 0),
            "width": 1 / 32,
        },
        inputs=lambda rng, batch: (
            rng.normal(size=(batch, MIN_SIZE, MIN_SIZE, 3)).astype("float32"),
        ),
    ),
)
def InceptionV4(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    dropout_rate=0.2,
    blocks=(4, 7, 3),
    width=1.0,
    name="inception_v4",
):
    """Inception-v4: 42,679,816 trainable parameters with 1000 classes.

    Args:
        include_top: whether the classifier is part of the model; else it ends with the last block.
        weights: None for random ones, or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of timm's `inception_v4` (the input then needs
            `kzoo.models.inception_v4.preprocess_input`).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (299, 299, 3). Height and width are at
            least 75 or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        dropout_rate: of the features before the classifier, in [0, 1). Defaults to 0.2: the paper
            keeps 0.8.
        blocks: number of A, B and C blocks, each at least 0. Defaults to the paper's (4, 7, 3).
        width: factor of the number of filters of every convolution. Defaults to 1.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Szegedy et al. (2016), section 3.1, arxiv.org/abs/1602.07261
    """
    check_inception(blocks, width, dropout_rate)
    return build_image_model(
        _features(InceptionLayers(width, batch_norm_scale=True), blocks),
        default_shape=(299, 299, 3),
        min_size=MIN_SIZE,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        torch_names=functools.partial(timm_name, blocks),
        top=dropout_head(dropout_rate),
    )
