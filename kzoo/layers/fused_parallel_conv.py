"""Residual branches that are convolutions, beside each other, as one convolution.

    y = x + sum_i activation(W_i * x + b_i),    i = 1 ... n

All W_i are groups of filters of one kernel, [k, k, C, n C], whose n groups of maps are added up.

"Make Deep Networks Shallow Again", Bermeitinger, Hrycej, Handschuh, 2023, arXiv 2309.08414: the
one broad layer that takes the place of a deep residual stack; `kzoo.models.to_parallel` makes it.
"""

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Make Deep Networks Shallow Again",
    authors=("Bernhard Bermeitinger", "Tomas Hrycej", "Siegfried Handschuh"),
    year=2023,
    arxiv="2309.08414",
)


@component(
    PAPER,
    example=Example(
        kwargs={"branches": 3, "kernel_size": 3, "activation": "relu"},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4, 4, 2)).astype("float32"),),
    ),
)
class FusedParallelConv2D(keras.layers.Layer):
    """`ParallelResidual` of convolutions as one convolution: x + sum_i activation(W_i * x + b_i).

    The filters of branch i of C are i C ... (i + 1) C - 1 of the one convolution, `conv`.

    Args:
        branches: number of branches.
        kernel_size: of the convolution, which keeps height and width.
        activation: of each branch. Defaults to None.
        use_bias: whether the branches have biases. Defaults to True.
        kernel_initializer: of the one kernel. Defaults to "glorot_uniform", which counts the
            filters of all branches.
        kwargs: of `keras.layers.Layer`.

    Input: floating [batch, height, width, channels]. Output shape: that shape.

    Raises:
        ValueError: if `branches` is no positive integer.

    Reference:
        Bermeitinger et al. (2023), arxiv.org/abs/2309.08414
    """

    def __init__(
        self,
        branches,
        kernel_size,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(branches, int) or isinstance(branches, bool) or branches < 1:
            raise ValueError(f"`branches` must be a positive integer. Received: {branches!r}")
        self.branches = branches
        self.kernel_size = kernel_size
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.conv = keras.layers.Conv2D(
            self.branches * input_shape[-1],
            self.kernel_size,
            padding="same",
            activation=self.activation,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build(input_shape)

    def call(self, inputs):
        maps = keras.ops.split(self.conv(inputs), self.branches, axis=-1)
        return inputs + sum(maps)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "branches": self.branches,
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
