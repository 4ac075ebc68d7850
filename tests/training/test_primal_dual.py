import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize
from sklearn.datasets import make_moons

from kzoo.regularizers.manifold_lipschitz import LaplacianPenalty, heat_kernel_graph
from kzoo.training import Loop
from kzoo.training.primal_dual import PrimalDualTraining, projected_onto_simplex

pytestmark = pytest.mark.paper("Learning Globally Smooth Functions on Manifolds")

# Three points on a line, 0, 1 and 3, whose edges weigh the same.
POINTS = np.array([[0.0], [1.0], [3.0]])
GRAPH = np.array([[0, 1], [1, 2]]), np.array([1.0, 1.0]), np.array([1.0, 2.0])


def line(slope=2.0):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[slope]])
    return model


def test_one_step_by_hand(float64):
    trainer = PrimalDualTraining(line(), POINTS, 0.5, GRAPH, point_rate=0.1, loss_rate=0.2)
    trainer.multipliers.assign([0.5, 0.3, 0.2])
    trainer.compile(keras.optimizers.SGD(0.1), "mse")
    trainer.fit(np.array([[2.0]]), np.array([[3.0]]), verbose=0)
    # f = a x has the squared gradient a^2 = 4 everywhere, so the smoothness has the slope 2 a = 4.
    # The loss (2 a - 3)^2 = 1 has the slope 4 (2 a - 3) = 4; nu was 1.
    np.testing.assert_allclose(trainer.model.layers[0].kernel, [[2 - 0.1 * (4 + 4)]], rtol=1e-12)
    np.testing.assert_allclose(trainer.loss_multiplier, 1 + 0.2 * (1 - 0.5), rtol=1e-12)
    # The same for all points, 0.1 * 4, is taken off again by the projection.
    np.testing.assert_allclose(trainer.multipliers, [0.5, 0.3, 0.2], rtol=1e-12)


def test_the_lagrangian_is_a_weighted_laplacian_penalty(float64, rng):
    points = rng.normal(size=(12, 2))
    edges, weights, lengths = heat_kernel_graph(points, neighbors=3)
    model = keras.Sequential(
        [keras.Input([2]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    )
    trainer = PrimalDualTraining(model, points, 0.1, (edges, weights, lengths))
    mu = rng.dirichlet(np.ones(12))
    runs = np.zeros(12)
    for end in edges.T:
        np.add.at(runs, end, weights * lengths**2)
    expected = LaplacianPenalty(edges, weights)(model(points), mu / runs)
    ours = np.sum(mu * trainer.squared_gradients())
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_multipliers_grow_where_the_function_is_steep(float64):
    model = keras.Sequential(
        [keras.Input([1]), keras.layers.Lambda(lambda x: x**2), keras.layers.Dense(1)]
    )
    trainer = PrimalDualTraining(model, POINTS, 0.5, GRAPH, point_rate=1e-3)
    trainer.compile(keras.optimizers.SGD(0.0), "mse")
    trainer.fit(np.zeros([8, 1]), np.zeros([8, 1]), batch_size=1, verbose=0)
    mu, g = trainer.multipliers.numpy(), trainer.squared_gradients().numpy()
    assert (np.argsort(mu) == np.argsort(g)).all()
    np.testing.assert_allclose(mu - mu.mean(), 8e-3 * (g - g.mean()), rtol=1e-9)


def test_projection_onto_the_simplex_against_a_solver(float64, rng):
    for _ in range(5):
        v = rng.normal(size=6)
        ours = projected_onto_simplex(tf.constant(v)).numpy()
        solved = minimize(
            lambda p, v=v: np.sum((p - v) ** 2),
            np.full(6, 1 / 6),
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(ours, solved.x, atol=1e-5)
        np.testing.assert_allclose(ours.sum(), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(projected_onto_simplex(tf.constant([9.0, 0.0])), [1.0, 0.0])


def test_loss_multiplier_stays_positive(float64):
    trainer = PrimalDualTraining(line(0.0), POINTS, epsilon=100, graph=GRAPH, loss_rate=1.0)
    trainer.compile(keras.optimizers.SGD(0.1), "mse")
    trainer.fit(np.zeros([4, 1]), np.zeros([4, 1]), verbose=0)
    assert float(trainer.loss_multiplier.numpy()) == 0.0


@pytest.fixture(scope="module")
def moons():
    """Two moons with one label each: (points, classes, trainer after training)."""
    keras.utils.set_random_seed(0)
    points, classes = make_moons(202, noise=0.05, random_state=0)
    labelled = [np.flatnonzero(classes == c)[10] for c in (0, 1)]
    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input([2]), *hidden, keras.layers.Dense(1)])
    trainer = PrimalDualTraining(model, points, 0.05, heat_kernel_graph(points, 8))
    trainer.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = points[labelled].astype("float32"), 2.0 * classes[labelled, np.newaxis] - 1
    rows = tf.data.Dataset.from_tensors((x, y.astype("float32"))).repeat(1200)
    Loop(trainer, rows).run()
    return points, classes, (x, y), trainer


def test_two_labels_are_enough_for_two_moons(moons):
    points, classes, (x, y), trainer = moons
    found = trainer.model(points)[:, 0] > 0
    assert np.mean(found == (classes > 0)) > 0.95
    assert abs(np.mean((trainer.model(x) - y) ** 2) - 0.05) < 0.04


def test_multipliers_gather_at_the_steepest_points(moons):
    steepest = np.argsort(-moons[-1].squared_gradients().numpy())[:20]
    mu = moons[-1].multipliers.numpy()
    assert mu[steepest].sum() > 0.3
    np.testing.assert_allclose(mu.sum(), 1.0, rtol=1e-4)


def test_saved_with_its_cloud_and_multipliers(moons, tmp_path):
    trainer = moons[-1]
    trainer.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.edges, trainer.edges)
    np.testing.assert_array_equal(again.multipliers, trainer.multipliers)
    np.testing.assert_array_equal(again.squared_gradients(), trainer.squared_gradients())


def test_replicas_equal_one_device(float64, mirrored, rng):
    """The second replica has fewer rows."""
    rows = tf.data.Dataset.from_tensor_slices((rng.normal(size=(9, 2)), rng.normal(size=(9, 1))))
    points = rng.normal(size=(10, 2))
    found = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            keras.utils.set_random_seed(4)
            layers = [keras.Input([2]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
            trainer = PrimalDualTraining(
                keras.Sequential(layers), points, 0.1, heat_kernel_graph(points, 3), point_rate=0.1
            )
            trainer.compile(keras.optimizers.SGD(0.1), "mse")
        Loop(trainer, rows.batch(9), epochs=3, strategy=strategy).run()
        found.append(trainer.get_weights())
    assert np.ptp(trainer.multipliers) > 1e-3
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1}, "`epsilon` must be a number of at least 0. Received: -1"),
        ({"dimension": 0}, "`dimension` must be a positive integer. Received: 0"),
        ({"points": POINTS[:2]}, "`graph` names the point 2. Received 2 `points`"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        PrimalDualTraining(line(), **{"points": POINTS, "epsilon": 0.1, "graph": GRAPH, **options})
