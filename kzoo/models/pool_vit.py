"""PoolViT: a vision transformer in which every second self-attention is max-pooling.

    x <- x + T(LN(x)),   x <- x + MLP(LN(x))
    T = Dense(3 d)-GELU-MaxPool3x3-GELU-Dense(d)   in every second block, else self-attention

The pooling runs over the grid of patches. There is no class token: the mean of all positions is
classified.

"Learning Features with Parameter-Free Layers", Han, Yoo, Kim, Heo, 2022, arXiv 2202.02777;
section 4.3 (ViT-S-max), with the layers and their order of the authors' code.

Open choices, as in that code: attention comes first; GELU is applied before and after the pooling;
dense kernels and positions begin normal with deviation 0.02, biases at 0; LN has epsilon 1e-6.
Attention is `keras.layers.MultiHeadAttention`, into which explainers look; it keeps the weights of
query, key and value apart, so the authors' checkpoints do not fit.
"""

import functools

import keras

from kzoo.layers.position_embedding import PositionEmbedding2D
from kzoo.models.builder import build_image_model, stage_end
from kzoo.models.pf_resnet import PAPER
from kzoo.papers import Example, component


def _normal():
    return keras.initializers.RandomNormal(stddev=0.02)


def _dense(units, name):
    return keras.layers.Dense(units, kernel_initializer=_normal(), name=name)


def _norm(x, name):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def _gelu(x, name):
    return keras.layers.Activation("gelu", name=name)(x)


def pooled_mixer(x, name):
    """Mixes neighbours by max-pooling: [batch, height, width, d] -> the same shape."""
    width = x.shape[-1]
    x = _gelu(_dense(3 * width, f"{name}_1_dense")(x), f"{name}_1_gelu")
    x = keras.layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    return _dense(width, f"{name}_2_dense")(_gelu(x, f"{name}_2_gelu"))


def attention_mixer(x, name, heads):
    """Self-attention of all positions: [batch, height, width, d] -> the same shape."""
    height, width, channels = x.shape[1:]
    tokens = keras.layers.Reshape((height * width, channels), name=f"{name}_tokens")(x)
    attention = keras.layers.MultiHeadAttention(
        heads, channels // heads, kernel_initializer=_normal(), name=name
    )
    y = attention(tokens, tokens)
    return keras.layers.Reshape((height, width, channels), name=f"{name}_map")(y)


def _residual(x, y, drop_path_rate, name):
    if drop_path_rate:
        y = keras.layers.Dropout(drop_path_rate, (None, 1, 1, 1), name=f"{name}_drop_path")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _block(x, mixer, mlp_ratio, drop_path_rate, name):
    y = mixer(_norm(x, f"{name}_mixer_norm"), f"{name}_mixer")
    x = _residual(x, y, drop_path_rate, f"{name}_mixer")
    y = _dense(int(mlp_ratio * x.shape[-1]), f"{name}_mlp_1_dense")(_norm(x, f"{name}_mlp_norm"))
    y = _dense(x.shape[-1], f"{name}_mlp_2_dense")(_gelu(y, f"{name}_mlp_gelu"))
    return _residual(x, y, drop_path_rate, f"{name}_mlp")


@component(
    PAPER,
    example=Example(
        kwargs={
            "depth": 2,
            "dim": 8,
            "heads": 2,
            "patch_size": 4,
            "input_shape": (8, 12, 3),
            "classes": 3,
        },
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 12, 3)).astype("float32"),),
    ),
)
def PoolViT(
    depth=12,
    dim=384,
    heads=6,
    patch_size=16,
    mlp_ratio=4.0,
    drop_path_rate=0.0,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="pool_vit",
):
    """A vision transformer whose second, fourth, ... block pools instead of attending.

    The defaults are those of ViT-S-max; ViT-Ti-max has 192 for `dim` and 3 `heads`, ViT-B-max 768
    and 12.

    Args:
        depth: number of blocks. Defaults to 12.
        dim: width of the blocks, d, a multiple of `heads`. Defaults to 384.
        heads: of each attention. Defaults to 6.
        patch_size: height and width of the patches, a power of 2. Defaults to 16.
        mlp_ratio: hidden units of the MLPs over `dim`. Defaults to 4.
        drop_path_rate: probability, in [0, 1), that training leaves out a term of the last block,
            for each example; it falls linearly to 0 at the first. Defaults to 0.
        include_top: whether the classifier is part of the model; else it ends with the last norm.
        weights: None for random ones, or the path of a .keras or .weights.h5 file.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (224, 224, 3). Height and width are
            fixed, since every patch has a position of its own; what is left of patches is cut off.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range, and images of open height or width.

    Reference:
        Han et al. (2022), section 4.3, arxiv.org/abs/2202.02777
    """
    _check(depth, dim, heads, patch_size, drop_path_rate)

    def features(x):
        x = keras.layers.Conv2D(
            dim, patch_size, patch_size, kernel_initializer=_normal(), name="patches"
        )(x)
        x = PositionEmbedding2D(name="positions")(x)
        for block in range(depth):
            mixer = pooled_mixer if block % 2 else functools.partial(attention_mixer, heads=heads)
            rate = drop_path_rate * block / max(depth - 1, 1)
            x = _block(x, mixer, mlp_ratio, rate, f"block{block + 1}")
        return stage_end(_norm(x, "norm"), patch_size.bit_length() - 1)

    return build_image_model(
        features,
        default_shape=(224, 224, 3),
        min_size=patch_size,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
    )


def _check(depth, dim, heads, patch_size, drop_path_rate):
    sizes = {"depth": depth, "dim": dim, "heads": heads, "patch_size": patch_size}
    for argument, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"`{argument}` must be a positive integer. Received: {size!r}")
    if dim % heads:
        raise ValueError(f"`dim` must be a multiple of `heads`. Received: {dim} and {heads}")
    if patch_size & (patch_size - 1):
        raise ValueError(f"`patch_size` must be a power of 2. Received: {patch_size}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: {drop_path_rate!r}")
