import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.hourglass_mlp import HourglassMLPBlock, RandomLift, ResidualMLPBlock

pytestmark = pytest.mark.paper("Rethinking the shape convention of an MLP")


def block_by_numpy(z, weights, normalization):
    """z + W2 tanh(W1 norm(z) + b1) + b2."""
    if normalization == "layer":
        gamma, beta, w1, b1, w2, b2 = weights
        centred = z - z.mean(axis=-1, keepdims=True)
        norm = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-3) * gamma + beta
    else:
        gamma, w1, b1, w2, b2 = weights
        norm = z / np.sqrt((z**2).mean(axis=-1, keepdims=True) + 1e-6) * gamma
    return z + np.tanh(norm @ w1 + b1) @ w2 + b2


@pytest.mark.parametrize("normalization", ["layer", "rms"])
@pytest.mark.parametrize(("block", "hidden"), [(HourglassMLPBlock, 2), (ResidualMLPBlock, 9)])
def test_equals_the_equation(float64, rng, block, hidden, normalization):
    layer = block(hidden, activation="tanh", normalization=normalization, use_bias=True)
    z = rng.normal(size=(3, 4, 5))
    layer.build(z.shape)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    expected = block_by_numpy(z, layer.get_weights(), normalization)
    np.testing.assert_allclose(layer(z), expected, rtol=1e-10, atol=1e-12)


def test_a_block_whose_last_kernel_is_zero_is_its_skip_connection(rng):
    layer = HourglassMLPBlock(2)
    layer.build((None, 5))
    layer.widen.kernel.assign(tf.zeros((2, 5)))
    z = rng.normal(size=(3, 5)).astype("float32")
    np.testing.assert_array_equal(layer(z), z)


def test_the_two_kernels_begin_with_values_of_their_own():
    layer = ResidualMLPBlock(5)
    layer.build((None, 5))
    first, second = (dense.kernel.numpy() for dense in (layer.narrow, layer.widen))
    assert np.abs(first - second).max() > 0.1


def test_gradients(float64, rng):
    layer = HourglassMLPBlock(2, use_bias=True)
    z = tf.constant(rng.normal(size=(2, 4)))
    layer(z)
    theory, numeric = tf.test.compute_gradient(layer, [z], delta=1e-5)
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-7)


def test_the_lift_is_made_of_its_seed_and_has_unit_outputs(rng):
    one, same, other = (RandomLift(400, seed=seed) for seed in (3, 3, 4))
    x = rng.normal(size=(200, 50)).astype("float32")
    np.testing.assert_array_equal(one(x), same(x))
    assert np.abs(one(x) - other(x)).max() > 1
    np.testing.assert_allclose(np.var(one(x)), 1.0, atol=0.05)


def test_the_lift_stays_frozen_where_the_model_is_made_trainable():
    model = keras.Sequential([keras.Input([3]), RandomLift(5), keras.layers.Dense(1)])
    model.trainable = True
    assert [weight.shape for weight in model.trainable_weights] == [(5, 1), (1,)]
    assert model.count_params() == 3 * 5 + 6


@pytest.mark.parametrize("hidden", [0, -1, 2.0, True, None])
def test_refuses_hidden_units(hidden):
    with pytest.raises(ValueError, match="`hidden_units` must be a positive integer. Received"):
        HourglassMLPBlock(hidden)


def test_refuses_other_arguments():
    with pytest.raises(ValueError, match='`normalization` must be "layer" or "rms". Received: 3'):
        ResidualMLPBlock(2, normalization=3)
    with pytest.raises(ValueError, match="must be less than the width of its inputs, 4; Residual"):
        HourglassMLPBlock(4).build((None, 4))
    with pytest.raises(ValueError, match="`units` must be a positive integer. Received: 0"):
        RandomLift(0)
    with pytest.raises(ValueError, match="`seed` must be an integer. Received: None"):
        RandomLift(3, seed=None)
