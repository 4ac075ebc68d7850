"""Two convolutional nets of the same weights: a deep residual stack, or its parallel branches.

    deep:       x <- x + F_i(x), one after the other        F_i(x) = activation(W_i * x + b_i)
    shallow:    x + sum_i F_i(x)

"Make Deep Networks Shallow Again", Bermeitinger, Hrycej, Handschuh, 2023, arXiv 2309.08414: deep
and shallow nets of such stacks are trained on MNIST and CIFAR-10 and reach similar losses.

Open choices: what is around the stack, a convolution to its width before it, global average pooling
and a dense layer behind it; ReLU and Glorot's initialization, Keras's default.
"""

import keras

from kzoo.layers.fused_parallel_conv import PAPER
from kzoo.models.builder import build_image_model, stage_end
from kzoo.models.parallel_residual import ParallelResidual, SequentialResidual
from kzoo.papers import Example, component

_LAYOUTS = {"sequential": SequentialResidual, "parallel": ParallelResidual}


@component(
    PAPER,
    example=Example(
        kwargs={"depth": 2, "filters": 3, "input_shape": (4, 4, 1)},
        inputs=lambda rng, batch: (rng.normal(size=(batch, 4, 4, 1)).astype("float32"),),
    ),
)
def ResidualConvNet(
    depth,
    filters,
    kernel_size=3,
    layout="sequential",
    activation="relu",
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    name="residual_conv_net",
):
    """A residual stack of convolutions, deep or shallow: the two layouts have the same weights.

        image -> convolution to `filters` -> stack -> global average pooling -> dense

    With c channels, k = kernel_size, f = filters, both layouts have
    (k k c + 1) f + depth (k k f + 1) f + (f + 1) classes parameters.

    Args:
        depth: number of branches.
        filters: of every convolution.
        kernel_size: of every convolution. Defaults to 3.
        layout: "sequential", the deep net, or "parallel", the shallow one.
        activation: of every convolution. Defaults to "relu".
        include_top: whether pooling and the dense layer are part of the model.
        weights: None for random ones, or the path of a .keras or .weights.h5 file of this layout;
            `to_parallel` turns a deep net into a shallow one.
        input_tensor: a Keras tensor to begin with instead of a new input.
        input_shape: (height, width, channels), defaults to (32, 32, 3). Height and width are any
            or None.
        pooling: without the top: None, "avg" or "max" (global).
        classes: width of the output.
        classifier_activation: of the output; None for logits. The output is float32 or better.
        name: of the model.

    Returns:
        A functional `keras.Model`: [batch, height, width, channels] -> [batch, classes].

    Raises:
        ValueError: for arguments out of range.

    Reference:
        Bermeitinger et al. (2023), arxiv.org/abs/2309.08414
    """
    for argument, value in (("depth", depth), ("filters", filters), ("kernel_size", kernel_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{argument}` must be a positive integer. Received: {value!r}")
    if layout not in _LAYOUTS:
        raise ValueError(f'`layout` must be "sequential" or "parallel". Received: {layout!r}')

    def conv(name):
        return keras.layers.Conv2D(
            filters, kernel_size, padding="same", activation=activation, name=name
        )

    def features(x):
        branches = [conv(f"branch{number}") for number in range(1, depth + 1)]
        return stage_end(_LAYOUTS[layout](branches, name="stack")(conv("stem")(x)), 0)

    return build_image_model(
        features,
        default_shape=(32, 32, 3),
        min_size=1,
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name,
    )
