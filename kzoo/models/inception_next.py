"""InceptionNeXt: ConvNeXt with an Inception depthwise convolution for the 7x7 one.

    y = x + gamma * MLP(BN(mixer(x))),   MLP = Conv1x1(r C)-GELU-Conv1x1(C)      (MetaNeXt block)

The mixer is `kzoo.layers.InceptionDepthwiseConv2D`. A 4x4 convolution of stride 4 and BN begin the
net; BN and a 2x2 convolution of stride 2 stand between its four stages. r is 4, and 3 in the last
stage, whose parameters go into the head: GAP-Dense(3 C)-GELU-LN-Dense(classes).

"InceptionNeXt: When Inception Meets ConvNeXt", Yu, Zhou, Yan, Wang, 2023, arXiv 2303.16900;
sections 3.1 to 3.3, table 2. Layer scale begins at 1e-6, and stochastic depth drops the branch of
an example with a probability that grows linearly from 0 at the first block to `drop_path_rate` at
the last, as in ConvNeXt. Stochastic depth is `keras.layers.Dropout` with one number per example.

Open choices, all as in the authors' code: convolutions and dense layers have biases that begin at
0 and kernels of a normal distribution of deviation 0.02; BN has momentum 0.9 and epsilon 1e-5, LN
1e-6; GELU is the exact one. Atto (bands of 9, a quarter of the channels per branch) is from that
code. A stem of another stride, other depths and other ratios are for smaller images.
"""

import re

import keras

from kzoo.layers.inception_depthwise_conv import PAPER, InceptionDepthwiseConv2D
from kzoo.layers.layer_scale import LayerScale
from kzoo.models.builder import batch_norm, build_image_model, preprocess_as_torch, stage_end
from kzoo.papers import Example, component

preprocess_input = preprocess_as_torch


def _normal():
    return keras.initializers.RandomNormal(stddev=0.02)


def _conv(filters, size, name):
    """A convolution of patches that do not overlap."""
    return keras.layers.Conv2D(filters, size, strides=size, kernel_initializer=_normal(), name=name)


def _norm(x, name):
    return batch_norm(x, name, epsilon=1e-5)


def metanext_block(x, mixer, mlp_ratio, drop_path_rate, layer_scale_init, name):
    """Returns x + gamma * MLP(BN(mixer(x))).

    Args:
        mixer: a layer, from maps to maps of the same shape.
        mlp_ratio: hidden channels of the MLP for each channel of `x`.
        drop_path_rate: probability that training leaves out the second term, for each example.
        layer_scale_init: first value of gamma.
    """
    channels = x.shape[-1]
    y = _norm(mixer(x), f"{name}_bn")
    y = _conv(int(mlp_ratio * channels), 1, f"{name}_fc1")(y)
    y = keras.layers.Activation("gelu", name=f"{name}_gelu")(y)
    y = _conv(channels, 1, f"{name}_fc2")(y)
    y = LayerScale(layer_scale_init, name=f"{name}_scale")(y)
    if drop_path_rate:
        y = keras.layers.Dropout(drop_path_rate, (None, 1, 1, 1), name=f"{name}_drop_path")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _features(depths, widths, mlp_ratios, mixer, drop_path_rate, layer_scale_init, patch_size):
    """The stem and the stages."""

    def features(x):
        x = _norm(_conv(widths[0], patch_size, "stem_conv")(x), "stem_bn")
        total, done = sum(depths), 0
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            if stage > 1:
                x = _norm(x, f"stage{stage}_down_bn")
                x = _conv(width, 2, f"stage{stage}_down_conv")(x)
            for block in range(1, depth + 1):
                name = f"stage{stage}_block{block}"
                layer = InceptionDepthwiseConv2D(
                    depthwise_initializer=_normal(), name=f"{name}_mixer", **mixer
                )
                rate = drop_path_rate * done / max(total - 1, 1)
                x = metanext_block(x, layer, mlp_ratios[stage - 1], rate, layer_scale_init, name)
                done += 1
            x = stage_end(x, patch_size.bit_length() + stage - 2)
        return x

    return features


def _mlp_head(x, classes):
    hidden = 3 * x.shape[-1]
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = keras.layers.Dense(hidden, kernel_initializer=_normal(), name="head_fc1")(x)
    x = keras.layers.Activation("gelu", name="head_gelu")(x)
    x = keras.layers.LayerNormalization(epsilon=1e-6, name="head_norm")(x)
    dtype = keras.backend.result_type(x.dtype, "float32")
    return keras.layers.Dense(classes, kernel_initializer=_normal(), dtype=dtype, name="head_fc2")(
        x
    )


_TORCH_MIXER = {"square": "dwconv_hw", "horizontal": "dwconv_w", "vertical": "dwconv_h"}
_TORCH_BLOCK = {"bn": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "scale": "gamma"}


def timm_name(layer):
    """The name of a layer in the authors' checkpoints, which are those of timm."""
    if found := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)(?:/(\w+))?", layer):
        stage, block, part, branch = found.groups()
        part = f"token_mixer.{_TORCH_MIXER[branch]}" if branch else _TORCH_BLOCK[part]
        return f"stages.{int(stage) - 1}.blocks.{int(block) - 1}.{part}"
    if found := re.fullmatch(r"stage(\d)_down_(bn|conv)", layer):
        return f"stages.{int(found[1]) - 1}.downsample.{('bn', 'conv').index(found[2])}"
    return {"stem_conv": "stem.0", "stem_bn": "stem.1"}.get(layer, layer.replace("_", ".", 1))


@component(
    PAPER,
    example=Example(
        kwargs={
            "depths": (1, 1),
            "widths": (8, 16),
            "patch_size": 2,
            "layer_scale_init": 1.0,
            "input_shape": (8, 8, 3),
            "classes": 3,
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 8, 3)).astype("float32"),),
    ),
)
def InceptionNeXt(
    depths,
    widths,
    mlp_ratios=None,
    band_kernel_size=11,
    branch_ratio=0.125,
    drop_path_rate=0.0,
    layer_scale_init=1e-6,
    patch_size=4,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="inception_next",
):
    """An InceptionNeXt of any size, for small images as well.

    Args:
        depths: number of blocks of each stage.
        widths: channels of each stage.
        mlp_ratios: hidden channels of the MLP over `widths`, of each stage. Defaults to 4, and 3
            in the last.
        band_kernel_size: length of the row and column kernels, odd. Defaults to 11.
        branch_ratio: fraction of the channels with square kernels, as of those with row and column
            kernels, in (0, 1/3]. Defaults to 1/8.
        drop_path_rate: probability, in [0, 1), that training leaves out the last block's branch;
            it falls linearly to 0 at the first block. Defaults to 0.
        layer_scale_init: first value of gamma. Defaults to 1e-6.
        patch_size: size and stride of the first convolution, a power of 2. Defaults to 4.
        include_top: whether the MLP head is part of the model; else it ends with the last stage.
        weights: None for random ones, or the path of a .keras or .weights.h5 file, or of a .pth or
            .safetensors file of the authors or of timm (the input then needs
            `kzoo.models.inception_next.preprocess_input`).
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are any
            from `patch_size` * 2^(stages - 1) on, or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Yu et al. (2023), section 3.3 and table 2, arxiv.org/abs/2303.16900
    """
    depths, widths = _positive(depths, "depths"), _positive(widths, "widths")
    if mlp_ratios is None:
        mlp_ratios = (len(depths) - 1) * (4,) + (3,)
    if not len(depths) == len(widths) == len(mlp_ratios):
        raise ValueError(
            "`depths`, `widths` and `mlp_ratios` must have one number for each stage. Received: "
            f"{depths}, {widths} and {tuple(mlp_ratios)}"
        )
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: {drop_path_rate!r}")
    if not isinstance(patch_size, int) or patch_size < 1 or patch_size & (patch_size - 1):
        raise ValueError(f"`patch_size` must be a power of 2. Received: {patch_size!r}")
    mixer = {"band_kernel_size": band_kernel_size, "branch_ratio": branch_ratio}
    return build_image_model(
        _features(depths, widths, mlp_ratios, mixer, drop_path_rate, layer_scale_init, patch_size),
        default_shape=(224, 224, 3),
        min_size=patch_size * 2 ** (len(depths) - 1),
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
        torch_names=timm_name,
        top=_mlp_head,
    )


def _positive(sizes, argument):
    sizes = tuple(sizes)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"`{argument}` must be positive integers. Received: {sizes}")
    return sizes


def _variant(size, depths, widths, drop_path_rate, **mixer):
    """Makes the constructor of a published size."""

    model_name = f"inception_next_{size.lower()}"

    def build(drop_path_rate=drop_path_rate, name=model_name, **kwargs):
        return InceptionNeXt(
            depths, widths, drop_path_rate=drop_path_rate, name=name, **mixer, **kwargs
        )

    build.__name__ = build.__qualname__ = f"InceptionNeXt{size}"
    build.__doc__ = f"""InceptionNeXt-{size}: stages of {depths} blocks, {widths} channels wide.

    Args:
        drop_path_rate: stochastic depth in training. Defaults to {drop_path_rate}, as published.
        name: of the model.
        kwargs: `include_top`, `weights` and all others of `InceptionNeXt` from there on.

    Reference:
        Yu et al. (2023), table 2, arxiv.org/abs/2303.16900
    """
    return component(PAPER)(build)


InceptionNeXtAtto = _variant(
    "Atto", (2, 2, 6, 2), (40, 80, 160, 320), 0.1, band_kernel_size=9, branch_ratio=0.25
)
InceptionNeXtTiny = _variant("Tiny", (3, 3, 9, 3), (96, 192, 384, 768), 0.1)
InceptionNeXtSmall = _variant("Small", (3, 3, 27, 3), (96, 192, 384, 768), 0.3)
InceptionNeXtBase = _variant("Base", (3, 3, 27, 3), (128, 256, 512, 1024), 0.4)
