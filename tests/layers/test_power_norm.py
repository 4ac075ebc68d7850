import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.power_norm import GroupScaling1D, PowerNormalization

pytestmark = pytest.mark.paper("PowerNorm: Rethinking Batch Normalization in Transformers")


class Reference:
    """The authors' rule, transcribed: warm-up, running psi^2, approximate gradient, Gamma."""

    def __init__(self, channels, warmup, forward, backward, epsilon, divide_by="batch"):
        self.phi, self.statistic, self.step = np.ones(channels), np.zeros(channels), 0
        self.warmup, self.forward, self.backward = warmup, forward, backward
        self.epsilon, self.divide_by = epsilon, divide_by

    def train(self, x, upstream):
        """(z, dx) of rows [batch, channels]."""
        self.step += 1
        batch = np.mean(x**2, axis=0)
        divisor = batch if self.step <= self.warmup else self.phi
        z = x / np.sqrt(divisor + self.epsilon)
        if self.step < self.warmup:
            self.phi = self.phi * (self.step - 1) / self.step + batch / self.step
        self.phi = self.forward * self.phi + (1 - self.forward) * batch
        corrected = upstream - (1 - self.backward) * self.statistic * z
        self.statistic = self.statistic + np.mean(corrected * z, axis=0)
        if self.divide_by == "batch":
            divisor = batch
        return z, corrected / np.sqrt(divisor + self.epsilon)


def step(layer, x, upstream, mask=None):
    """(outputs, gradient of the inputs) of a training step."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True, mask=mask)
    return outputs, tape.gradient(outputs, x, output_gradients=tf.convert_to_tensor(upstream))


def statistics(layer):
    return np.array(layer.running_square), np.array(layer.gradient_statistic)


@pytest.mark.parametrize("divide_by", ["batch", "running"])
def test_twelve_steps_of_the_authors_rule(float64, rng, divide_by):
    layer = PowerNormalization(4, 0.8, 0.7, 1e-3, divide_by)
    layer.build((None, 3, 5))
    gamma, beta = rng.normal(size=5), rng.normal(size=5)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    reference = Reference(5, 4, 0.8, 0.7, 1e-3, divide_by)
    compiled = tf.function(step)
    for number in range(12):
        x, upstream = rng.normal(size=(2, 4, 3, 5)) * rng.uniform(0.5, 2)
        run = step if number % 2 else compiled
        outputs, gradient = run(layer, tf.constant(x), tf.constant(upstream))
        z, dx = reference.train(x.reshape(12, 5), upstream.reshape(12, 5) * gamma)
        np.testing.assert_allclose(outputs, (gamma * z + beta).reshape(x.shape), atol=1e-12)
        np.testing.assert_allclose(gradient, dx.reshape(x.shape), atol=1e-12)
        expected = (reference.phi, reference.statistic)
        np.testing.assert_allclose(statistics(layer), expected, atol=1e-12)
    assert int(layer.iterations) == 12


def test_first_step_by_hand_and_its_gradient_is_not_autodiffs(float64):
    """x = (3, 4): psi_B^2 = 12.5; with Gamma = 0 dx = g / psi_B; Gamma = mean(g z) afterwards."""
    layer = PowerNormalization(epsilon=1e-12)
    x, upstream = np.array([[3.0], [4.0]]), np.array([[1.0], [2.0]])
    outputs, gradient = step(layer, x, upstream)
    psi = np.sqrt(12.5)
    np.testing.assert_allclose(outputs, x / psi, rtol=1e-6)
    np.testing.assert_allclose(gradient, upstream / psi, rtol=1e-6)
    np.testing.assert_allclose(layer.gradient_statistic, [(3 + 8) / psi / 2], rtol=1e-6)
    # Autodiff through psi_B would remove the part along z: (g - z mean(g z)) / psi_B.
    exact = (upstream - (x / psi) * (11 / psi / 2)) / psi
    assert np.abs(gradient - exact).max() > 0.1
    np.testing.assert_allclose(layer.running_square, [12.5], rtol=1e-6)


def test_the_statistic_of_the_gradient_comes_to_the_exact_projection(float64, rng):
    """With the same batch over and over, (1 - alpha) Gamma -> mean(g z) / mean(z^2), which makes dx
    the gradient that autodiff finds."""
    layer = PowerNormalization(epsilon=1e-9, alpha_backward=0.5)
    x, upstream = rng.normal(size=(2, 6, 3))
    for _ in range(60):
        gradient = step(layer, x, upstream)[1]
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        z = inputs / tf.sqrt(tf.reduce_mean(inputs**2, 0) + 1e-9)
    exact = tape.gradient(z, inputs, output_gradients=tf.constant(upstream))
    np.testing.assert_allclose(gradient, exact, atol=1e-9)


def test_inference_is_linear_and_does_not_centre(float64, rng):
    layer = PowerNormalization(0)
    x = rng.normal(size=(4, 5, 3))
    step(layer, 2 * x, x)
    layer.gamma.assign([1.0, 2.0, 3.0])
    layer.beta.assign([4.0, 5.0, 6.0])
    psi = np.sqrt(statistics(layer)[0] + 1e-5)
    shift = np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(layer(x + shift) - layer(x), 0 * x + [1, 2, 3] * shift / psi)
    np.testing.assert_allclose(layer(2 * x) - layer.beta, 2 * (layer(x) - layer.beta))
    before = statistics(layer)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), layer(x))
    np.testing.assert_array_equal(statistics(layer), before)


def test_padding_is_no_part_of_the_statistics(float64, rng):
    x, upstream = rng.normal(size=(2, 2, 4, 3))
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    padded, tokens = PowerNormalization(1), PowerNormalization(1)
    for _ in range(3):
        # Anything may stand in the padding; its upstream gradient does not count either.
        noise = np.where(mask[..., None], 0, 1e3 * rng.normal(size=x.shape))
        outputs, gradient = step(padded, x + noise, upstream + noise, mask)
        expected = step(tokens, x[mask], upstream[mask])
        np.testing.assert_allclose(outputs[mask], expected[0], atol=1e-12)
        np.testing.assert_allclose(gradient[mask], expected[1], atol=1e-12)
    np.testing.assert_allclose(statistics(padded), statistics(tokens), atol=1e-12)
    assert np.abs(statistics(tokens)[1]).max() > 1e-3


def test_mask_comes_from_the_embedding():
    words = keras.Input([3], dtype="int32")
    embedded = keras.layers.Embedding(4, 2, mask_zero=True)(words)
    layer = PowerNormalization()
    model = keras.Model(words, layer(GroupScaling1D(2)(embedded)))
    table = [[100.0, 100], [1, 1], [2, 2], [3, 3]]
    model.layers[1].set_weights([np.array(table)])
    model(np.array([[1, 0, 0], [2, 0, 0]]), training=True)
    # With one channel in a group, group scaling gives ones.
    np.testing.assert_allclose(layer.running_square, [1, 1], rtol=1e-4)
    plain = PowerNormalization()
    plain(np.array(table)[[1, 2]], training=True)
    np.testing.assert_allclose(plain.running_square, [2.5, 2.5], rtol=1e-5)


def test_a_batch_of_padding_and_an_overflow_leave_the_statistics(rng):
    layer = PowerNormalization(0)
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    step(layer, x, x)
    before = statistics(layer)
    _, gradient = step(layer, x, np.zeros_like(x), np.zeros((2, 3), bool))
    np.testing.assert_allclose(statistics(layer), before, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.zeros_like(x))
    step(layer, x, np.full_like(x, np.inf))
    np.testing.assert_array_equal(statistics(layer)[1], before[1])


@pytest.mark.parametrize("cut", [3, 2])
def test_two_replicas_equal_one(float64, rng, mirrored, cut):
    x, upstream = rng.normal(size=(2, 6, 4, 3))
    with mirrored.scope():
        layer = PowerNormalization(1)
        layer.build(x.shape)
    single = PowerNormalization(1)

    def split(values):
        return mirrored.experimental_distribute_values_from_function(
            lambda context: values[:cut] if context.replica_id_in_sync_group == 0 else values[cut:]
        )

    @tf.function
    def both(x, upstream):
        return mirrored.run(lambda x, upstream: step(layer, x, upstream), args=(x, upstream))

    for _ in range(3):
        parts = [mirrored.experimental_local_results(p) for p in both(split(x), split(upstream))]
        for part, whole in zip(parts, step(single, x, upstream), strict=True):
            np.testing.assert_allclose(tf.concat(part, 0), whole, atol=1e-12)
    np.testing.assert_allclose(statistics(layer), statistics(single), atol=1e-12)
    assert np.array(layer.iterations) == 3


def test_fit_updates_both_statistics_also_under_xla(rng):
    x = rng.normal(size=(32, 4)).astype("float32")
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(3), PowerNormalization(2), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input([4]), *layers])
        model.compile("sgd", "mse", jit_compile=jit_compile)
        model.fit(x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert int(layers[1].iterations) == 8
        results.append(np.concatenate(statistics(layers[1])))
    assert (np.abs(results[0][3:]) > 1e-6).all()
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


def test_statistics_are_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = PowerNormalization()
    outputs, gradient = step(layer, *tf.cast(rng.normal(size=(2, 8, 4)), tf.bfloat16))
    assert outputs.dtype == gradient.dtype == tf.bfloat16
    assert {weight.dtype for weight in layer.weights} == {"float32", "int64"}


def test_group_scaling_divides_each_group_of_a_token_by_its_root_mean_square(float64, rng):
    x = rng.normal(size=(2, 3, 6))
    outputs = GroupScaling1D(2, 1e-3)(x)
    for token in np.ndindex(2, 3):
        for group in (slice(0, 3), slice(3, 6)):
            part = x[token][group]
            expected = part / np.sqrt(np.mean(part**2) + 1e-3)
            np.testing.assert_allclose(outputs[token][group], expected, atol=1e-14)
    rms = keras.layers.RMSNormalization(epsilon=1e-3)
    np.testing.assert_allclose(GroupScaling1D(1, 1e-3)(x), rms(x), atol=1e-14)


def test_gradient_of_group_scaling_by_finite_differences(float64, rng):
    x = tf.constant(rng.normal(size=(2, 4)))
    (theoretical,), (numerical,) = tf.test.compute_gradient(GroupScaling1D(2), [x], 1e-5)
    np.testing.assert_allclose(theoretical, numerical, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerNormalization(-1), "`warmup_steps` must be an integer of at least 0"),
        (lambda: PowerNormalization(alpha_forward=1.1), "`alpha_forward` must be in \\[0, 1\\]"),
        (lambda: PowerNormalization(epsilon=0), "`epsilon` must be finite and above 0"),
        (lambda: PowerNormalization(divide_gradient_by="psi"), '"batch" or "running"'),
        (lambda: GroupScaling1D(0), "`groups` must be a positive integer. Received: 0"),
        (lambda: GroupScaling1D(4).build((None, 6)), "must divide the input's channels, 6"),
        (lambda: PowerNormalization().build((3,)), "\\[batch, ..., channels\\]"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
