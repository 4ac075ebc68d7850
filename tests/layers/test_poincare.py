import math

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from kzoo.layers.poincare import (
    ExpMap0,
    FeatureClipping,
    LogMap0,
    MobiusAdd,
    TangentActivation,
)
from kzoo.layers.poincare_batch_norm import PoincareBatchNormalization
from kzoo.layers.poincare_dense import (
    HyperbolicMLR,
    PoincareConv2D,
    PoincareDense,
    PoincareMLR,
    beta_ratio,
)
from kzoo.layers.poincare_initializers import PoincareIdentity, PoincareNormal
from kzoo.ops import poincare as ball

pytestmark = [pytest.mark.paper("Poincaré ResNet"), pytest.mark.usefixtures("float64")]

HYP_OC = pytest.mark.paper("Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing")


def points(rng, shape, c, radius=0.8):
    x = rng.normal(size=shape)
    x *= radius * rng.uniform(size=(*shape[:-1], 1)) / np.linalg.norm(x, axis=-1, keepdims=True)
    return x / math.sqrt(c)


def randomize(layer, rng, scale=1.0):
    layer.set_weights([scale * rng.normal(size=w.shape) for w in layer.weights])
    return layer


def dense(x, kernel, bias, c):
    """Equations 6 and 7 of Hyperbolic Neural Networks++ for one point, unit by unit."""
    factor, root, w = 2 / (1 - c * x @ x), math.sqrt(c), []
    for z, r in zip(kernel.T, bias, strict=True):
        size = math.sqrt(z @ z)
        sine = factor * root * (x @ z) / size * math.cosh(2 * root * r)
        v = 2 * size / root * math.asinh(sine - (factor - 1) * math.sinh(2 * root * r))
        w.append(math.sinh(root * v) / root)
    w = np.array(w)
    return w / (1 + math.sqrt(1 + c * w @ w))


def test_dense_is_the_formula(rng):
    c, x = 0.6, points(rng, (5, 3), 0.6)
    layer = PoincareDense(4, c)
    layer.build(x.shape)
    randomize(layer, rng, 0.5)
    kernel, bias = layer.get_weights()
    expected = [dense(row, kernel, bias, c) for row in x]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-9)


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
def test_identity_initial_value_is_the_identity(rng, c):
    x = points(rng, (6, 5), c)
    np.testing.assert_allclose(PoincareDense(5, c)(x), x, rtol=1e-10)


def test_identity_keeps_norms_over_layers_where_normal_ones_shrink(rng):
    x = points(rng, (50, 20), 1.0)
    for initializer, low, high in ((PoincareIdentity(), 0.999, 1.001), (PoincareNormal(), 0, 0.1)):
        y = x
        for _ in range(10):
            y = PoincareDense(20, 1.0, kernel_initializer=initializer)(y)
        ratio = np.linalg.norm(y, axis=-1).mean() / np.linalg.norm(x, axis=-1).mean()
        assert low <= ratio <= high


@pytest.mark.parametrize("shape", [(200, 50), (3, 3, 20, 50)])
def test_normal_initial_values(shape):
    values = PoincareNormal(seed=1)(shape)
    assert np.std(values) == pytest.approx((2 * np.prod(shape)) ** -0.5, rel=0.02)


def test_identity_in_a_convolution_stands_at_the_center():
    kernel = np.asarray(PoincareIdentity(scale=2.0)((3, 3, 2, 3)))
    assert kernel[1, 1].tolist() == [[2, 0, 0], [0, 2, 0]]
    assert kernel.sum() == 4


def test_beta_ratio():
    beta = scipy.special.beta
    assert beta_ratio(4, 9) == pytest.approx(beta(18, 0.5) / beta(2, 0.5), rel=1e-12)


@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_is_a_dense_layer_of_concatenated_patches(rng, strides):
    c, x = 0.6, points(rng, (2, 5, 6, 3), 0.6)
    layer = PoincareConv2D(4, (3, 2), strides, curvature=c)
    layer.build(x.shape)
    randomize(layer, rng, 0.3)
    kernel, bias = layer.get_weights()
    tangent = np.arctanh(math.sqrt(c) * np.linalg.norm(x, axis=-1, keepdims=True)) * x
    tangent /= math.sqrt(c) * np.linalg.norm(x, axis=-1, keepdims=True)
    tangent *= scipy.special.beta(9, 0.5) / scipy.special.beta(1.5, 0.5)
    actual = layer(x)
    assert actual.shape == layer.compute_output_shape(x.shape)
    for row in range(actual.shape[1]):
        for column in range(actual.shape[2]):
            top, left = strides * row, strides * column
            patch = tangent[1, top : top + 3, left : left + 2].reshape(-1)
            size = math.sqrt(c * patch @ patch)
            expected = dense(math.tanh(size) / size * patch, kernel.reshape(18, 4), bias, c)
            np.testing.assert_allclose(actual[1, row, column], expected, rtol=1e-8)


def test_flat_convolution_is_keras_own(rng):
    x = rng.normal(size=(2, 6, 6, 3))
    layer = PoincareConv2D(4, 3, 2, "same", curvature=1e-9)
    layer.build(x.shape)
    randomize(layer, rng)
    kernel, bias = layer.get_weights()
    norms = np.linalg.norm(kernel.reshape(-1, 4), axis=0)
    flat = tf.nn.conv2d(beta_ratio(3, 9) * x, kernel, 2, "SAME")
    np.testing.assert_allclose(layer(x), 2 * (flat - norms * bias), atol=1e-5)


def test_mlr_logits_and_their_sides(rng):
    c, x = 0.6, points(rng, (7, 3), 0.6)
    layer = PoincareMLR(4, c)
    layer.build(x.shape)
    randomize(layer, rng)
    kernel, bias = layer.get_weights()
    logits = np.asarray(layer(x))
    for k in range(4):
        unit = kernel[:, k] / np.linalg.norm(kernel[:, k])
        foot = ball.expmap0(tf.constant(bias[k] * unit), c)
        side = np.asarray(ball.mobius_add(-foot, tf.constant(x), c)) @ unit
        assert (np.sign(side) == np.sign(logits[:, k])).all()


@HYP_OC
def test_hyperbolic_mlr_is_the_formula(rng):
    c, x = 0.6, points(rng, (7, 3), 0.6)
    layer = HyperbolicMLR(4, c)
    layer.build(x.shape)
    randomize(layer, rng)
    kernel = layer.get_weights()[0]
    logits = np.asarray(layer(x))
    for k, point in enumerate(np.asarray(layer.points)):
        a = kernel[:, k]
        moved = np.asarray(ball.mobius_add(tf.constant(-point), tf.constant(x), c))
        sine = 2 * math.sqrt(c) * moved @ a / np.linalg.norm(a) / (1 - c * (moved**2).sum(-1))
        expected = 2 * np.linalg.norm(a) / math.sqrt(c) * np.arcsinh(sine)
        np.testing.assert_allclose(logits[:, k], expected, rtol=1e-9)
        assert (np.sign(moved @ a) == np.sign(logits[:, k])).all()


@HYP_OC
def test_flat_hyperbolic_mlr_is_linear(rng):
    x = rng.normal(size=(7, 3))
    layer = HyperbolicMLR(4, 1e-10)
    layer.build(x.shape)
    randomize(layer, rng)
    kernel, position = layer.get_weights()
    expected = 4 * (x @ kernel - (position * kernel).sum(0))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoincareDense(3, 0.6),
        lambda: PoincareMLR(3, 0.6),
        lambda: HyperbolicMLR(3, 0.6),
        lambda: PoincareBatchNormalization(0.6),
        lambda: TangentActivation("tanh", 0.6),
    ],
)
def test_gradients_by_finite_differences(rng, make):
    layer = make()
    x = tf.constant(points(rng, (3, 4), 0.6))
    layer(x)
    layer.set_weights([w + 0.3 * rng.uniform(size=w.shape) for w in layer.get_weights()])
    weights = [w.value for w in layer.trainable_weights]

    def outputs(x, *values):
        mapping = list(zip(layer.trainable_weights, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return layer(x, training=True) if layer.non_trainable_weights else layer(x)

    theory, numeric = tf.test.compute_gradient(outputs, [x, *weights], delta=1e-5)
    for actual, expected in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


def test_batch_norm_moves_the_midpoint_and_scales_the_variance(rng):
    c, x = 0.6, points(rng, (40, 3), 0.6)
    layer = PoincareBatchNormalization(c)
    layer.build(x.shape)
    layer.beta.assign([0.3, -0.2, 0.1])
    layer.gamma.assign(0.25)
    y = layer(x, training=True)
    center = ball.expmap0(tf.constant([0.3, -0.2, 0.1], tf.float64), c)
    np.testing.assert_allclose(np.mean(ball.distance(y, center, c) ** 2), 0.25, rtol=1e-4)
    mean = ball.gyromidpoint(tf.constant(x), c=c)
    variance = np.mean(ball.distance(x, mean, c) ** 2)
    scaled = math.sqrt(0.25 / (variance + 1e-6)) * ball.logmap(mean, tf.constant(x), c)
    expected = ball.expmap(center, ball.parallel_transport(mean, center, scaled, c), c)
    np.testing.assert_allclose(y, expected, atol=1e-9)


def test_batch_norm_moving_statistics(rng):
    """The moving mean goes a tenth of the geodesic; for inference only it counts."""
    c, x = 0.6, points(rng, (40, 2, 3), 0.6)
    layer = PoincareBatchNormalization(c)
    layer(x, training=True)
    flat = tf.constant(x.reshape(-1, 3))
    mean = ball.gyromidpoint(flat, c=c)
    np.testing.assert_allclose(
        ball.distance(layer.moving_mean.value, mean, c),
        0.9 * ball.distance(tf.zeros(3, tf.float64), mean, c),
        rtol=1e-9,
    )
    variance = np.mean(ball.distance(flat, mean, c) ** 2)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance)
    before = layer.get_weights()
    np.testing.assert_allclose(layer(x)[:5], layer(x[:5]), rtol=1e-12)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_batch_norm_across_replicas_is_that_of_the_global_batch(rng, mirrored):
    x = points(rng, (6, 3), 1.0)
    expected = PoincareBatchNormalization()(x, training=True)
    with mirrored.scope():
        layer = PoincareBatchNormalization()
        layer.build(x.shape)
    parts = iter([x[:2], x[2:]])
    shares = mirrored.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(parts))
    )
    out = mirrored.run(tf.function(lambda part: layer(part, training=True)), args=(shares,))
    actual = np.concatenate(mirrored.experimental_local_results(out))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_residual_and_activation_go_through_the_origin(rng):
    c = 0.6
    x, y = points(rng, (4, 3), c), points(rng, (4, 3), c)
    np.testing.assert_allclose(MobiusAdd(c)(x, 0 * y), x, rtol=1e-12)
    np.testing.assert_allclose(MobiusAdd(c)(-x, MobiusAdd(c)(x, y)), y, atol=1e-9)
    tangent = np.asarray(LogMap0(c)(TangentActivation("relu", c)(x)))
    np.testing.assert_allclose(tangent, np.maximum(LogMap0(c)(x), 0), atol=1e-12)
    np.testing.assert_allclose(ExpMap0(c)(LogMap0(c)(x)), x, rtol=1e-9)


@HYP_OC
def test_clipping_keeps_directions():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = [[0.6 * 1.5, 0.8 * 1.5], [0.3, 0.4], [0.0, 0.0]]
    np.testing.assert_allclose(FeatureClipping(1.5)(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpMap0(0), "`curvature`"),
        (lambda: FeatureClipping(-1), "`radius`"),
        (lambda: PoincareDense(0), "`units`"),
        (lambda: PoincareConv2D(2, (3, 3, 3)), "`kernel_size`"),
        (lambda: PoincareConv2D(2, 3, 0), "`strides`"),
        (lambda: PoincareConv2D(2, 3, padding="causal"), "`padding`"),
        (lambda: PoincareBatchNormalization(momentum=1.0), "`momentum`"),
        (lambda: PoincareIdentity(0), "`scale`"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
