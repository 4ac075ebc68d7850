"""The network of the deep conjugate direction method: A^-1 up to a factor, on a grid.

    conv - relu conv - residual pair - [half the resolution: residual pairs] + skip
         - residual pairs - linear, without bias

Without bias it is positively homogeneous, f(c r) = c f(r) for c >= 0, as A^-1 is.

"A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", Kaneda, Akar, Chen,
Kala, Hyde, Teran, 2022, arXiv 2205.10763; figure 3.

Deviations: the layers follow the authors' published training code, which has biases; `use_bias`
brings them back. Two dimensions are an addition, the paper has three.
Open choices: the numbers of residual pairs are arguments.
"""

import functools

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="A Deep Conjugate Direction Method for Iteratively Solving Linear Systems",
    authors=(
        "Ayano Kaneda", "Osman Akar", "Jingyu Chen", "Victoria Kala", "David Hyde", "Joseph Teran",
    ),
    year=2022,
    arxiv="2205.10763",
)  # fmt: skip


@component(
    PAPER,
    example=Example(
        kwargs={"filters": 4, "coarse_blocks": 1, "fine_blocks": 1},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 8, 6)).astype("float32"),),
    ),
)
class DCDMNet(keras.Model):
    """Turns residuals of A x = b into search directions, for fields on a grid of any even size.

    Args:
        dimensions: 2 or 3. Defaults to 2.
        filters: of every convolution. Defaults to 16.
        coarse_blocks: residual pairs of convolutions at half the resolution. Defaults to 3.
        fine_blocks: residual pairs after it. Defaults to 3.
        use_bias: whether the convolutions have biases. Defaults to False.
        dtype: policy of the layers. Defaults to the global one; the outputs are at least float32.

    Input: float [batch, *grid], every side even. Output: the same shape.

    Example:

    >>> model = DCDMNet()
    >>> model.compile("adam", ScaledResidualLoss(PoissonOperator(obstacles)))
    >>> model.fit(right_hand_sides, right_hand_sides)

    Reference:
        Kaneda et al. (2022), arxiv.org/abs/2205.10763
    """

    def __init__(
        self,
        dimensions=2,
        filters=16,
        coarse_blocks=3,
        fine_blocks=3,
        use_bias=False,
        dtype=None,
        **kwargs,
    ):
        if dimensions not in (2, 3):
            raise ValueError(f"`dimensions` must be 2 or 3. Received: {dimensions!r}")
        sizes = {"filters": filters, "coarse_blocks": coarse_blocks, "fine_blocks": fine_blocks}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        conv = functools.partial(
            keras.layers.Conv2D if dimensions == 2 else keras.layers.Conv3D,
            filters,
            3,
            padding="same",
            use_bias=use_bias,
            dtype=policy,
        )
        inputs = keras.Input([None] * dimensions, name="residual", dtype=policy.variable_dtype)
        x = conv()(keras.ops.expand_dims(inputs, -1))
        x = conv(activation="relu")(x)
        x = _residual_pair(x, conv, policy)
        skip = conv(activation="relu")(x)
        x = _pooling(dimensions, policy)(skip)
        for _ in range(coarse_blocks):
            x = _residual_pair(x, conv, policy)
        x = keras.layers.Add(dtype=policy)([_upsampling(dimensions, policy)(x), skip])
        for _ in range(fine_blocks):
            x = _residual_pair(x, conv, policy)
        wide = keras.backend.result_type(policy.compute_dtype, "float32")
        x = keras.layers.Dense(1, use_bias=use_bias, name="direction", dtype=wide)(x)
        super().__init__(inputs=inputs, outputs=keras.ops.squeeze(x, -1), **kwargs)
        self.config = {
            "dimensions": dimensions,
            **sizes,
            "use_bias": use_bias,
            "dtype": keras.dtype_policies.serialize(policy),
        }

    def get_config(self):
        return {"name": self.name, **self.config}


def _residual_pair(x, conv, policy):
    between = conv(activation="relu")(x)
    return keras.layers.Add(dtype=policy)([conv(activation="relu")(between), x])


def _pooling(dimensions, policy):
    pooling = keras.layers.AveragePooling2D if dimensions == 2 else keras.layers.AveragePooling3D
    return pooling(2, dtype=policy)


def _upsampling(dimensions, policy):
    upsampling = keras.layers.UpSampling2D if dimensions == 2 else keras.layers.UpSampling3D
    return upsampling(2, dtype=policy)
