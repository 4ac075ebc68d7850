import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.gdn_density import GDNDensity

pytestmark = pytest.mark.paper(
    "Density Modeling of Images using a Generalized Normalization Transformation"
)
MIXING = np.array([[1.0, 0.0], [0.6, 0.5]])


def student(rng, count):
    """Elliptical Student-t of three degrees of freedom, float32 [count, 2]."""
    normal = rng.normal(size=(count, 2)) @ MIXING.T
    return (normal / np.sqrt(rng.chisquare(3, (count, 1)) / 3)).astype("float32")


def random_model(rng, features=2, depth=2, **kwargs):
    model = GDNDensity(features, depth, **kwargs)
    for weight in model.weights:
        if weight.name == "growth_root":
            weight.assign(rng.uniform(0.5, 0.9, weight.shape))
        elif weight.name == "kernel":
            weight.assign(np.eye(features) + 0.3 * rng.normal(size=weight.shape))
        else:
            weight.assign(weight + 0.2 * rng.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = GDNDensity(2)
    model.compile(keras.optimizers.Adam(0.03, clipnorm=1.0))
    data = student(np.random.default_rng(0), 4000)
    history = model.fit(data, batch_size=500, epochs=25, verbose=0).history["loss"]
    return model, history


@pytest.mark.parametrize("use_bias", [False, True])
def test_log_prob_is_the_change_of_variables(float64, rng, use_bias):
    model = random_model(rng, 3, 2, use_bias=use_bias)
    x = tf.constant(rng.normal(size=(5, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model.gaussianize(x)
    jacobian = tape.batch_jacobian(y, x)
    normal = -0.5 * np.sum(y**2, axis=-1) - 1.5 * np.log(2 * np.pi)
    expected = normal + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-8)
    np.testing.assert_allclose(model(x), expected, rtol=1e-8)
    np.testing.assert_allclose(model.inverse(y), x, atol=1e-6)


def test_density_integrates_to_1(float64, rng):
    # Growth well below 1, so that the tails fit on the grid, which grows like sinh.
    model = random_model(rng, growth=0.5)
    u = np.linspace(-8, 8, 321)
    x, y = np.meshgrid(np.sinh(u), np.sinh(u))
    weight = np.cosh(u)[:, None] * np.cosh(u) * (u[1] - u[0]) ** 2
    density = np.exp(model.log_prob(np.stack([x, y], -1).reshape(-1, 2)))
    assert abs(np.sum(density.reshape(x.shape) * weight) - 1) < 0.01


def test_trained_density_integrates_to_1_and_is_close_to_the_true_one(trained):
    model, _ = trained
    u = np.linspace(-7, 7, 281)
    x, y = np.meshgrid(np.sinh(u), np.sinh(u))
    weight = np.cosh(u)[:, None] * np.cosh(u) * (u[1] - u[0]) ** 2
    points = np.stack([x, y], -1).reshape(-1, 2)
    density = np.exp(np.asarray(model.log_prob(points), "float64"))
    assert abs(np.sum(density * weight.ravel()) - 1) < 0.01
    scaled = np.linalg.solve(MIXING, points.T)
    true = (1 + np.sum(scaled**2, 0) / 3) ** -2.5 / (2 * np.pi * np.linalg.det(MIXING))
    total_variation = 0.5 * np.sum(np.abs(density - true) * weight.ravel())
    normal_variation = 0.5 * np.sum(np.abs(_fitted_normal(scaled) - true) * weight.ravel())
    assert total_variation < 0.06
    assert total_variation < 0.5 * normal_variation


def _fitted_normal(scaled):
    """The normal density of the same covariance, which is 3 times that of the scale matrix."""
    return np.exp(-np.sum(scaled**2, 0) / 6) / (6 * np.pi * np.linalg.det(MIXING))


def test_training_lowers_the_negative_log_likelihood(trained):
    model, history = trained
    fresh = student(np.random.default_rng(1), 20_000)
    scaled = np.linalg.solve(MIXING, fresh.T)
    entropy = np.mean(2.5 * np.log1p(np.sum(scaled**2, 0) / 3)) + np.log(
        2 * np.pi * np.linalg.det(MIXING)
    )
    loss = model.evaluate(fresh, batch_size=20_000, verbose=0)
    np.testing.assert_allclose(loss, -np.mean(model.log_prob(fresh)), rtol=1e-5)
    assert history[0] > history[-1]
    assert entropy - 0.02 < loss < entropy + 0.05


def test_samples_are_like_the_data(trained):
    model, _ = trained
    samples, data = (
        np.asarray(model.sample(20_000, seed=1)),
        student(np.random.default_rng(2), 20_000),
    )
    for quantile in (0.1, 0.25, 0.75, 0.9):
        for direction in ([1, 0], [0, 1], [1, -1]):
            assert (
                abs(
                    np.quantile(samples @ np.float32(direction), quantile)
                    - np.quantile(data @ np.float32(direction), quantile)
                )
                < 0.12
            )
    np.testing.assert_array_equal(model.sample(3, seed=1), model.sample(3, seed=1))
    assert np.abs(model.sample(3) - model.sample(3)).max() > 0


def test_map_is_where_the_posterior_is_flat_and_bayes_is_miyasawas(trained, rng):
    model, _ = trained
    noisy = student(rng, 6)
    found = model.denoise(noisy, 0.5, "map")
    x = tf.constant(found)
    with tf.GradientTape() as tape:
        tape.watch(x)
        posterior = model.log_prob(x) - tf.reduce_sum((x - noisy) ** 2, -1) / 0.5
    np.testing.assert_allclose(tape.gradient(posterior, x), np.zeros((6, 2)), atol=0.02)
    with tf.GradientTape() as tape:
        x = tf.constant(noisy)
        tape.watch(x)
        log_prob = model.log_prob(x)
    expected = noisy + 0.25 * tape.gradient(log_prob, x)
    np.testing.assert_allclose(model.denoise(noisy, 0.5), expected, rtol=1e-6)


def test_map_removes_noise(trained):
    model, _ = trained
    rng = np.random.default_rng(3)
    clean = student(rng, 200)
    noisy = clean + rng.normal(size=clean.shape).astype("float32") * 0.7
    error = np.median(np.sum((model.denoise(noisy, 0.7, "map") - clean) ** 2, 1))
    assert error < 0.8 * np.median(np.sum((noisy - clean) ** 2, 1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"features": 0}, "`features` must be"),
        ({"features": 2, "depth": 1.5}, "`depth` must be"),
        ({"features": 2, "max_growth": 1.0}, "`max_growth` must be"),
        ({"features": 2, "growth": 0.97}, "must be in order"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GDNDensity(**kwargs)


def test_bad_use():
    model = GDNDensity(2)
    with pytest.raises(ValueError, match="`method` must be"):
        model.denoise(np.ones((1, 2)), 1.0, "mode")
    with pytest.raises(ValueError, match="`noise_std` must be"):
        model.denoise(np.ones((1, 2)), 0.0)
    with pytest.raises(ValueError, match="Inputs must be"):
        model.build((None, 3))
