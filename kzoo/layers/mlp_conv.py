"""MLP convolution: a small network slides over the image where a convolution slides a linear map.

    f_1 = ReLU(W_1 patch + b_1),   f_n = ReLU(W_n f_{n-1} + b_n)

at each position: a k x k convolution and then 1x1 convolutions, each with its activation.

"Network In Network", Lin, Chen, Yan, 2013, arXiv 1312.4400; section 3.1, equation 2.

Open choices: kernels begin He-normal and biases at 0; the paper sets them by hand.
"""

import keras

from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Network In Network",
    authors=("Min Lin", "Qiang Chen", "Shuicheng Yan"),
    year=2013,
    arxiv="1312.4400",
)


@component(
    PAPER,
    example=Example(
        kwargs={"units": (4, 3, 2), "kernel_size": 3},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 5, 6, 2)).astype("float32"),),
    ),
)
class MLPConv2D(keras.layers.Layer):
    """A multilayer perceptron that is applied to each patch of an image.

    Use it in the place of a `Conv2D` whose patches are not told apart by a linear map. After the
    first layer it costs as much as 1x1 convolutions do.

    Args:
        units: the widths of the perceptron's layers; the last is the number of output channels.
        kernel_size: one or two integers, the size of a patch.
        strides: one or two integers, from one patch to the next. Defaults to 1.
        padding: "same" or "valid". Defaults to "same".
        activation: of every layer. Defaults to "relu".
        kernel_initializer: of every layer. Defaults to "he_normal".
        kernel_regularizer: of every layer. Defaults to None.
        kwargs: of `keras.layers.Layer`.

    Input shape: [batch, height, width, channels].
    Output shape: [batch, new height, new width, units[-1]].

    Raises:
        ValueError: if there are no positive integers in `units`, and as `keras.layers.Conv2D`.

    Example:

    >>> MLPConv2D((192, 160, 96), 5)(images)

    Reference:
        Lin et al. (2013), section 3.1, arxiv.org/abs/1312.4400
    """

    def __init__(
        self,
        units,
        kernel_size,
        strides=1,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = tuple(units)
        if not self.units or not all(isinstance(each, int) and each > 0 for each in self.units):
            raise ValueError(f"`units` must be positive integers. Received: {units}")
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.perceptron = [self._layer(number, width) for number, width in enumerate(self.units, 1)]

    def _layer(self, number, width):
        first = number == 1
        initializer = self.kernel_initializer
        if isinstance(initializer, keras.initializers.Initializer):
            # A shared one would begin layers of one shape with the same values.
            initializer = initializer.clone()
        return keras.layers.Conv2D(
            width,
            self.kernel_size if first else 1,
            strides=self.strides if first else 1,
            padding=self.padding,
            data_format="channels_last",
            activation=self.activation,
            kernel_initializer=initializer,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name=f"mlp_{number}",
        )

    def build(self, input_shape):
        for layer in self.perceptron:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs):
        for layer in self.perceptron:
            inputs = layer(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        return (*self.perceptron[0].compute_output_shape(input_shape)[:-1], self.units[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
