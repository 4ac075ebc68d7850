import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers.amsgrad import AMSGrad
from kzoo.optimizers.opt_amsgrad import OptAMSGrad, extrapolate, extrapolation_weights
from tests.optimizers.reference import trajectory

pytestmark = pytest.mark.paper("An Optimistic Acceleration of AMSGrad for Nonconvex Optimization")


def guess(gradients, r, regularization):
    """Algorithm 3 on the last r + 1 gradients."""
    if len(gradients) <= r:
        return 0.0
    x = np.reshape(gradients[-r - 1 :], [r + 1, -1])
    u = np.diff(x, axis=0).T
    z = np.linalg.solve(u.T @ u + regularization * np.eye(r), np.ones(r))
    return np.reshape(z / z.sum() @ x[:-1], gradients[0].shape)


def by_the_formula(start, gradients, r, regularization, lr, b1, b2, eps, decay):
    """Algorithm 2, line by line; weight decay moves both of its sequences."""
    w, y, m, weights = start.copy(), start.copy(), 0.0, []
    theta, v, v_hat = 0.0, 0.0, 0.0
    for t, g in enumerate(gradients):
        shrunk = lr * decay * w
        old, theta = theta, b1 * theta + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - m) ** 2
        v_hat = np.maximum(v_hat, v)
        m = guess(gradients[: t + 1], r, regularization) if r else 0.0
        y = y - shrunk - lr * theta / (np.sqrt(v_hat) + eps)
        w = y - lr * (b1 * old + (1 - b1) * m) / (np.sqrt(v_hat) + eps)
        weights.append(w)
    return np.stack(weights)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("r", [0, 1, 5])
def test_equals_the_formula_over_200_steps(float64, rng, r, jit_compile):
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(200, 3, 4))
    optimizer = OptAMSGrad(
        0.02, 0.8, 0.95, r, 0.01, epsilon=1e-6, weight_decay=0.1, jit_compile=jit_compile
    )
    expected = by_the_formula(start, gradients, r, 0.01, 0.02, 0.8, 0.95, 1e-6, 0.1)
    np.testing.assert_allclose(trajectory(optimizer, start, gradients), expected, rtol=1e-9)


def test_five_steps_computed_by_hand(float64):
    # r = 1 guesses the gradient before this one, beta_1 = 0, beta_2 = 3/4, eps = 0.
    # g = 2, 4, 4, 6, 6; m = 0, 0, 2, 4, 4; errors 2, 4, 2, 2, 2; v = 1, 19/4, ..., less after;
    # y = -2, then -4, -4, -6, -6 over the root, and half of it: the guesses 0, 2, 4, 4, 6.
    optimizer = OptAMSGrad(1.0, beta_1=0.0, beta_2=0.75, history=1, epsilon=0.0)
    gradients = np.array([2.0, 4.0, 4.0, 6.0, 6.0])[:, None]
    root = np.sqrt(19 / 4)
    y = -np.cumsum([2, 4 / root, 4 / root, 6 / root, 6 / root])
    expected = y - np.array([0, 2, 4, 4, 6]) / root
    weights = trajectory(optimizer, np.zeros(1), gradients)[:, 0]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_is_amsgrad_without_a_guess_and_momentum(float64, rng):
    start, gradients = rng.normal(size=(5,)), rng.normal(size=(100, 5))
    options = {"beta_1": 0.0, "beta_2": 0.9, "weight_decay": 0.1}
    np.testing.assert_allclose(
        trajectory(OptAMSGrad(0.1, history=0, **options), start, gradients),
        trajectory(AMSGrad(0.1, **options), start, gradients),
        rtol=1e-11,
    )


@pytest.mark.parametrize(
    ("dtype", "eigenvalues", "tolerance"),
    [("float64", [0.9, 0.6, -0.5], 1e-6), ("float32", [0.9, -0.5, -0.5], 0.01)],
)
def test_finds_the_fixed_point_of_a_linear_recurrence(rng, dtype, eigenvalues, tolerance):
    vectors = rng.normal(size=(3, 3))
    matrix = vectors @ np.diag(eigenvalues) @ np.linalg.inv(vectors)
    fixed, x = np.array([1.0, -2.0, 3.0]), rng.normal(size=3)
    sequence = [x]
    for _ in range(5):
        sequence.append(matrix @ (sequence[-1] - fixed) + fixed)
    tensors = [tf.constant(x, dtype) for x in sequence]
    np.testing.assert_allclose(extrapolate(tensors, 0.0), fixed, rtol=tolerance)
    # Far from what the last of them is.
    assert np.abs(sequence[-1] - fixed).max() > 0.1


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**60])
@pytest.mark.parametrize("kind", ["random", "constant", "line"])
def test_weights_sum_to_one_at_every_scale(rng, kind, scale):
    sequence = {
        "random": rng.normal(size=(6, 10)),
        "constant": np.ones([6, 10]),
        "line": np.arange(6)[:, None] * np.ones(10),
    }[kind]
    weights = extrapolation_weights([tf.constant(scale * x, "float32") for x in sequence], 1e-3)
    assert float(tf.reduce_sum(weights)) == pytest.approx(1.0, abs=1e-4)
    if kind != "random":
        np.testing.assert_allclose(weights, 0.2, rtol=1e-3)


def test_reaches_the_minimum_of_a_smooth_function_first(float64):
    curvature = np.geomspace(1.0, 100.0, 10)

    def steps(optimizer):
        variable = keras.Variable(np.ones(10))
        optimizer.build([variable])

        @tf.function(autograph=False)
        def run():
            def step(t, _):
                gradient = curvature * variable.value
                optimizer.apply([gradient], [variable])
                return t + 1, tf.linalg.norm(gradient)

            return tf.while_loop(
                lambda t, norm: (t < 3000) & (norm > 1e-4), step, (0, tf.constant(1.0, tf.float64))
            )[0]

        return int(run())

    ours, plain = (
        min(steps(make(rate, beta_2=0.99, jit_compile=False)) for rate in (0.1, 0.3))
        for make in (OptAMSGrad, AMSGrad)
    )
    assert ours < plain / 2


def test_the_second_moment_never_decreases_and_the_slots_are_as_many_as_documented(rng):
    variable = keras.Variable(np.zeros(20, "float32"))
    optimizer = OptAMSGrad(0.1, beta_2=0.5)
    last = 0.0
    for scale in (1.0, 5.0, 0.1, 0.0, 2.0, 1.0, 1.0):
        optimizer.apply([tf.constant(scale * rng.normal(size=20), tf.float32)], [variable])
        now = optimizer._velocity_hats[0].numpy()
        assert (now >= last).all()
        last = now
    assert len([v for v in optimizer.variables if v.shape == (20,)]) == 10


def test_steps_in_bfloat16():
    variable = keras.Variable(np.ones(3), dtype="bfloat16")
    optimizer = OptAMSGrad(0.5, beta_1=0.0, beta_2=0.75, history=2)
    for _ in range(4):
        optimizer.apply([tf.constant([2.0, -4.0, 0.0], "bfloat16")], [variable])
    assert np.isfinite(variable.numpy().astype("float32")).all()
    assert variable.numpy()[2] == 1.0


@pytest.mark.parametrize(
    ("argument", "value"),
    [("beta_1", 1.0), ("beta_2", -0.1), ("history", -1), ("history", 2.5), ("regularization", -1)],
)
def test_refuses_what_is_out_of_range(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .* Received: {value!r}"):
        OptAMSGrad(**{argument: value})
