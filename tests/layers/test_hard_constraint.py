"""Hard constraints against NumPy's and SciPy's least squares, and experts against a loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import least_squares

from kzoo.layers.hard_constraint import HardConstraintLeastSquares
from kzoo.layers.physics_moe import PhysicsMoE

pytestmark = pytest.mark.paper("Scaling physics-informed hard constraints with mixture-of-experts")


@keras.saving.register_keras_serializable("tests")
def reaction(fields, data):
    """A diffusion equation with a cubic reaction: -u'' + u^3 + u = f."""
    return -fields[..., 1] + fields[..., 0] ** 3 + fields[..., 0] - data[..., 0]


def problem(rng, problems=3, points=9, basis=4):
    """Terms of two fields, an offset, and data that are near to, not at, a residual of 0."""
    terms = rng.normal(size=(problems, points, 2, basis)) / 2
    offset = rng.normal(size=(problems, points, 2)) / 2
    w, noise = rng.normal(size=(problems, basis)), rng.normal(size=(problems, points, 1)) / 2
    fields = np.einsum("bpfn,bn->bpf", terms, w) + offset
    return terms, offset, noise + reaction(fields, np.zeros_like(noise))[..., None]


@pytest.fixture
def nonlinear(float64):
    layer = HardConstraintLeastSquares(reaction, ridge=0.1, tolerance=1e-12, iterations=100)
    return tf.function(layer, reduce_retracing=True)


def test_linear_equals_lstsq(float64, rng):
    terms, offset, data = problem(rng)
    actual = HardConstraintLeastSquares(tolerance=1e-12)(terms, offset, data)
    for i in range(3):
        matrix, right = terms[i].sum(1), data[i, :, 0] - offset[i].sum(1)
        expected = np.linalg.lstsq(matrix, right)[0]
        np.testing.assert_allclose(actual[i], expected, atol=1e-9)


def test_linear_with_a_ridge_by_the_normal_equations(float64, rng):
    terms, _, data = problem(rng)
    actual = HardConstraintLeastSquares(ridge=0.3, tolerance=1e-12)(terms, data=data)
    a, b = terms.sum(2), data[..., 0]
    left = np.swapaxes(a, 1, 2) @ a + 0.3 * np.eye(4)
    expected = np.linalg.solve(left, np.einsum("bpn,bp->bn", a, b)[..., None])[..., 0]
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_linear_gradients_are_those_through_lstsq(float64, rng):
    terms, _, data = (tf.constant(x) for x in problem(rng))
    weights = rng.normal(size=(3, 4))
    layer = HardConstraintLeastSquares(tolerance=1e-12)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([terms, data])
        mine = tf.reduce_sum(weights * layer(terms, data=data))
        solved = tf.linalg.lstsq(tf.reduce_sum(terms, 2), data)[..., 0]
        its = tf.reduce_sum(weights * solved)
    for a, b in zip(
        tape.gradient(mine, [terms, data]), tape.gradient(its, [terms, data]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_nonlinear_equals_scipy(nonlinear, rng):
    terms, offset, data = problem(rng)
    actual = nonlinear(terms, offset, data)
    for i in range(3):

        def rows(w, i=i):
            r = reaction(terms[i] @ w + offset[i], data[i])
            return np.concatenate([r, np.sqrt(0.1) * w])

        expected = least_squares(rows, np.zeros(4), xtol=1e-14, ftol=1e-14, gtol=1e-14)
        np.testing.assert_allclose(actual[i], expected.x, atol=1e-6)


def test_nonlinear_gradients_equal_finite_differences(nonlinear, rng):
    """Where the residual is not 0, so that the Gauss-Newton matrix alone would be wrong."""
    arguments = [tf.constant(x) for x in problem(rng, 1, 5, 2)]
    theory, numeric = tf.test.compute_gradient(nonlinear, arguments, delta=1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_weights_of_the_residual_get_their_gradient(float64):
    """min_w (w - 3 p)^2: w = 3 p by hand."""
    p = tf.Variable(2.0, dtype="float64")
    layer = HardConstraintLeastSquares(lambda fields, data: fields[..., 0] - 3 * p)
    with tf.GradientTape() as tape:
        w = layer(np.ones((1, 1, 1, 1)))
    assert float(w[0, 0]) == pytest.approx(6.0)
    assert float(tape.gradient(w, p)) == pytest.approx(3.0)


def test_directions_that_nothing_determines_stay_and_have_no_gradient(float64, rng):
    terms = np.zeros((1, 5, 1, 3))
    terms[..., :2] = rng.normal(size=(1, 5, 1, 2))
    data = tf.constant(rng.normal(size=(1, 5, 1)))
    layer = HardConstraintLeastSquares(initial=0.5)
    with tf.GradientTape() as tape:
        tape.watch(data)
        w = layer(terms, data=data)
        free = w[0, 2]
    assert float(free) == pytest.approx(0.5)
    np.testing.assert_array_equal(tape.gradient(free, data), np.zeros((1, 5, 1)))
    expected = np.linalg.lstsq(terms[0, :, 0, :2], data[0, :, 0])[0]
    np.testing.assert_allclose(w[0, :2], expected, atol=1e-6)


def test_float32_reaches_a_small_residual(rng):
    """As many coefficients as points: the equation holds at the points."""
    terms, offset, data = (x.astype("float32") for x in problem(rng, 4, 4, 4))
    w = tf.function(HardConstraintLeastSquares(reaction))(terms, offset, data)
    fields = np.einsum("bpfn,bn->bpf", terms, w) + offset
    residual = np.abs(reaction(fields, data)).max(1)
    assert np.median(residual) < 1e-4


def test_one_expert_is_the_global_solve(nonlinear, rng):
    terms, offset, data = problem(rng, 2, 24)
    moe = PhysicsMoE((1, 1), reaction, ridge=0.1, tolerance=1e-12, iterations=100)
    grid = [x.reshape(2, 4, 6, *x.shape[2:]) for x in (terms, offset, data)]
    w = nonlinear(terms, offset, data).numpy()
    expected = np.einsum("bpfn,bn->bpf", terms, w) + offset
    np.testing.assert_allclose(tf.function(moe)(*grid), expected.reshape(2, 4, 6, 2), atol=1e-9)


def test_experts_equal_a_loop_over_cells(nonlinear, rng):
    terms, offset, data = (x.reshape(2, 4, 6, *x.shape[2:]) for x in problem(rng, 2, 24, basis=2))
    moe = PhysicsMoE((2, 3), reaction, points=3, ridge=0.1, tolerance=1e-12, iterations=100)
    actual = tf.function(moe)(terms, offset, data).numpy()
    chosen = np.sort(np.random.default_rng(0).choice(4, 3, replace=False))
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 2), slice(2, 4), slice(4, 6)):
            cell = [x[:, rows, columns].reshape(2, 4, *x.shape[3:]) for x in (terms, offset, data)]
            w = nonlinear(*(x[:, chosen] for x in cell)).numpy()
            expected = np.einsum("bpfn,bn->bpf", cell[0], w) + cell[1]
            np.testing.assert_allclose(
                actual[:, rows, columns].reshape(2, 4, 2), expected, atol=1e-8
            )


def test_a_residual_is_saved_by_its_name(rng, tmp_path):
    inputs = [keras.Input(x.shape[1:]) for x in problem(rng)]
    layer = HardConstraintLeastSquares(reaction, ridge=0.5)
    model = keras.Model(inputs, layer(*inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    given = [x.astype("float32") for x in problem(rng)]
    np.testing.assert_array_equal(again(given), model(given))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"residual": 3}, "`residual` must be a function.*Received: 3"),
        ({"ridge": -1.0}, "`ridge`.*Received: -1.0"),
        ({"tolerance": float("nan")}, "`tolerance`.*Received: nan"),
        ({"iterations": 0}, "`iterations`.*Received: 0"),
        ({"experts": 0}, "`experts`.*Received: 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    cls = PhysicsMoE if "experts" in kwargs else HardConstraintLeastSquares
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({"experts": 3}, (1, 8, 1, 2), "must divide.*Received: \\(3,\\)"),
        ({"experts": 2, "points": 5}, (1, 8, 1, 2), "from 1 to the 4 points.*Received: 5"),
        ({"experts": 2}, (1, 8, 8, 1, 2), "1 axes of known size"),
    ],
)
def test_grids_that_experts_refuse(kwargs, shape, message):
    with pytest.raises(ValueError, match=message):
        PhysicsMoE(**kwargs)(np.ones(shape, "float32"))
