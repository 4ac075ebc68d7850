import itertools

import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.memorizing_two_layer import (
    SimplifiedLayerNormalization,
    TwoLayerReLU,
    memorizing_two_layer,
    xor_two_layer,
)

pytestmark = pytest.mark.paper(
    "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better "
    "Generalization"
)

D = 6
CUBE = np.array(list(itertools.product([-1.0, 1.0], repeat=D)))
XOR = CUBE[:, 0] * CUBE[:, 1]


def hessian_trace(model, x, y, step=1e-3):
    """Of the mean squared error, by second differences of a NumPy network in each weight."""
    weights = model.get_weights()
    normalize = len(model.layers) == 3

    def loss():
        kernel, *bias, outputs = weights
        hidden = np.maximum(x @ kernel + (bias[0] if bias else 0), 0)
        if normalize:
            hidden = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        return np.mean((hidden @ outputs[:, 0] - y) ** 2)

    trace, middle = 0.0, loss()
    for weight in weights:
        for index in np.ndindex(weight.shape):
            kept = weight[index]
            around = []
            for weight[index] in (kept - step, kept + step):
                around.append(loss())
            weight[index] = kept
            trace += (sum(around) - 2 * middle) / step**2
    return trace


@pytest.fixture
def train(rng):
    chosen = rng.choice(len(CUBE), 10, replace=False)
    return chosen, CUBE[chosen], XOR[chosen]


@pytest.mark.parametrize("normalize", [False, True])
def test_memorizer_is_right_on_its_points_and_zero_elsewhere(float64, train, normalize):
    chosen, x, y = train
    outputs = memorizing_two_layer(x, y, units=12, normalize=normalize)(CUBE)[:, 0].numpy()
    np.testing.assert_allclose(outputs[chosen], y, rtol=1e-12)
    np.testing.assert_array_equal(np.delete(outputs, chosen), 0.0)


@pytest.mark.parametrize(("use_bias", "normalize"), [(False, False), (True, False), (True, True)])
def test_xor_network_is_right_everywhere(float64, use_bias, normalize):
    model = xor_two_layer(D, 5, use_bias, normalize)
    np.testing.assert_allclose(model(CUBE)[:, 0], XOR, rtol=1e-12)


def test_both_are_equally_flat(float64, train):
    # 4 sqrt(d + 1), and 2 under the normalization, are the least that interpolation allows.
    _, x, y = train
    least = 4 * np.sqrt(D + 1)
    np.testing.assert_allclose(hessian_trace(memorizing_two_layer(x, y), x, y), least, rtol=1e-6)
    np.testing.assert_allclose(hessian_trace(xor_two_layer(D), x, y), least, rtol=1e-6)
    for model in (memorizing_two_layer(x, y, normalize=True), xor_two_layer(D, normalize=True)):
        np.testing.assert_allclose(hessian_trace(model, x, y), 2.0, rtol=1e-5)


def test_without_bias_the_least_is_smaller(float64):
    # Units of the input 0 sit at the kink of relu, where automatic differentiation takes 0.
    model = xor_two_layer(D, use_bias=False)
    with tf.GradientTape() as tape:
        outputs = model(CUBE)[:, 0]
    jacobians = tape.jacobian(outputs, [v.value for v in model.trainable_variables])
    squared = sum(np.sum(np.square(j)) for j in jacobians)
    np.testing.assert_allclose(2 * squared / len(CUBE), 4 * np.sqrt(D), rtol=1e-9)


def test_other_scales_of_the_same_function_are_sharper(float64, train):
    _, x, y = train
    model = memorizing_two_layer(x, y)
    least = hessian_trace(model, x, y)
    kernel, bias, outputs = model.get_weights()
    model.set_weights([1.1 * kernel, 1.1 * bias, outputs / 1.1])
    assert hessian_trace(model, x, y) > least * 1.001


def test_simplified_layer_normalization_by_hand():
    layer = SimplifiedLayerNormalization(epsilon=0.5)
    x = tf.constant([[3.0, 4.0], [0.3, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(layer(x), [[0.6, 0.8], [0.6, 0.0], [0.0, 0.0]], rtol=1e-6)
    again = SimplifiedLayerNormalization.from_config(layer.get_config())
    np.testing.assert_array_equal(again(x), layer(x))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    assert np.isfinite(tape.gradient(y, x)).all()


def test_the_three_architectures():
    plain, bias, normalized = (
        TwoLayerReLU(D, 8, use_bias=b, normalize=n)
        for b, n in ((False, False), (True, False), (True, True))
    )
    assert [m.count_params() for m in (plain, bias, normalized)] == [56, 64, 64]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: memorizing_two_layer(x + 1, y), r"`x` must be \[n, d\] in \{-1, 1\}"),
        (lambda x, y: memorizing_two_layer(x[[0, 0]], y[:2]), "`x` must have no point twice"),
        (lambda x, y: memorizing_two_layer(x, y[:3]), "`y` must be 10 labels"),
        (lambda x, y: memorizing_two_layer(x, y, units=9), "`units` must be at least 10"),
        (lambda x, y: xor_two_layer(D, units=3), "`units` at least 4"),
        (lambda x, y: TwoLayerReLU(D, 0), "`units` must be a positive integer"),
        (lambda x, y: SimplifiedLayerNormalization(0), "`epsilon` must be a number above 0"),
    ],
)
def test_refuses_what_does_not_fit(train, call, message):
    with pytest.raises(ValueError, match=message):
        call(*train[1:])
