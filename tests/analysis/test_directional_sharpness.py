import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.directional_sharpness import compare_update_directions, directional_sharpness
from kzoo.optimizers.coordinate_clip import CoordinateClip

pytestmark = pytest.mark.paper(
    "Toward Understanding Why Adam Converges Faster Than SGD for Transformers"
)


@keras.saving.register_keras_serializable("kzoo_tests")
class Point(keras.layers.Layer):
    """Its weights, for every row; the loss is then a function of the weights alone."""

    def __init__(self, start):
        super().__init__()
        self.point = self.add_weight(shape=(len(start),), initializer="zeros", name="point")
        self.point.assign(start)

    def call(self, rows):
        return tf.ones_like(rows[:, :1]) * self.point


def quadratic(start, matrix):
    """(model, data) with the loss 1/2 w' A w."""
    model = keras.Sequential([keras.Input([1]), Point(start)])
    model.compile("sgd", lambda _, w: tf.einsum("bi,ij,bj->b", w, tf.constant(matrix), w) / 2)
    return model, (np.ones([6, 1]), np.zeros([6, 1]))


@pytest.fixture
def bowl(float64, rng):
    square = rng.normal(size=(4, 4))
    matrix = square @ square.T
    start = rng.normal(size=4)
    return *quadratic(start, matrix), matrix, start


def test_is_the_rayleigh_quotient_of_a_quadratic(bowl, rng):
    model, data, matrix, _ = bowl
    directions = [rng.normal(size=4), 1e-9 * rng.normal(size=4)]
    expected = [v @ matrix @ v / (v @ v) for v in directions]
    found = directional_sharpness(model, data, directions, batch_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    as_lists = directional_sharpness(model, data, [[v] for v in directions])
    np.testing.assert_allclose(as_lists, expected, rtol=1e-10)
    assert np.isnan(directional_sharpness(model, data, [np.zeros(4)])).all()


def test_is_the_second_derivative_of_the_loss_along_the_direction(float64, rng):
    keras.utils.set_random_seed(2)
    layers = [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    data = rng.normal(size=(10, 3)), rng.normal(size=(10, 2))
    start = model.get_weights()
    direction = [rng.normal(size=w.shape) for w in start]
    norm = np.sqrt(sum(np.sum(v**2) for v in direction))

    def loss(step):
        model.set_weights([w + step * v / norm for w, v in zip(start, direction, strict=True)])
        return np.mean((model(data[0]).numpy() - data[1]) ** 2)

    difference = (loss(1e-3) - 2 * loss(0.0) + loss(-1e-3)) / 1e-6
    model.set_weights(start)
    (found,) = directional_sharpness(model, data, [direction], batch_size=3)
    assert found == pytest.approx(difference, rel=1e-5)


def test_compares_optimizers_on_the_path_of_the_first(bowl):
    model, data, matrix, w = bowl
    # SGD makes the path; the sign of its momentum, by hand, goes along.
    optimizers = {"SGD": keras.optimizers.SGD(0.0625), "Lion": keras.optimizers.Lion(0.5)}
    result = compare_update_directions(model, data, optimizers, steps=5, every=2)
    np.testing.assert_array_equal(result.steps, [0, 2, 4])
    momentum = np.zeros(4)
    for step in range(5):
        g = matrix @ w
        v = -np.sign(0.9 * momentum + 0.1 * g)
        momentum = 0.99 * momentum + 0.01 * g
        if step % 2 == 0:
            at = step // 2
            assert result.losses[at] == pytest.approx(w @ matrix @ w / 2)
            assert result.sharpness["SGD"][at] == pytest.approx(g @ matrix @ g / (g @ g))
            assert result.correlation["SGD"][at] == pytest.approx(1.0)
            assert result.sharpness["Lion"][at] == pytest.approx(v @ matrix @ v / 4)
            expected = -g @ v / np.linalg.norm(g) / 2
            assert result.correlation["Lion"][at] == pytest.approx(expected)
            # The best step along v, exactly, since the loss is quadratic.
            best = -(g @ v) / (v @ matrix @ v)
            fall = w @ matrix @ w / 2 - (w + best * v) @ matrix @ (w + best * v) / 2
            assert result.decrease["Lion"][at] == pytest.approx(fall)
        w = w - 0.0625 * g
    np.testing.assert_allclose(model.get_weights()[0], bowl[3])  # only read


def test_clipping_takes_a_few_sharp_coordinates_out_of_the_step(float64, rng):
    curvature = np.where(np.arange(200) < 4, 1e4, 1.0)
    model, data = quadratic(rng.normal(size=200), np.diag(curvature))
    sgd = keras.optimizers.SGD
    optimizers = {"SGD": sgd(1e-6), "clipped": CoordinateClip(sgd(1e-6), fraction=0.1)}
    result = compare_update_directions(model, data, optimizers, steps=1)
    # All of SGD's step is in the four; of the clipped one at most 4 of 20 equal entries.
    assert result.sharpness["SGD"] > 9000
    assert result.sharpness["clipped"] < 0.1 * result.sharpness["SGD"]


def test_refuses_what_does_not_fit(bowl):
    model, data, *_ = bowl
    with pytest.raises(ValueError, match="`directions` must have 4 entries"):
        directional_sharpness(model, data, [np.ones(3)])
    with pytest.raises(ValueError, match="`optimizers` must name at least one"):
        compare_update_directions(model, data, {}, steps=1)
    with pytest.raises(ValueError, match="`every` must be a positive integer. Received: 0"):
        compare_update_directions(model, data, {"a": keras.optimizers.SGD(0.1)}, 1, every=0)
