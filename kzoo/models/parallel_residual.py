"""Deep residual stacks, and the shallow layer of parallel branches that is their first order.

    sequential:     y = (I + F_n) ... (I + F_2)(I + F_1) x
    first order:    y = x + sum_i F_i(x)                              (parallel)
    second order:   y = x + sum_i F_i(x) + sum_{i>j} F_i'(x) F_j(x)

Expanding the product and keeping what is linear in the branches makes of n layers one behind the
other n branches beside each other, of the same weights. Branches that are convolutions with an
activation are one convolution of n times the filters, whose n groups are added up.

"Make Deep Networks Shallow Again", Bermeitinger, Hrycej, Handschuh, 2023, arXiv 2309.08414.
The one convolution is `kzoo.layers.FusedParallelConv2D`; networks around a stack of either layout
are `kzoo.models.ResidualConvNet`.
"""

import keras
import tensorflow as tf

from kzoo.layers.fused_parallel_conv import PAPER, FusedParallelConv2D
from kzoo.papers import Example, component


def _branches():
    return {"branches": [keras.layers.Dense(4, "tanh") for _ in range(3)]}


def _rows(rng, batch):
    return (rng.normal(size=(batch, 4)).astype("float32"),)


class _Branches(keras.layers.Layer):
    """What the two orders of composition share: the branches."""

    def __init__(self, branches, **kwargs):
        super().__init__(**kwargs)
        branches = list(branches)
        if not branches or not all(isinstance(each, keras.layers.Layer) for each in branches):
            raise ValueError(f"`branches` must be one or more Keras layers. Received: {branches}")
        self.branches = branches

    def build(self, input_shape):
        for number, branch in enumerate(self.branches):
            output_shape = branch.compute_output_shape(input_shape)
            if tuple(output_shape) != tuple(input_shape):
                raise ValueError(
                    f"Each branch of {self.name!r} must return the shape that it takes, "
                    f"{tuple(input_shape)}. Received: {tuple(output_shape)} from branch {number}"
                )
            if not branch.built:
                branch.build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        branches = [keras.saving.serialize_keras_object(branch) for branch in self.branches]
        return {**super().get_config(), "branches": branches}

    @classmethod
    def from_config(cls, config):
        branches = [keras.saving.deserialize_keras_object(each) for each in config["branches"]]
        return cls(**{**config, "branches": branches})


@component(PAPER, example=Example(kwargs=_branches, inputs=_rows))
class SequentialResidual(_Branches):
    """A stack of residual layers, x <- x + F_i(x), one after the other.

    Args:
        branches: the layers F_i, in their order; each returns the shape that it takes.
        kwargs: of `keras.layers.Layer`.

    Input: a tensor of any shape. Output shape: that shape.

    Raises:
        ValueError: for branches that are no layers, or that change the shape.

    Reference:
        Bermeitinger et al. (2023), arxiv.org/abs/2309.08414
    """

    def call(self, inputs):
        for branch in self.branches:
            inputs = inputs + branch(inputs)
        return inputs


@component(PAPER, example=Example(kwargs=_branches, inputs=_rows))
class ParallelResidual(_Branches):
    """Residual branches beside each other: x + sum_i F_i(x).

    Args:
        branches: the layers F_i; each returns the shape that it takes.
        kwargs: of `keras.layers.Layer`.

    Input: a tensor of any shape. Output shape: that shape.

    Raises:
        ValueError: for branches that are no layers, or that change the shape.

    Example:

    >>> deep = SequentialResidual([keras.layers.Dense(8, "relu") for _ in range(4)])
    >>> deep.build((None, 8))
    >>> shallow = to_parallel(deep)

    Reference:
        Bermeitinger et al. (2023), arxiv.org/abs/2309.08414
    """

    def call(self, inputs):
        return inputs + sum(branch(inputs) for branch in self.branches)


@component(PAPER)
def to_parallel(residual, fused=False):
    """Returns the first order of a residual stack, with copies of its weights.

    Args:
        residual: a `SequentialResidual` that is built, or a functional or sequential model with
            such layers (not inside of a nested model), each of which is replaced.
        fused: whether the branches become one `FusedParallelConv2D`; they must be `Conv2D`s of
            stride 1 that differ in their weights only. Defaults to False: a `ParallelResidual`.

    Returns:
        A layer, or a model, of as many weights.

    Raises:
        ValueError: if there is no `SequentialResidual`, one is not built, or cannot be fused.

    Reference:
        Bermeitinger et al. (2023), arxiv.org/abs/2309.08414
    """
    if isinstance(residual, SequentialResidual):
        return _first_order(residual, fused)
    if not isinstance(residual, keras.Model) or not any(
        isinstance(layer, SequentialResidual) for layer in residual.layers
    ):
        raise ValueError(
            "`residual` must be a SequentialResidual or a model with such layers. "
            f"Received: {residual!r}"
        )

    def convert(layer):
        if isinstance(layer, SequentialResidual):
            return _first_order(layer, fused)
        return type(layer).from_config(layer.get_config())

    model = keras.models.clone_model(residual, clone_function=convert)
    for layer in residual.layers:
        if not isinstance(layer, SequentialResidual):
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def second_order_term(residual, inputs):
    """What of a residual stack is of second order in its branches: sum_{i>j} F_i'(x) F_j(x).

    Added to the output of `to_parallel(residual)`, it leaves a difference of third order.

    Args:
        residual: a `SequentialResidual`.
        inputs: floating tensor, x.

    Returns:
        A tensor of the shape of `inputs`.
    """
    inputs = tf.convert_to_tensor(inputs)
    before = total = tf.zeros_like(inputs)
    for branch in residual.branches:
        with tf.autodiff.ForwardAccumulator(inputs, before) as forward:
            outputs = branch(inputs)
        total += forward.jvp(outputs, unconnected_gradients="zero")
        before += outputs
    return total


def _first_order(residual, fused):
    if not residual.built:
        raise ValueError(f"`residual` must be built. Received: {residual.name!r}, which is not.")
    if fused:
        return _fuse(residual)
    parallel = ParallelResidual.from_config(residual.get_config())
    for copy, branch in zip(parallel.branches, residual.branches, strict=True):
        copy.set_weights(branch.get_weights())
    return parallel


def _fuse(residual):
    first = residual.branches[0]
    for branch in residual.branches:
        if type(branch) is not keras.layers.Conv2D or not _same_kind(branch, first):
            raise ValueError(
                f"The branches of {residual.name!r} must be Conv2D layers of stride 1, without "
                "dilation and groups, with padding 'same', that have one kernel size, one "
                f"activation and all or none a bias, to be fused. Received: {branch.name!r}"
            )
    fused = FusedParallelConv2D(
        len(residual.branches),
        first.kernel_size,
        first.activation,
        first.use_bias,
        dtype=residual.dtype_policy,
        name=residual.name,
    )
    fused.build(first.get_build_config()["input_shape"])
    weights = zip(*(branch.get_weights() for branch in residual.branches), strict=True)
    fused.conv.set_weights([keras.ops.concatenate(each, axis=-1) for each in weights])
    return fused


def _same_kind(branch, first):
    kind = ("kernel_size", "activation", "use_bias", "data_format")
    plain = (branch.strides, branch.dilation_rate, branch.groups) == ((1, 1), (1, 1), 1)
    same = all(getattr(branch, name) == getattr(first, name) for name in kind)
    return plain and same and branch.padding == "same"
