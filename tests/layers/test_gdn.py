import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.layers.gdn import GDN, IGDN

pytestmark = pytest.mark.paper(
    "Density Modeling of Images using a Generalized Normalization Transformation"
)

GENERAL = {"alpha": 1.7, "epsilon": 0.5, "train_exponents": True, "max_growth": 0.95}


def random_layer(rng, channels=3, cls=GDN, **kwargs):
    """A built layer with random weights above their bounds."""
    layer = cls(**kwargs)
    layer.build((None, channels))
    for weight in layer.weights:
        spread = 0.1 if weight.name in ("alpha_root", "growth_root") else 0.5
        noise = rng.uniform(-spread, 0 if weight.name == "growth_root" else spread, weight.shape)
        weight.assign(np.abs(np.asarray(weight) + noise))
    return layer


def numpy_gdn(layer, z, sign=-1):
    """The paper's sum, term by term."""
    channels = z.shape[-1]
    beta, gamma = np.asarray(layer.beta), np.asarray(layer.gamma)
    alpha = np.broadcast_to(layer.alpha, gamma.shape)
    epsilon = np.broadcast_to(layer.epsilon, beta.shape)
    outputs = np.empty_like(z)
    for i in range(channels):
        pooled = beta[i] + sum(
            gamma[j, i] * np.abs(z[..., j]) ** alpha[j, i] for j in range(channels)
        )
        outputs[..., i] = z[..., i] * pooled ** (sign * epsilon[i])
    return outputs


def test_by_hand(float64):
    layer = GDN(gamma_initializer=keras.initializers.Constant(1.0))
    # d = 1 + 1 + 4 + 9 - and 1 + 9 + 16 - so y = z / sqrt(d).
    np.testing.assert_allclose(
        layer(np.array([[1.0, -2, 3], [3, 4, 0]])),
        [[1 / 15**0.5, -2 / 15**0.5, 3 / 15**0.5], [3 / 26**0.5, 4 / 26**0.5, 0]],
        rtol=1e-10,
    )


@pytest.mark.parametrize("shape", [(5, 3), (2, 6, 3), (2, 4, 3, 3), (1, 2, 3, 2, 3)])
@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1.0, "epsilon": 1.0}, {"alpha": 1.5}, GENERAL])
def test_is_the_papers_sum_on_the_last_axis(float64, rng, shape, kwargs):
    z = rng.normal(size=shape)
    layer = random_layer(rng, **kwargs)
    np.testing.assert_allclose(layer(z), numpy_gdn(layer, z), rtol=1e-10)
    inverse = random_layer(rng, cls=IGDN, **kwargs)
    np.testing.assert_allclose(inverse(z), numpy_gdn(inverse, z, +1), rtol=1e-10)


@pytest.mark.parametrize("kwargs", [{}, {"train_exponents": True}, {"alpha": 1.0}])
def test_beta_1_and_gamma_0_is_the_identity(rng, kwargs):
    z = rng.normal(size=(6, 5)).astype("float32")
    for cls in (GDN, IGDN):
        layer = cls(gamma_initializer="zeros", **kwargs)
        np.testing.assert_allclose(layer(z), z, rtol=3e-7)
    layer = GDN(gamma_initializer="zeros", **kwargs)
    layer.build(z.shape)
    np.testing.assert_allclose(layer.log_det_jacobian(z), np.zeros(6), atol=1e-6)


def test_weights_start_where_tensorflow_compression_starts(float64):
    layer = GDN()
    layer.build((None, 4))
    np.testing.assert_allclose(layer.beta, np.ones(4), rtol=1e-12)
    np.testing.assert_allclose(layer.gamma, 0.1 * np.eye(4), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(layer.gamma_root[0, 1], 2.0**-18, rtol=1e-12)


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1.0, "epsilon": 0.8}, GENERAL])
def test_inverse_undoes_the_layer(float64, rng, kwargs):
    layer = random_layer(rng, **kwargs)
    z = rng.standard_t(3, size=(4, 7, 3)) * np.array([0.01, 1.0, 5.0])
    z[0, 0] = 0.0
    np.testing.assert_allclose(layer.inverse(layer(z)), z, rtol=1e-7, atol=1e-12)


def test_inverse_in_float32_and_compiled(rng):
    layer = random_layer(rng, **GENERAL)
    z = rng.normal(size=(50, 3)).astype("float32")
    inverse = tf.function(layer.inverse, jit_compile=True)
    np.testing.assert_allclose(inverse(layer(z)), z, atol=1e-5)


def test_inverse_is_the_limit_of_the_papers_iteration(float64, rng):
    layer = random_layer(rng, alpha=1.5, epsilon=0.5)
    y = rng.normal(size=(5, 3))
    z = y.copy()
    for _ in range(150):
        z = y * z / numpy_gdn(layer, z)
    np.testing.assert_allclose(layer.inverse(y), z, rtol=1e-8)


def test_inverse_derivatives_are_those_of_the_inverse_function(float64, rng):
    layer = random_layer(rng, **GENERAL)
    z = tf.constant(rng.normal(size=(1, 3)))
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = layer(z)
    forward = tape.jacobian(y, z)[0, :, 0]
    with tf.GradientTape() as tape:
        tape.watch(y)
        again = layer.inverse(y)
    np.testing.assert_allclose(tape.jacobian(again, y)[0, :, 0] @ forward, np.eye(3), atol=1e-6)


def test_what_is_out_of_reach_is_nan():
    layer = GDN(gamma_initializer=keras.initializers.Identity(1.0))
    layer.build((None, 2))
    # y = z / sqrt(1 + z^2) is less than 1: 0.6 comes from 0.75.
    inverse = np.asarray(layer.inverse(np.array([[0.6, 0.0], [0.6, 1.1]], "float32")))
    np.testing.assert_allclose(inverse[0], [0.75, 0], rtol=1e-4)
    assert np.isnan(inverse[1]).all()


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1.0, "epsilon": 0.5}, GENERAL])
def test_log_det_is_that_of_the_jacobian(float64, rng, kwargs):
    layer = random_layer(rng, **kwargs)
    z = tf.constant(np.concatenate([rng.normal(size=(4, 3)), np.zeros((1, 3))]))
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = layer(z)
    jacobian = tape.batch_jacobian(y, z)
    if kwargs.get("alpha") == 1.0:  # |z| has no derivative at 0
        z, jacobian = z[:4], jacobian[:4]
    np.testing.assert_allclose(
        layer.log_det_jacobian(z), np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-12
    )
    places = tf.reshape(z[:4], [2, 2, 3])
    np.testing.assert_allclose(
        np.ravel(layer.log_det_jacobian(places)), layer.log_det_jacobian(z)[:4], rtol=1e-12
    )


@pytest.mark.parametrize("kwargs", [{}, GENERAL])
@pytest.mark.parametrize("function", ["call", "inverse", "log_det_jacobian"])
def test_gradients_by_finite_differences(float64, rng, kwargs, function):
    layer = random_layer(rng, channels=2, **kwargs)
    z = tf.constant(0.5 * rng.normal(size=(1, 2)))
    roots = [tf.constant(weight.numpy()) for weight in layer.trainable_weights]

    def evaluate(z, *roots):
        scope = keras.StatelessScope(
            state_mapping=list(zip(layer.trainable_weights, roots, strict=True))
        )
        with scope:
            return getattr(layer, function)(z)

    theoretical, numerical = tf.test.compute_gradient(evaluate, [z, *roots], delta=1e-5)
    for a, b in zip(theoretical, numerical, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 1.0}, {"alpha": 1.5}, GENERAL])
def test_gradients_are_finite_at_0(rng, kwargs):
    layer = random_layer(rng, **kwargs)
    z = tf.zeros((2, 3))
    for function in (layer, layer.inverse, layer.log_det_jacobian):
        with tf.GradientTape() as tape:
            tape.watch(z)
            total = tf.reduce_sum(function(z))
        gradients = tape.gradient(total, [z, *(w.value for w in layer.trainable_weights)])
        for gradient in gradients:
            assert gradient is None or np.isfinite(gradient).all()


def test_weights_stay_above_their_bounds_and_come_back(rng):
    layer = GDN(**GENERAL)
    layer.build((None, 4))
    z = tf.constant(rng.normal(size=(32, 4)), "float32")
    optimizer = keras.optimizers.SGD(0.05, clipnorm=1.0)

    @tf.function
    def step(sign):
        with tf.GradientTape() as tape:
            loss = sign * tf.reduce_mean(tf.square(layer(z)))
        variables = layer.trainable_weights
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    for _ in range(200):
        step(-1.0)  # larger outputs: beta, gamma and the exponents go down
    assert np.min(layer.beta) >= layer.beta_minimum * 0.999
    assert np.min(layer.gamma) >= 0
    assert np.max(layer.gamma) < 0.1
    for _ in range(200):
        step(1.0)
        assert np.max(layer.alpha * layer.epsilon) <= 0.95 + 1e-6
    assert np.min(layer.beta) > 10 * layer.beta_minimum
    assert np.min(layer.alpha) >= 1 - 1e-6


def test_exponents_are_trained_only_if_asked():
    fixed, trained = GDN(), GDN(train_exponents=True)
    for layer, count in ((fixed, 2), (trained, 4)):
        layer.build((None, 3))
        assert len(layer.trainable_weights) == count
    np.testing.assert_allclose(trained.alpha, np.full((3, 3), 2.0), rtol=1e-6)
    np.testing.assert_allclose(trained.epsilon, np.full(3, 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": 0.5}, "`alpha` must be at least 1"),
        ({"epsilon": 0.0}, "`epsilon` must be above 0"),
        ({"max_growth": 1.5}, "`max_growth` must be in"),
        ({"beta_minimum": 0}, "`beta_minimum` must be above 0"),
        ({"alpha": 3, "train_exponents": True}, "at most `max_growth`"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GDN(**kwargs)


def test_bad_use():
    with pytest.raises(ValueError, match="last axis must be known"):
        GDN().build((None, None))
    layer = GDN(alpha=2, epsilon=1)
    layer.build((None, 2))
    with pytest.raises(ValueError, match="make GDN invertible"):
        layer.inverse(np.ones((1, 2)))
