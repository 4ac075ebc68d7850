"""Inception depthwise convolution: a large depthwise kernel, taken apart into four branches.

    [x_id, x_hw, x_w, x_h] = split(x)                     g channels for each of the last three
    y = [x_id, DWConv_{3x3}(x_hw), DWConv_{1x11}(x_w), DWConv_{11x1}(x_h)],     g = C * ratio

It is an 11x11 depthwise convolution whose kernels are mostly zero: a single one in the middle for
the first C - 3 g channels, a 3x3 square, a row and a column for g channels each. A position costs
g (9 + 11 + 11) multiply-adds, where the full kernels take 121 C.

"InceptionNeXt: When Inception Meets ConvNeXt", Yu, Zhou, Yan, Wang, 2023, arXiv 2303.16900;
section 3.2 and algorithm 1.

Open choice: g is rounded down where C * ratio is no integer, as in the authors' code.
"""

import keras
from keras import ops

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="InceptionNeXt: When Inception Meets ConvNeXt",
    authors=("Weihao Yu", "Pan Zhou", "Shuicheng Yan", "Xinchao Wang"),
    year=2023,
    arxiv="2303.16900",
)


@component(
    PAPER,
    example=Example(
        kwargs={"band_kernel_size": 5, "branch_ratio": 0.25},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 6, 7, 8)).astype("float32"),),
    ),
)
class InceptionDepthwiseConv2D(keras.layers.Layer):
    """Depthwise convolution with square, horizontal, vertical and identity branches.

    The map keeps its size (zeros outside of it, stride 1), and the channels keep their order. The
    branches are `keras.layers.DepthwiseConv2D` layers: `square`, `horizontal` and `vertical`.

    Args:
        square_kernel_size: height and width of the square kernels, odd. Defaults to 3.
        band_kernel_size: length of the horizontal and vertical kernels, odd. Defaults to 11.
        branch_ratio: fraction of the channels in each of the three branches with kernels, in
            (0, 1/3]; all others stay as they are. Defaults to 1/8.
        use_bias: whether the three branches have one. Defaults to True.
        depthwise_initializer, bias_initializer: default to "glorot_uniform" and "zeros".
        depthwise_regularizer, bias_regularizer: default to None.
        depthwise_constraint, bias_constraint: default to None.
        kwargs: `name`, `dtype` and the other arguments of `keras.layers.Layer`.

    Input shape: [batch, height, width, channels], floats, with at least 1 / `branch_ratio`
    channels. Output shape: the same.

    Raises:
        ValueError: for arguments out of range, and inputs of another rank or too few channels.

    Reference:
        Yu et al. (2023), section 3.2, arxiv.org/abs/2303.16900
    """

    def __init__(
        self,
        square_kernel_size=3,
        band_kernel_size=11,
        branch_ratio=0.125,
        use_bias=True,
        depthwise_initializer="glorot_uniform",
        bias_initializer="zeros",
        depthwise_regularizer=None,
        bias_regularizer=None,
        depthwise_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.square_kernel_size = _odd(square_kernel_size, "square_kernel_size")
        self.band_kernel_size = _odd(band_kernel_size, "band_kernel_size")
        if not 0 < branch_ratio <= 1 / 3:
            raise ValueError(f"`branch_ratio` must be in (0, 1/3]. Received: {branch_ratio!r}")
        self.branch_ratio = branch_ratio
        self.use_bias = use_bias
        self.depthwise_initializer = keras.initializers.get(depthwise_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.depthwise_regularizer = keras.regularizers.get(depthwise_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.depthwise_constraint = keras.constraints.get(depthwise_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.square = self._branch(self.square_kernel_size, "square")
        self.horizontal = self._branch((1, self.band_kernel_size), "horizontal")
        self.vertical = self._branch((self.band_kernel_size, 1), "vertical")

    def build(self, input_shape):
        if len(input_shape) != 4 or input_shape[-1] is None:
            raise ValueError(
                f"{self.name!r} needs inputs [batch, height, width, channels] with a known number "
                f"of channels. Received the shape {tuple(input_shape)}"
            )
        channels = input_shape[-1]
        self.branch_channels = int(channels * self.branch_ratio)
        if self.branch_channels < 1:
            raise ValueError(
                f"{self.name!r} with `branch_ratio` {self.branch_ratio} needs at least "
                f"{1 / self.branch_ratio:.0f} channels. Received: {channels}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})
        for branch in (self.square, self.horizontal, self.vertical):
            branch.build((*input_shape[:-1], self.branch_channels))

    def call(self, inputs):
        kept = inputs.shape[-1] - 3 * self.branch_channels
        bounds = [kept + branch * self.branch_channels for branch in range(3)]
        identity, square, horizontal, vertical = ops.split(inputs, bounds, axis=-1)
        return ops.concatenate(
            [identity, self.square(square), self.horizontal(horizontal), self.vertical(vertical)],
            axis=-1,
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "square_kernel_size": self.square_kernel_size,
            "band_kernel_size": self.band_kernel_size,
            "branch_ratio": self.branch_ratio,
            "use_bias": self.use_bias,
            "depthwise_initializer": keras.initializers.serialize(self.depthwise_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "depthwise_regularizer": keras.regularizers.serialize(self.depthwise_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "depthwise_constraint": keras.constraints.serialize(self.depthwise_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }

    def _branch(self, kernel_size, name):
        return keras.layers.DepthwiseConv2D(
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=self.use_bias,
            # An initializer without a seed would draw the same numbers for all that share it.
            depthwise_initializer=self.depthwise_initializer.clone(),
            bias_initializer=self.bias_initializer.clone(),
            depthwise_regularizer=self.depthwise_regularizer,
            bias_regularizer=self.bias_regularizer,
            depthwise_constraint=self.depthwise_constraint,
            bias_constraint=self.bias_constraint,
            dtype=self.dtype_policy,
            name=name,
        )


def _odd(size, argument):
    if not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(f"`{argument}` must be an odd positive integer. Received: {size!r}")
    return size
