import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.fused_parallel_conv import FusedParallelConv2D
from kzoo.models.parallel_residual import (
    ParallelResidual,
    SequentialResidual,
    second_order_term,
    to_parallel,
)
from kzoo.models.residual_conv_net import ResidualConvNet

pytestmark = pytest.mark.paper("Make Deep Networks Shallow Again")


def deep_dense(depth=4, width=5, activation="tanh", **kwargs):
    stack = SequentialResidual(
        [keras.layers.Dense(width, activation, **kwargs) for _ in range(depth)]
    )
    stack.build((None, width))
    return stack


def deep_conv(depth=3, channels=2, activation="tanh", **kwargs):
    layers = [
        keras.layers.Conv2D(channels, 3, padding="same", activation=activation, **kwargs)
        for _ in range(depth)
    ]
    stack = SequentialResidual(layers)
    stack.build((None, 5, 5, channels))
    for branch in layers:
        if branch.use_bias:
            branch.bias.assign(np.random.default_rng(0).normal(size=channels))
    return stack


class Scaled(keras.layers.Layer):
    """eps tanh(x W)."""

    def __init__(self, kernel, eps):
        super().__init__()
        self.kernel, self.eps = kernel, eps
        self.built = True

    def call(self, inputs):
        return self.eps * tf.tanh(tf.matmul(inputs, self.kernel))

    def compute_output_shape(self, input_shape):
        return input_shape


def test_orders_of_the_differences(float64, rng):
    x = tf.constant(rng.normal(size=(3, 5)))
    kernels = tf.constant(rng.normal(size=(4, 5, 5)))
    sizes, first, second = np.geomspace(1e-3, 1e-2, 4), [], []
    for eps in sizes:
        branches = [Scaled(kernel, eps) for kernel in tf.unstack(kernels)]
        stack, parallel = SequentialResidual(branches), ParallelResidual(branches)
        difference = stack(x) - parallel(x)
        first.append(tf.norm(difference))
        second.append(tf.norm(difference - second_order_term(stack, x)))
    slopes = [np.polyfit(np.log(sizes), np.log(each), 1)[0] for each in (first, second)]
    np.testing.assert_allclose(slopes, [2.0, 3.0], atol=0.05)


def test_linear_branches(float64, rng):
    stack = deep_dense(activation=None, use_bias=False)
    x = rng.normal(size=(3, 5))
    kernels = [branch.kernel.numpy() for branch in stack.branches]
    first = np.eye(5) + sum(kernels)
    np.testing.assert_allclose(to_parallel(stack)(x), x @ first, rtol=1e-12)
    deep = np.linalg.multi_dot([np.eye(5) + kernel for kernel in kernels])
    np.testing.assert_allclose(stack(x), x @ deep, rtol=1e-12)
    pairs = sum(kernels[j] @ kernels[i] for i in range(4) for j in range(i))
    np.testing.assert_allclose(second_order_term(stack, x), x @ pairs, rtol=1e-10)


def test_one_branch_is_the_same_in_both_layouts(rng):
    stack = deep_conv(depth=1)
    x = rng.normal(size=(2, 5, 5, 2)).astype("float32")
    for fused in (False, True):
        np.testing.assert_allclose(to_parallel(stack, fused)(x), stack(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(second_order_term(stack, x), np.zeros_like(x))


@pytest.mark.parametrize("use_bias", [True, False])
def test_fused_form_equals_the_branches(rng, use_bias):
    stack = deep_conv(use_bias=use_bias)
    x = rng.normal(size=(2, 5, 5, 2)).astype("float32")
    parallel, fused = to_parallel(stack), to_parallel(stack, fused=True)
    np.testing.assert_allclose(fused(x), parallel(x), rtol=1e-5, atol=1e-5)
    assert np.abs(stack(x) - parallel(x)).max() > 0.1
    counts = {each.count_params() for each in (stack, parallel, fused)}
    assert counts == {3 * (9 * 2 * 2 + 2 * use_bias)}


def test_weights_are_copies(rng):
    stack = deep_dense()
    parallel = to_parallel(stack)
    before = parallel.get_weights()
    for weight in stack.weights:
        weight.assign(weight + 1.0)
    for copied, weight in zip(parallel.get_weights(), before, strict=True):
        np.testing.assert_array_equal(copied, weight)


@pytest.mark.parametrize("fused", [False, True])
def test_converts_a_model(rng, fused):
    deep = ResidualConvNet(3, 4, input_shape=(5, 5, 1), classes=2, layout="sequential")
    shallow = ResidualConvNet(3, 4, input_shape=(5, 5, 1), classes=2, layout="parallel")
    shallow.set_weights(deep.get_weights())
    model = to_parallel(deep, fused)
    x = rng.normal(size=(2, 5, 5, 1)).astype("float32")
    np.testing.assert_allclose(model(x), shallow(x), rtol=1e-5, atol=1e-6)
    assert np.abs(model(x) - deep(x)).max() > 1e-3
    kind = FusedParallelConv2D if fused else ParallelResidual
    assert type(model.get_layer("stack")) is kind


def test_both_nets_have_the_same_number_of_parameters():
    for depth, filters, size in ((1, 3, 3), (4, 2, 5)):
        pair = [
            ResidualConvNet(depth, filters, size, layout, input_shape=(6, 6, 3), classes=7)
            for layout in ("sequential", "parallel")
        ]
        expected = (size**2 * 3 + 1) * filters + depth * (size**2 * filters + 1) * filters
        expected += (filters + 1) * 7
        assert [model.count_params() for model in pair] == [expected, expected]


def test_gradients(float64, rng):
    stack = deep_dense(depth=2, width=3)
    x = tf.constant(rng.normal(size=(2, 3)))
    for layer in (stack, to_parallel(stack)):
        theory, numeric = tf.test.compute_gradient(layer, [x], delta=1e-5)
        np.testing.assert_allclose(theory[0], numeric[0], atol=1e-7)


def test_refuses_branches():
    with pytest.raises(ValueError, match="`branches` must be one or more Keras layers"):
        SequentialResidual([])
    with pytest.raises(ValueError, match="`branches` must be one or more Keras layers"):
        ParallelResidual([keras.layers.Dense(2), "relu"])
    stack = ParallelResidual([keras.layers.Dense(3), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=r"\(None, 3\). Received: \(None, 4\) from branch 1"):
        stack.build((None, 3))
    with pytest.raises(ValueError, match="`branches` must be a positive integer. Received: 0"):
        FusedParallelConv2D(0, 3)


def test_refuses_what_cannot_be_converted():
    with pytest.raises(ValueError, match="`residual` must be built"):
        to_parallel(SequentialResidual([keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="must be a SequentialResidual or a model with such"):
        to_parallel(keras.Sequential([keras.Input([3]), keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match="must be Conv2D layers of stride 1"):
        to_parallel(deep_dense(), fused=True)
    with pytest.raises(ValueError, match="must be Conv2D layers of stride 1"):
        to_parallel(deep_conv(dilation_rate=2), fused=True)


def test_refuses_arguments_of_the_net():
    with pytest.raises(ValueError, match="`depth` must be a positive integer. Received: 0"):
        ResidualConvNet(0, 4)
    with pytest.raises(ValueError, match='`layout` must be "sequential" or "parallel". Received'):
        ResidualConvNet(2, 4, layout="deep")
