import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.ops.hessian import rademacher_like
from kzoo.training import Loop
from kzoo.training.oasis import OASIS

pytestmark = pytest.mark.paper(
    "Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information"
)


class Weights(keras.Model):
    """Outputs w for every row, so that a loss can be any function of w."""

    def __init__(self, start):
        super().__init__()
        self.w = self.add_weight(shape=[len(start)], initializer="zeros", name="w")
        self.w.assign(start)
        self.built = True

    def call(self, x):
        return tf.zeros_like(x[:, :1]) + self.w


def trained_on(start, loss, optimizer=None, **options):
    trainer = OASIS(Weights(np.asarray(start)), **options)
    trainer.compile(optimizer or keras.optimizers.SGD(1.0), loss)
    return trainer


def step(trainer, label=0.0, times=1):
    for _ in range(times):
        trainer.train_on_batch(np.zeros([2, 1]), np.full([2, 1], label))
    return trainer.model.w.numpy()


def half_quadratic(hessian):
    hessian = tf.constant(hessian)
    return lambda _, w: 0.5 * tf.reduce_sum(w * tf.linalg.matvec(hessian, w), axis=-1)


DIAGONAL = np.diag([1.0, 10.0, 100.0])


def test_one_step_to_the_optimum_of_a_diagonal_quadratic(float64):
    # One probe of signs is the exact diagonal, so that eta = 1 is Newton's step.
    trainer = trained_on([3.0, -2.0, 0.5], half_quadratic(DIAGONAL), initial_step_size=1.0)
    np.testing.assert_allclose(step(trainer), 0.0, atol=1e-14)


def test_the_step_size_of_a_diagonal_quadratic_is_a_half(float64):
    # ||dw||_D / (2 ||D dw||_D^-1) = 1/2, whatever the first step was.
    start = np.array([3.0, -2.0, 0.5])
    trainer = trained_on(start, half_quadratic(DIAGONAL), initial_step_size=0.01)
    np.testing.assert_allclose(step(trainer), 0.99 * start, rtol=1e-12)
    np.testing.assert_allclose(step(trainer), 0.99 / 2 * start, rtol=1e-12)
    assert float(trainer.step_size) == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(step(trainer, times=3), 0.99 / 16 * start, rtol=1e-12)


def test_two_steps_computed_by_hand(float64):
    # L = w^4 / 4 from w = 1 with b2 = 1/2, eta_0 = 1/2. D_0 = 3, so w_1 = 1 - 1/2 * 1/3 = 5/6.
    # D_1 = (3 + 3 * 25/36) / 2 = 61/24; in one dimension the ratio is D |dw| / (2 |dg|):
    # eta_1 = 61/24 * 1/6 / (2 * 91/216) = 183/364, and w_2 = 5/6 - 183/364 * 24/61 * 125/216.
    trainer = trained_on(
        [1.0], lambda _, w: w[:, 0] ** 4 / 4, initial_step_size=0.5, beta_2=0.5, alpha=1e-9
    )
    np.testing.assert_allclose(step(trainer), 5 / 6, rtol=1e-14)
    np.testing.assert_allclose(step(trainer), 785 / 1092, rtol=1e-14)
    assert float(trainer.step_size) == pytest.approx(183 / 364, rel=1e-14)


def by_the_paper(w, x, y, signs, eta, beta_2, alpha, momentum, decay):
    """Algorithm 1 on logistic regression with a penalty, on a batch for each step; and whether the
    first term was the least."""
    previous, theta, d, m, trajectory, grown = w, np.inf, None, 0.0, [], []
    for t, (rows, labels, z) in enumerate(zip(x, y, signs, strict=True)):

        def gradient(w, rows=rows, labels=labels):
            return rows.T @ (1 / (1 + np.exp(-rows @ w)) - labels) / len(rows) + w / 16

        p = 1 / (1 + np.exp(-rows @ w))
        hessian = rows.T @ ((p * (1 - p))[:, None] * rows) / len(rows) + np.eye(4) / 16
        d = z * (hessian @ z) if d is None else beta_2 * d + (1 - beta_2) * z * (hessian @ z)
        scale = np.maximum(np.abs(d), alpha)
        g = gradient(w)
        if t > 0:
            dw, dg = w - previous, g - gradient(previous)
            bound = np.sqrt(1 + theta) * eta
            ratio = np.sqrt(dw @ (scale * dw)) / (2 * np.sqrt(dg @ (dg / scale)))
            theta, eta = min(bound, ratio) / eta, min(bound, ratio)
            grown.append(bound < ratio)
        m = momentum * m + (1 - momentum) * g
        average = m / (1 - momentum ** (t + 1))
        previous, w = w, w - decay * w - eta * average / scale
        trajectory.append(w)
    return np.stack(trajectory), grown


@pytest.mark.parametrize("jit_compile", [False, True])
def test_equals_the_algorithm_on_new_batches_for_200_steps(float64, rng, jit_compile):
    x, y = rng.normal(size=(200, 8, 4)), rng.integers(0, 2, (200, 8)).astype("float64")
    start = rng.normal(size=(4, 1))
    # A penalty of w^2 / 32: its gradient is w / 16. Keras takes numbers through float32.
    dense = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(1 / 32))
    model = keras.Sequential([keras.Input([4]), dense])
    model.set_weights([start])
    options = {"beta_2": 0.9, "alpha": 0.01, "momentum": 0.5}
    trainer = OASIS(model, initial_step_size=0.02, seed=7, **options)
    trainer.compile(
        keras.optimizers.SGD(1.0, weight_decay=1 / 1024),
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    signs = tf.function(lambda seed: rademacher_like([start], seed)[0], jit_compile=jit_compile)
    signs = [signs(tf.constant([7, t])).numpy()[:, 0] for t in range(200)]
    expected, grown = by_the_paper(start[:, 0], x, y, signs, 0.02, decay=1 / 1024, **options)
    weights = []
    for rows, labels in zip(x, y, strict=True):
        trainer.train_on_batch(rows, labels)
        weights.append(model.get_weights()[0][:, 0])
    # The difference of two gradients loses digits when the weights move little.
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-11)
    assert 10 < sum(grown) < 190  # both terms of the minimum have been taken


def test_scaling_the_loss_changes_nothing(float64, rng):
    a = rng.normal(size=(3, 3))
    hessian, start = a @ a.T, rng.normal(size=3)
    ours, scaled = (
        trained_on(start, half_quadratic(c * hessian), alpha=0.01 * c) for c in (1.0, 100.0)
    )
    for _ in range(20):
        np.testing.assert_allclose(step(scaled), step(ours), rtol=1e-7)


def test_curvature_is_at_least_alpha_and_taken_without_its_sign(float64):
    # Without curvature the step is g / alpha; with negative one it goes downhill all the same.
    trainer = trained_on([1.0, 1.0], lambda _, w: w[:, 0] - 2 * w[:, 1] ** 2, alpha=0.5)
    assert trainer.alpha == 0.5
    expected = [1 - 0.001 * 1 / 0.5, 1 + 0.001 * 4 / 4]
    np.testing.assert_allclose(step(trainer), expected, rtol=1e-12)


def test_a_fixed_learning_rate_with_decoupled_weight_decay(float64):
    start = np.array([3.0, -2.0, 0.5])
    optimizer = keras.optimizers.SGD(0.2, weight_decay=0.5)
    trainer = trained_on(start, half_quadratic(DIAGONAL), optimizer, adaptive=False)
    np.testing.assert_allclose(step(trainer), (1 - 0.2 * 0.5) * start - 0.2 * start, rtol=1e-7)
    assert len(trainer.non_trainable_variables) == 5  # the diagonal and four numbers


def test_warm_start_averages_estimates(float64):
    hessian = np.array([[2.0, 1.0], [1.0, 3.0]])
    trainer = trained_on([1.0, 1.0], half_quadratic(hessian), beta_2=0.75)
    data = tf.data.Dataset.from_tensors((np.zeros([2, 1]), np.zeros([2, 1])))
    trainer.warm_start(data, samples=64)
    (diagonal,) = (d.numpy() for d in trainer._diagonals)
    # One estimate is the diagonal +- 1; the mean of 64 has a standard deviation of 1/8.
    np.testing.assert_allclose(diagonal, [2, 3], atol=0.5)
    assert diagonal[1] - diagonal[0] == pytest.approx(1.0)
    step(trainer)
    # The first step's estimate is averaged into it.
    sign = (trainer._diagonals[0].numpy() - 0.75 * diagonal) / 0.25 - [2, 3]
    np.testing.assert_allclose(np.abs(sign), 1.0, rtol=1e-9)


def test_a_batch_that_is_not_finite_leaves_everything_as_it_was():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    trainer = trained_on(
        [1.0, 2.0], lambda y, w: y[:, 0] * w[:, 0] ** 2 + w[:, 1] ** 2, optimizer, momentum=0.5
    )
    step(trainer, 1.0, times=2)
    before = [v.numpy() for v in trainer.variables]
    step(trainer, np.inf)
    for variable, value in zip(trainer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert np.isfinite(step(trainer, 1.0)).all()


def test_the_step_size_waits_for_weights_to_move(float64):
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    start = np.array([3.0, -2.0, 0.5])
    trainer = trained_on(start, half_quadratic(DIAGONAL), optimizer, initial_step_size=0.01)
    np.testing.assert_allclose(step(trainer, times=2), 0.99 * start, rtol=1e-12)
    assert float(trainer.step_size) == 0.01
    np.testing.assert_allclose(step(trainer, times=2), 0.99 / 2 * start, rtol=1e-12)


def test_two_replicas_take_the_steps_of_one_device(float64, mirrored, rng):
    x, y = rng.normal(size=(24, 6)), rng.integers(0, 3, 24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(9)
    states = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        keras.utils.set_random_seed(3)
        with strategy.scope():
            layers = [keras.Input([6]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
            trainer = OASIS(keras.Sequential(layers), momentum=0.5, initial_step_size=0.01)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            trainer.compile(keras.optimizers.SGD(1.0), loss)
        Loop(trainer, data, epochs=4, strategy=strategy).run()
        states.append([variable.numpy() for variable in trainer.variables])
    for one, two in zip(*states, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("initial_step_size", 0), ("beta_2", 1.0), ("alpha", 0.0), ("momentum", -0.1)],
)
def test_refuses_what_is_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be in .* Received: {value!r}"):
        OASIS(Weights([1.0]), **{argument: value})


def test_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="`model` must be built"):
        OASIS(keras.Sequential([keras.layers.Dense(2)]))
    data = tf.data.Dataset.from_tensors((np.zeros([2, 1]), np.zeros([2, 1])))
    with pytest.raises(ValueError, match="call `compile` first"):
        OASIS(Weights([1.0])).warm_start(data)
    trainer = trained_on([1.0], half_quadratic(np.eye(1, dtype="float32")))
    with pytest.raises(ValueError, match="`samples` must be a positive integer. Received: 0"):
        trainer.warm_start(data, samples=0)
