import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.isometry_gap import isometry_gap
from kzoo.models.depth_stable_mlp import DepthStableMLP

pytestmark = pytest.mark.paper(
    "Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion"
)
WIDTH = 8


def first_gradient_norm(model, seed=0):
    """The norm of the first layer's gradient of a mean squared error, for as many rows as units."""
    rng = np.random.default_rng(seed)
    x, y = (tf.constant(rng.normal(size=(WIDTH, WIDTH)), "float32") for _ in "xy")
    kernel = model.hidden[0][0].kernel.value
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    return float(tf.norm(tape.gradient(loss, kernel)))


def norms(depth, seeds=2, **kwargs):
    values = []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        values.append(first_gradient_norm(DepthStableMLP(WIDTH, depth, WIDTH, **kwargs), seed))
    return np.exp(np.mean(np.log(values)))


@pytest.fixture(scope="module")
def orthogonal_norms():
    return {depth: norms(depth, seeds) for depth, seeds in ((2, 5), (100, 1))}


def test_gradients_do_not_grow_with_depth(orthogonal_norms):
    assert max(orthogonal_norms.values()) < 3 * orthogonal_norms[2]


def test_gradients_of_gaussian_weights_explode(orthogonal_norms):
    gaussian = norms(100, 1, kernel_initializer="lecun_normal")
    assert gaussian > 10 * orthogonal_norms[100]


def test_shaping_keeps_gradients_of_tanh_bounded():
    unshaped, shaped = (norms(40, 1, activation="tanh", gain_exponent=e) for e in (0.0, 0.4))
    assert shaped < 0.2 * unshaped


def test_layers_bring_samples_to_an_isometry():
    keras.utils.set_random_seed(0)
    model = DepthStableMLP(WIDTH, 40, WIDTH)
    x = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype("float32")
    gaps = [isometry_gap(state) for state in model.hidden_states(x, training=True)]
    assert (np.diff(gaps)[:20] < 0).all()
    assert gaps[-1] < 1e-2 * gaps[0]


def test_one_layer_never_widens_the_gap_of_orthogonal_weights(float64):
    # Each step is W x and a normalisation: only the latter changes the gap, and only down in mean.
    rng = np.random.default_rng(1)
    x = rng.normal(size=(WIDTH, WIDTH))
    keras.utils.set_random_seed(1)
    after = [isometry_gap(DepthStableMLP(WIDTH, 1, WIDTH)(x, training=True)) for _ in range(20)]
    assert np.mean(after) < isometry_gap(x)


def test_shape_and_weights():
    model = DepthStableMLP(5, 3, 4, outputs=2)
    assert model(np.ones((3, 5))).shape == (3, 2) == model.compute_output_shape((3, 5))
    assert model.count_params() == 5 * 4 + 2 * 4 * 4 + 3 * 4 + 4 * 2
    kernels = [model.hidden[i][0].get_weights()[0] for i in (1, 2)]
    for kernel in kernels:
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(4), atol=1e-6)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_one_layer_by_hand(float64, rng):
    model = DepthStableMLP(3, 1, 3, activation="tanh", epsilon=0.0)
    x = rng.normal(size=(4, 3))
    h = x @ model.hidden[0][0].get_weights()[0]
    expected = np.tanh(h / np.sqrt(np.mean(h**2, axis=0)))
    np.testing.assert_allclose(model(x, training=True), expected, rtol=1e-10)


def test_trains():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    model = DepthStableMLP(4, 2, 16, outputs=1, activation="tanh")
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    y = x[:, :1] * x[:, 1:2]
    history = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("name", ["features", "depth", "width", "outputs"])
def test_bad_sizes(name):
    sizes = {"features": 3, "depth": 2, "width": 4, "outputs": 1, name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        DepthStableMLP(**sizes)


def test_bad_inputs():
    with pytest.raises(ValueError, match="Inputs must be"):
        DepthStableMLP(3, 2, 4).build((None, 4))
