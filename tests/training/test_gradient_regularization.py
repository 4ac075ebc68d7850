import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training import Loop
from kzoo.training.gradient_regularization import GradientRegularization
from tests.weights import Weights

pytestmark = pytest.mark.paper(
    "Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference "
    "Computation and Implicit Bias"
)

METHODS = ("forward", "backward", "double")
START = np.array([1.0, -0.5, 0.3])
HESSIAN = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])


def quadratic(_, w):
    return 0.5 * tf.reduce_sum(w * tf.linalg.matvec(tf.constant(HESSIAN), w), axis=-1)


def quartic(_, w):
    return tf.reduce_sum(w**4, axis=-1) / 4 + quadratic(_, w)


def quartic_gradient(w):
    return w**3 + HESSIAN @ w


def direction(loss, **options):
    """What one step of gradient descent follows."""
    model = Weights(START)
    trainer = GradientRegularization(model, **options)
    trainer.compile(keras.optimizers.SGD(1.0), loss)
    trainer.fit(np.zeros([4, 1]), np.zeros([4, 1]), batch_size=4, verbose=0)
    return START - model.w.numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [0.01, 1.0])
def test_any_epsilon_is_exact_on_a_quadratic(float64, method, epsilon):
    g = HESSIAN @ START
    expected = g + 0.3 * HESSIAN @ g
    ours = direction(quadratic, gamma=0.3, epsilon=epsilon, method=method)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_double_backpropagation_by_hand(float64):
    g = quartic_gradient(START)
    expected = g + 0.3 * (HESSIAN + np.diag(3 * START**2)) @ g
    ours = direction(quartic, gamma=0.3, method="double")
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize(("method", "sign"), [("forward", 1), ("backward", -1)])
def test_differences_by_hand(float64, method, sign):
    g = quartic_gradient(START)
    beside = quartic_gradient(START + sign * 0.2 * g)
    ours = direction(quartic, gamma=0.3, epsilon=0.2, method=method)
    np.testing.assert_allclose(ours, g + 0.3 * sign * (beside - g) / 0.2, rtol=1e-9)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_error_of_the_differences_is_of_first_order_in_epsilon(float64, method):
    exact = direction(quartic, gamma=0.3, method="double")
    errors = [
        np.linalg.norm(direction(quartic, gamma=0.3, epsilon=e, method=method) - exact)
        for e in (1e-3, 1e-4)
    ]
    assert 0.9 < np.log10(errors[0] / errors[1]) < 1.1


def test_gamma_equal_to_epsilon_is_sam_without_normalization(float64):
    ours = direction(quartic, gamma=0.2, epsilon=0.2)
    expected = quartic_gradient(START + 0.2 * quartic_gradient(START))
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_descent_and_ascent_of_flooding_make_the_backward_form(float64):
    # Above the flood level a step goes down, below it up: together - rate^2 times B-GR's penalty.
    rate = 0.05
    down = START - rate * quartic_gradient(START)
    flooded = down + rate * quartic_gradient(down)
    penalized = direction(quartic, gamma=1.0, epsilon=rate, method="backward")
    penalty = penalized - quartic_gradient(START)
    np.testing.assert_allclose(flooded, START - rate**2 * penalty, rtol=1e-12)


def network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input([5]),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3),
        ]
    )


def test_gamma_zero_is_the_base_optimizer_bit_for_bit(rng):
    x, y = rng.normal(size=(16, 5)).astype("float32"), rng.integers(0, 3, 16)
    found = []
    for trainer in (network(), GradientRegularization(network(), gamma=0.0)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
        history = trainer.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        found.append((trainer.get_weights(), history.history))
    (plain, plain_history), (ours, history) = found
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history == plain_history


@pytest.mark.parametrize("method", METHODS)
def test_replicas_equal_one_device(float64, mirrored, rng, method):
    """The second replica has fewer rows."""
    rows = tf.data.Dataset.from_tensor_slices((rng.normal(size=(9, 3)), rng.normal(size=(9, 1))))
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            keras.utils.set_random_seed(4)
            layers = [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
            trainer = GradientRegularization(keras.Sequential(layers), gamma=0.3, method=method)
            trainer.compile(keras.optimizers.SGD(0.1), "mse")
        Loop(trainer, rows.batch(9), epochs=3, strategy=strategy).run()
        weights.append(trainer.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, r"`gamma` must be a number of at least 0. Received: -0.1"),
        ({"epsilon": 0}, r"`epsilon` must be a number above 0. Received: 0"),
        ({"method": "central"}, r"`method` must be one of forward, backward, double."),
    ],
)
def test_refuses_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GradientRegularization(network(), **options)
