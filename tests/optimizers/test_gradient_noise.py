import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers.gradient_noise import GradientNoise
from tests.optimizers.reference import trajectory

pytestmark = pytest.mark.paper("Adding Gradient Noise Improves Learning for Very Deep Networks")


def noise_of_steps(steps, size, **options):
    """What is added to gradients of zero, by step; float32 [steps, size]."""
    optimizer = GradientNoise(keras.optimizers.SGD(1.0), **options)
    weights = trajectory(optimizer, np.zeros(size, "float32"), np.zeros([steps, size]))
    return -np.diff(weights, axis=0, prepend=0.0)


def test_the_variance_falls_as_in_the_paper():
    noise = noise_of_steps(100, 100_000, eta=0.3)
    for t in (0, 9, 99):
        # The variance of 1e5 numbers has a relative deviation of sqrt(2 / 1e5) = 0.45 %.
        assert noise[t].var() == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.02)
        assert abs(noise[t].mean()) < 5 * np.sqrt(0.3 / 1e5)
    # Gaussian: the fourth moment is three times the square of the variance.
    assert np.mean(noise[0] ** 4) == pytest.approx(3 * 0.3**2, rel=0.05)


def test_gamma_0_keeps_the_variance():
    noise = noise_of_steps(50, 20_000, eta=4.0, gamma=0.0)
    np.testing.assert_allclose(noise.var(axis=1), 4.0, rtol=0.06)


def test_steps_variables_and_seeds_have_noise_of_their_own():
    variables = [keras.Variable(np.zeros(2000, "float32")) for _ in range(2)]
    optimizer = GradientNoise(keras.optimizers.SGD(1.0), eta=1.0, gamma=0.0)
    optimizer.apply([tf.zeros(2000)] * 2, variables)
    draws = [v.numpy() for v in variables]
    draws += list(noise_of_steps(2, 2000, eta=1.0, gamma=0.0, seed=1))
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(
        noise_of_steps(2, 5, eta=1.0, seed=1), noise_of_steps(2, 5, eta=1.0, seed=1)
    )


def test_a_variable_without_a_gradient_does_not_shift_the_noise_of_others():
    def after(gradients):
        variables = [keras.Variable(np.zeros(3, "float32")) for _ in range(2)]
        optimizer = GradientNoise(keras.optimizers.SGD(1.0), eta=1.0)
        optimizer.build(variables)
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        optimizer.apply_gradients(pairs)
        return variables[1].numpy()

    np.testing.assert_array_equal(after([None, tf.zeros(3)]), after([tf.zeros(3), tf.zeros(3)]))


def test_noise_comes_after_clipping():
    gradients = np.full([1, 10_000], 100.0)
    optimizer = GradientNoise(keras.optimizers.SGD(1.0, clipvalue=0.5), eta=4.0)
    (weights,) = trajectory(optimizer, np.zeros(10_000, "float32"), gradients)
    # Clipped noise would be within 0.5.
    assert weights.mean() == pytest.approx(-0.5, abs=0.1)
    assert weights.std() == pytest.approx(2.0, rel=0.05)


def test_an_accumulated_step_has_noise_once():
    optimizer = GradientNoise(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), eta=1.0)
    weights = trajectory(optimizer, np.zeros(20_000, "float32"), np.zeros([4, 20_000]))
    np.testing.assert_array_equal(weights[0], 0.0)
    np.testing.assert_array_equal(weights[2], weights[1])
    # The second update is the step t = 1.
    assert (weights[3] - weights[1]).var() == pytest.approx(2**-0.55, rel=0.05)


@pytest.mark.parametrize("eta", [0.01, 0.3])
def test_leaves_a_saddle_that_gradient_descent_cannot(eta):
    weights = keras.Variable(np.zeros(4, "float32"))
    noisy = GradientNoise(keras.optimizers.SGD(0.1), eta=eta, seed=3)
    plain = keras.optimizers.SGD(0.1)

    def loss():
        return tf.square(tf.reduce_prod(weights.value) - 1.0) / 2

    @tf.function(jit_compile=True)
    def descend(optimizer, steps):
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                value = loss()
            optimizer.apply(tape.gradient(value, [weights.value]), [weights])

    for optimizer in (plain, noisy):
        optimizer.build([weights])
    descend(plain, 100)
    assert float(loss()) == 0.5
    descend(noisy, 20_000)
    assert float(loss()) < 0.01


def test_bfloat16_gets_noise():
    variable = keras.Variable(np.zeros(1000), dtype="bfloat16")
    GradientNoise(keras.optimizers.SGD(1.0), eta=1.0).apply(
        [tf.zeros([1000], tf.bfloat16)], [variable]
    )
    assert variable.numpy().astype("float32").std() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("argument", "value"), [("eta", -1.0), ("gamma", "fast"), ("seed", 0.5)])
def test_refuses_what_is_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .* Received: {value!r}"):
        GradientNoise(keras.optimizers.SGD(0.1), **{argument: value})
