import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse.linalg import cg, eigsh, spsolve

from kzoo.models.dcdm import DCDMNet
from kzoo.solvers.deep_conjugate_direction import DeepConjugateDirection, ScaledResidualLoss
from kzoo.solvers.poisson import PoissonOperator
from kzoo.solvers.ritz import ritz_right_hand_sides, ritz_vectors

pytestmark = pytest.mark.paper(
    "A Deep Conjugate Direction Method for Iteratively Solving Linear Systems"
)


def grid_with_obstacle(*shape):
    obstacles = np.zeros(shape, bool)
    obstacles[tuple(slice(n // 4, n // 2) for n in shape)] = True
    return obstacles


@pytest.fixture(params=[(8, 10), (4, 6, 8)], ids=str)
def operator(request):
    return PoissonOperator(grid_with_obstacle(*request.param))


@pytest.fixture
def plane():
    return PoissonOperator(grid_with_obstacle(12, 12))


def right_hand_sides(operator, rng, count=3):
    return rng.normal(size=(count, *operator.shape)) * operator.fluid


def solutions(operator, b):
    fields = np.zeros_like(b)
    matrix = operator.matrix().tocsc()
    for field, row in zip(fields, b, strict=True):
        field[operator.fluid] = spsolve(matrix, row[operator.fluid])
    return fields


def test_operator_by_hand():
    # One obstacle in a grid of 2 x 2: the corner next to it has two outer faces and one open one.
    operator = PoissonOperator([[False, False], [False, True]])
    x = tf.constant([[[1.0, 2.0], [3.0, 50.0]]])
    # (0, 0): 2 outside, neighbours 2 and 3: 4 * 1 - 5; (0, 1): 2 outside, neighbour 1: 3 * 2 - 1.
    np.testing.assert_array_equal(operator(x), [[[-1.0, 5.0], [8.0, 0.0]]])


def test_operator_equals_its_matrix_and_is_symmetric_positive_definite(operator, rng):
    x = rng.normal(size=(3, *operator.shape))
    image = operator(x).numpy()
    matrix = operator.matrix().toarray()
    np.testing.assert_allclose(image[:, operator.fluid], x[:, operator.fluid] @ matrix, atol=1e-12)
    np.testing.assert_array_equal(image[:, operator.obstacles], 0)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[0] > 0


def test_operator_without_obstacles_has_the_eigenvalues_of_sines():
    values = np.linalg.eigvalsh(PoissonOperator(np.zeros((5, 6), bool)).matrix().toarray())
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (5, 6))
    np.testing.assert_allclose(values, np.sort(np.add.outer(rows, columns).ravel()), atol=1e-12)


def conjugate_gradients(matrix, b, steps):
    """The iterates of SciPy's conjugate gradient method."""
    iterates = []
    cg(matrix, b, rtol=0, atol=0, maxiter=steps, callback=lambda x: iterates.append(x.copy()))
    return iterates


def test_with_the_identity_it_is_the_conjugate_gradient_method(operator, rng):
    b = right_hand_sides(operator, rng, 2)
    expected = [conjugate_gradients(operator.matrix(), row[operator.fluid], 10) for row in b]
    for steps in (3, 10):
        solver = DeepConjugateDirection(tf.identity, operator, tolerance=0.0, max_steps=steps)
        x = solver.solve(b).x[:, operator.fluid]
        np.testing.assert_allclose(x, [row[steps - 1] for row in expected], atol=1e-8)


def test_with_the_inverse_one_step_solves_the_system(plane, rng):
    b = right_hand_sides(plane, rng)

    def inverse(r):
        return -3.0 * tf.numpy_function(lambda r: solutions(plane, r), [r], tf.float64)

    solution = DeepConjugateDirection(inverse, plane, tolerance=1e-10).solve(b)
    np.testing.assert_array_equal(solution.steps, 1)
    assert solution.converged.all()
    np.testing.assert_allclose(solution.x, solutions(plane, b), rtol=1e-9, atol=1e-12)


def random_network(operator):
    """Nothing like an inverse, and not linear."""
    size = operator.fluid.size
    rng = np.random.default_rng(1)
    mix = tf.constant(rng.normal(size=(size, size)))
    return lambda r: tf.reshape(tf.tanh(tf.reshape(r, [-1, size]) @ mix), tf.shape(r))


def row_sums(fields):
    return fields.sum(tuple(range(1, fields.ndim)), keepdims=True)


def energy_errors(operator, errors):
    flat = errors[:, operator.fluid]
    return np.sqrt(np.sum(flat * (flat @ operator.matrix()), axis=1))


def test_any_network_lowers_the_energy_error_and_its_directions_are_conjugate(operator, rng):
    b = right_hand_sides(operator, rng)
    error = solutions(operator, b)
    solver = DeepConjugateDirection(
        random_network(operator), operator, memory=8, tolerance=0.0, max_steps=8,
        keep_directions=True,
    )  # fmt: skip
    solution = solver.solve(b)
    errors = [energy_errors(operator, error)]
    for direction in solution.directions:
        # The minimum of the error's energy along the direction.
        image = operator(direction).numpy()
        alpha = row_sums(image * error) / row_sums(image * direction)
        error = error - alpha * direction
        errors.append(energy_errors(operator, error))
    np.testing.assert_allclose(solution.x, solutions(operator, b) - error, atol=1e-10)
    assert (np.diff(errors, axis=0) < 0).all()
    flat = solution.directions[:, :, operator.fluid]
    products = np.einsum("ibn,nm,jbm->bij", flat, operator.matrix().toarray(), flat)
    lengths = np.sqrt(np.einsum("bii->bi", products))
    cosines = products / (lengths[:, :, None] * lengths[:, None])
    np.testing.assert_allclose(cosines, np.broadcast_to(np.eye(8), cosines.shape), atol=1e-8)


def test_residuals_and_steps_are_those_of_each_row(plane, rng):
    b = right_hand_sides(plane, rng)
    b[1] = 0
    start = solutions(plane, b)
    start[0] += right_hand_sides(plane, rng, 1)[0]
    solver = DeepConjugateDirection(tf.identity, plane, tolerance=1e-6, max_steps=200)
    solution = solver.solve(b, start)
    assert solution.steps[0] > 10
    np.testing.assert_array_equal(solution.steps[1:], 0)
    np.testing.assert_array_equal(solution.x[1:], start[1:])
    residual = (b - plane(solution.x))[0]
    expected = np.linalg.norm(residual) / np.linalg.norm(b[0])
    assert solution.residuals[-1, 0] == pytest.approx(expected)
    assert expected <= 1e-6 < solution.residuals[-2, 0]
    alone = solver.solve(b[:1], start[:1])
    np.testing.assert_allclose(alone.x, solution.x[:1], rtol=1e-12)


def test_unfinished_solutions_say_so(plane, rng):
    solver = DeepConjugateDirection(tf.identity, plane, max_steps=2)
    solution = solver.solve(right_hand_sides(plane, rng))
    assert not solution.converged.any()
    np.testing.assert_array_equal(solution.steps, 2)


def test_loss_by_its_formula_and_without_scale(plane, rng):
    b, output = right_hand_sides(plane, rng), rng.normal(size=(3, 12, 12))
    matrix = plane.matrix().toarray()
    expected = []
    for row, f in zip(b[:, plane.fluid], output[:, plane.fluid], strict=True):
        alpha = (f @ row) / (f @ matrix @ f)
        expected.append(np.sum((row - alpha * matrix @ f) ** 2))
    loss = ScaledResidualLoss(plane, reduction="none")
    np.testing.assert_allclose(loss.call(b, output), expected, rtol=1e-12)
    np.testing.assert_allclose(loss.call(b, -100 * output), expected, rtol=1e-12)
    np.testing.assert_allclose(loss.call(b, solutions(plane, b)), 0, atol=1e-20)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    np.testing.assert_allclose(again.call(b, output), expected, rtol=1e-12)


def test_network_is_homogeneous_and_takes_any_even_grid(rng):
    for dimensions, shape in ((2, (8, 6)), (3, (4, 6, 2))):
        model = DCDMNet(dimensions, filters=4, coarse_blocks=1, fine_blocks=1)
        r = rng.normal(size=(2, *shape)).astype("float32")
        outputs = model(r)
        assert outputs.shape == r.shape
        np.testing.assert_allclose(model(7 * r), 7 * outputs, rtol=1e-4, atol=1e-5)


def test_network_has_the_weights_of_the_papers_layers():
    # 3^3 kernels: the first from 1 to 16 channels, 4 + 6 + 6 from 16 to 16; then 16 to 1.
    model = DCDMNet(dimensions=3)
    assert model.count_params() == 27 * 16 + 16 * 27 * 256 + 16


def test_training_lowers_the_loss_and_the_number_of_steps():
    operator = PoissonOperator(np.zeros((12, 12), bool))
    b = ritz_right_hand_sides(operator, 128, num_vectors=40)
    model = DCDMNet(filters=8, coarse_blocks=1, fine_blocks=1)
    model.compile(keras.optimizers.Adam(3e-3), ScaledResidualLoss(operator))
    before = model.evaluate(b, b, batch_size=64, verbose=0)
    model.fit(b, b, batch_size=32, epochs=15, verbose=0)
    assert model.evaluate(b, b, batch_size=64, verbose=0) < 0.5 * before
    fresh = np.random.default_rng(7).normal(size=(4, 12, 12)).astype("float32")
    steps = [
        DeepConjugateDirection(f, operator, tolerance=1e-2).solve(fresh).steps.mean()
        for f in (model, tf.identity)
    ]
    assert steps[0] < steps[1]


def test_ritz_vectors_of_all_dimensions_are_the_eigenvectors(rng):
    half = rng.normal(size=(30, 30))
    matrix = half @ half.T
    vectors = ritz_vectors(matrix, 30, rng)
    expected = np.linalg.eigh(matrix)[1].T
    np.testing.assert_allclose(np.abs(np.sum(vectors * expected, 1)), 1, atol=1e-8)


def test_few_ritz_vectors_know_the_ends_of_the_spectrum(plane, rng):
    matrix = plane.matrix()
    vectors = ritz_vectors(matrix, 40, rng)
    values = np.sum(vectors * (vectors @ matrix), axis=1)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(40), atol=1e-10)
    assert (np.diff(values) > 0).all()
    extremes = [eigsh(matrix, 1, which=which)[0][0] for which in ("SA", "LA")]
    np.testing.assert_allclose(values[[0, -1]], extremes, rtol=1e-4)


def test_right_hand_sides_are_of_length_1_and_mostly_low(plane):
    b = ritz_right_hand_sides(plane, 20, num_vectors=40)
    np.testing.assert_allclose(np.linalg.norm(b[:, plane.fluid], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(b[:, plane.obstacles], 0)
    quotient = np.sum(b * plane(b), axis=(1, 2))
    even = ritz_right_hand_sides(plane, 20, num_vectors=40, emphasis=1.0)
    assert quotient.mean() < 0.7 * np.sum(even * plane(even), axis=(1, 2)).mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": 0}, "`memory` must be a positive integer"),
        ({"max_steps": 0}, "`max_steps` must be a positive integer"),
        ({"tolerance": -1.0}, "`tolerance` must be at least 0"),
    ],
)
def test_bad_arguments(plane, arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepConjugateDirection(tf.identity, plane, **arguments)


def test_bad_grids_and_right_hand_sides(plane):
    with pytest.raises(ValueError, match="`obstacles` must be a grid"):
        PoissonOperator(np.zeros(4, bool))
    shut = np.ones((5, 5), bool)
    shut[2, 2] = False
    with pytest.raises(ValueError, match="`obstacles` must not shut in any cell"):
        PoissonOperator(shut)
    with pytest.raises(ValueError, match="`obstacles` must leave at least one"):
        PoissonOperator(np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="`b` must be floating"):
        DeepConjugateDirection(tf.identity, plane).solve(np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="`dimensions` must be 2 or 3"):
        DCDMNet(dimensions=1)
    with pytest.raises(ValueError, match="`filters` must be a positive integer"):
        DCDMNet(filters=0)
