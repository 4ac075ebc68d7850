import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize, nnls

from kzoo.ops.aggregation import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    Constant,
    DualProj,
    GradDrop,
    Mean,
    NashMTL,
    PCGrad,
    RandomWeights,
    UPGrad,
    gramian,
)

pytestmark = pytest.mark.paper("Jacobian Descent for Multi-Objective Optimization")

ALL = [
    UPGrad(),
    DualProj(),
    MGDA(),
    PCGrad(seed=3),
    CAGrad(0.4),
    NashMTL(),
    IMTLG(),
    AlignedMTL(),
    GradDrop(seed=1),
    RandomWeights(seed=2),
    Constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    Mean(),
]
each = pytest.mark.parametrize("aggregator", ALL, ids=lambda a: type(a).__name__)

# Two gradients at an obtuse angle: G = [[18, -22], [-22, 38]].
CONFLICT = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])


def graph(aggregator, dtype=tf.float64):
    signature = [tf.TensorSpec([None, None], dtype)]
    function = tf.function(aggregator.__call__, input_signature=signature, autograph=False)
    return lambda jacobian: function(jacobian).numpy()


def projected(jacobian, vector):
    """The projection of a vector onto {x: J x >= 0}, by SciPy."""
    return vector + jacobian.T @ nnls(jacobian.T, -vector)[0]


@pytest.mark.parametrize(
    ("aggregator", "weights"),
    [
        # Either gradient loses its part along the other: 22/38 of g2, 22/18 of g1.
        (UPGrad(), [(1 + 22 / 18) / 2, (1 + 22 / 38) / 2]),
        (UPGrad([2.0, 1.0]), [2 + 22 / 18, 1 + 2 * 22 / 38]),
        (PCGrad(), [1 + 22 / 18, 1 + 22 / 38]),
        # The mean has -2 along g1: + 2/18 g1.
        (DualProj(), [0.5 + 2 / 18, 0.5]),
        # (g2 - g1) . g2 / ||g2 - g1||^2 = 60 / 100
        (MGDA(), [0.6, 0.4]),
        # e = c ||g0|| g1 / ||g1||, since g1 is the worse off for all of the ball.
        (CAGrad(0.5), [0.5 + 0.5 * np.sqrt(3 / 18), 0.5]),
        (NashMTL(), 1 / np.sqrt([18, 38]) / np.sqrt(1 - 22 / np.sqrt(18 * 38))),
        (IMTLG(), np.sqrt([38, 18]) / (np.sqrt(38) + np.sqrt(18))),
        (Constant([1.0, 2.0]), [1.0, 2.0]),
        (Constant(), [1.0, 1.0]),
        (Mean(), [0.5, 0.5]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_by_hand(aggregator, weights):
    np.testing.assert_allclose(aggregator.weights(gramian([CONFLICT])), weights, rtol=1e-10)
    np.testing.assert_allclose(aggregator(CONFLICT), CONFLICT.T @ np.array(weights), atol=1e-10)


def test_upgrad_of_the_paper():
    np.testing.assert_allclose(UPGrad()(CONFLICT), [0.2924, 1.9006, 1.9006], atol=1e-4)


@pytest.mark.parametrize("aggregator", [UPGrad(), DualProj(), MGDA()])
def test_no_conflict_with_any_objective(aggregator, rng):
    aggregate = graph(aggregator)
    for _ in range(200):
        jacobian = rng.normal(size=rng.integers(2, 8, 2))
        assert (jacobian @ aggregate(jacobian)).min() >= -1e-6


def test_upgrad_is_the_mean_of_the_projections(rng):
    aggregate, weighted = graph(UPGrad()), graph(UPGrad([3.0, 0.0, 1.0, 0.5]))
    for _ in range(50):
        jacobian = rng.normal(size=(4, rng.integers(2, 8)))
        rows = np.array([projected(jacobian, row) for row in jacobian])
        np.testing.assert_allclose(aggregate(jacobian), rows.mean(0), atol=1e-9)
        np.testing.assert_allclose(weighted(jacobian), [3, 0, 1, 0.5] @ rows, atol=1e-9)


def test_dual_proj_is_the_projection_of_the_mean(rng):
    aggregate, weighted = graph(DualProj()), graph(DualProj([3.0, 0.0, 1.0, 0.5]))
    for _ in range(50):
        jacobian = rng.normal(size=(4, rng.integers(2, 8)))
        np.testing.assert_allclose(
            aggregate(jacobian), projected(jacobian, jacobian.mean(0)), atol=1e-9
        )
        expected = projected(jacobian, [3, 0, 1, 0.5] @ jacobian)
        np.testing.assert_allclose(weighted(jacobian), expected, atol=1e-9)


@pytest.mark.parametrize("aggregator", [UPGrad(), DualProj()])
def test_the_mean_exactly_where_nothing_conflicts(aggregator, rng):
    jacobian = rng.uniform(size=(5, 7))
    np.testing.assert_array_equal(aggregator(jacobian), Mean()(jacobian))


def test_upgrad_is_linear_under_scaling_and_dual_proj_is_not(rng):
    gaps = {UPGrad: [], DualProj: []}
    for kind, found in gaps.items():
        aggregate = graph(kind())
        for _ in range(20):
            jacobian = rng.normal(size=(4, 6))
            c1, c2 = 10.0 ** rng.uniform(-3, 3, (2, 4, 1))
            both = aggregate((c1 + c2) * jacobian)
            found.append(np.linalg.norm(both - aggregate(c1 * jacobian) - aggregate(c2 * jacobian)))
            found[-1] /= np.linalg.norm(both)
    assert max(gaps[UPGrad]) < 1e-9
    assert max(gaps[DualProj]) > 1e-2


def test_mgda_is_the_point_of_least_norm(rng):
    signature = [tf.TensorSpec([None, None], tf.float64)]
    weigh = tf.function(MGDA().weights, input_signature=signature)
    for _ in range(100):
        jacobian = rng.normal(size=rng.integers(1, 9, 2)) * 10.0 ** rng.uniform(-2, 2)
        weights = weigh(jacobian @ jacobian.T).numpy()
        assert weights.min() >= 0
        assert abs(weights.sum() - 1) < 1e-12
        point = jacobian.T @ weights
        # Optimal if and only if no gradient is further down than the point itself.
        assert (jacobian @ point).min() >= point @ point - 1e-9 * (jacobian**2).sum()


def test_mgda_of_two_gradients_of_very_different_norm(rng):
    for norm in (1e-6, 1e-3, 1.0, 1e6):
        a, b = rng.normal(size=5), norm * rng.normal(size=5)
        share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
        expected = share * a + (1 - share) * b
        np.testing.assert_allclose(
            MGDA()(np.stack([a, b])), expected, atol=1e-9 * np.linalg.norm(expected)
        )


def test_cagrad_minimises_the_dual_of_the_paper(rng):
    for c in (0.2, 0.8):
        aggregate = graph(CAGrad(c))
        for _ in range(8):
            jacobian = rng.normal(size=(4, 6))
            mean = jacobian.mean(0)
            radius = c * np.linalg.norm(mean)

            def dual(w, jacobian=jacobian, mean=mean, radius=radius):
                combined = jacobian.T @ w
                return combined @ mean + radius * np.linalg.norm(combined)

            found = minimize(
                dual,
                np.full(4, 0.25),
                bounds=[(0, 1)] * 4,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 300},
            )
            update = aggregate(jacobian)
            assert np.linalg.norm(update - mean) <= radius * (1 + 1e-9)
            # Strong duality: the worst objective gains what the dual says, and no more.
            np.testing.assert_allclose((jacobian @ update).min(), found.fun, atol=1e-7)
            combined = jacobian.T @ found.x
            expected = mean + radius * combined / np.linalg.norm(combined)
            np.testing.assert_allclose(update, expected, atol=1e-3)


def test_cagrad_between_the_mean_and_mgda(rng):
    jacobian = rng.normal(size=(3, 6))
    np.testing.assert_array_equal(CAGrad(0.0)(jacobian), Mean()(jacobian))
    far, least = CAGrad(1e4)(jacobian).numpy(), MGDA()(jacobian).numpy()
    cosine = far @ least / np.linalg.norm(far) / np.linalg.norm(least)
    assert cosine > 1 - 1e-6


def test_cagrad_where_a_combination_vanishes():
    # g3 = -g1 - g2: the worst objective cannot gain, and d = 0.5 (g1 + g2 + g4) / 4 ... conflicts
    # with none only if d is orthogonal to g1 and g2; the nearest such to g0 is along g4.
    jacobian = np.array([[1.0, 0, 0], [0, 1, 0], [-1, -1, 0], [0.4, 0.4, 2.0]])
    np.testing.assert_allclose(CAGrad(0.9)(jacobian), [0, 0, 0.5], atol=1e-6)


def test_nash_mtl_solves_its_equation_whatever_the_scales(rng):
    for rows in (1, 2, 5, 12):
        jacobian = rng.normal(size=(rows, 15)) * 10.0 ** rng.uniform(-4, 4, (rows, 1))
        weights = NashMTL().weights(gramian([jacobian])).numpy()
        assert weights.min() > 0
        np.testing.assert_allclose(weights * (jacobian @ jacobian.T @ weights), 1, rtol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(NashMTL()(jacobian)), np.sqrt(rows), rtol=1e-9)
        np.testing.assert_allclose(
            NashMTL(max_norm=0.5)(jacobian), 0.5 * NashMTL()(jacobian) / np.sqrt(rows), rtol=1e-9
        )
    np.testing.assert_allclose(NashMTL(max_norm=9.0)(jacobian), NashMTL()(jacobian), rtol=1e-12)


def test_nash_mtl_leaves_out_zero_gradients_and_is_bounded_where_they_balance(rng):
    jacobian = rng.normal(size=(3, 5))
    with_zero = np.insert(jacobian, 1, 0, axis=0)
    np.testing.assert_allclose(NashMTL()(with_zero), NashMTL()(jacobian), rtol=1e-12)
    balanced = np.concatenate([jacobian, -jacobian.sum(0, keepdims=True)])
    assert np.linalg.norm(NashMTL()(balanced)) <= 2


def test_imtl_g_is_the_closed_form_of_its_paper(rng):
    jacobian = rng.normal(size=(4, 7)) * [[1.0], [5.0], [0.2], [1.0]]
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    d, u = jacobian[0] - jacobian[1:], units[0] - units[1:]
    rest = jacobian[0] @ u.T @ np.linalg.inv(d @ u.T)
    expected = np.array([1 - rest.sum(), *rest]) @ jacobian
    update = IMTLG()(jacobian).numpy()
    np.testing.assert_allclose(update, expected, rtol=1e-9)
    assert np.ptp(units @ update) < 1e-12


def test_imtl_g_of_dependent_gradients(rng):
    a, b = rng.normal(size=(2, 4))
    np.testing.assert_allclose(IMTLG()([a, b, a]), IMTLG()([a, b]), rtol=1e-9)
    np.testing.assert_array_equal(IMTLG()([a, -a]), np.zeros(4))


@pytest.mark.parametrize("columns", [9, 3])
def test_aligned_mtl_equals_the_singular_value_decomposition(rng, columns):
    jacobian = rng.normal(size=(4, columns))
    u, sigma, vt = np.linalg.svd(jacobian, full_matrices=False)
    aligned = sigma.min() * u @ vt
    np.testing.assert_allclose(AlignedMTL()(jacobian), aligned.mean(0), atol=1e-12)
    preference = np.array([1.0, 0.0, 2.0, 0.5])
    np.testing.assert_allclose(
        AlignedMTL(list(preference))(jacobian), preference @ aligned, atol=1e-12
    )


def surgery(jacobian, orders):
    total = 0
    for i, order in enumerate(orders):
        gradient = jacobian[i]
        for j in order:
            if gradient @ jacobian[j] < 0:
                gradient = (
                    gradient - gradient @ jacobian[j] / (jacobian[j] ** 2).sum() * jacobian[j]
                )
        total = total + gradient
    return total


def test_pcgrad_projects_in_an_order_that_changes():
    jacobian = np.array([[1.0, 0, 0], [-0.6, 1, 0], [-0.5, -0.7, 1]])
    orders = [itertools.permutations([j for j in range(3) if j != i]) for i in range(3)]
    possible = [surgery(jacobian, order) for order in itertools.product(*orders)]
    aggregate = tf.function(PCGrad(seed=1).__call__, autograph=False)
    drawn = np.array([aggregate(jacobian, tf.constant(step)) for step in range(80)])
    gaps = np.abs(drawn[:, np.newaxis] - possible).max(-1)
    assert gaps.min(1).max() < 1e-12
    assert set(gaps.argmin(1)) == set(range(8))


def test_graddrop_keeps_one_sign_with_its_purity():
    jacobian = np.array([[3.0, -1.0, 2.0, 0.0], [-1.0, -2.0, 1.0, 0.0]])
    aggregate = tf.function(GradDrop(seed=5).__call__, autograph=False)
    drawn = np.array([aggregate(jacobian, tf.constant(step)) for step in range(400)])
    assert set(drawn[:, 0]) == {3.0, -1.0}
    np.testing.assert_array_equal(drawn[:, 1:], np.tile([-3.0, 3.0, 0.0], [400, 1]))
    # P = (1 + 2 / 4) / 2; five standard deviations of the share are 0.11.
    assert abs((drawn[:, 0] > 0).mean() - 0.75) < 0.11


def test_graddrop_leaks(rng):
    jacobian = rng.normal(size=(2, 50))
    np.testing.assert_allclose(GradDrop([1.0, 1.0])(jacobian), jacobian.sum(0), rtol=1e-12)
    part, none = GradDrop([0.3, 0.0])(jacobian), GradDrop()(jacobian)
    kept_first = none.numpy() - np.where(np.sign(jacobian[1]) == np.sign(none), jacobian[1], 0)
    expected = none + 0.3 * (jacobian[0] - kept_first)
    np.testing.assert_allclose(part, expected, atol=1e-12)


def test_random_weights_are_softmax_of_normal_numbers():
    draw = tf.function(RandomWeights(4).weights, autograph=False)
    weights = np.array([draw(tf.eye(3), tf.constant(step)) for step in range(600)])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    # The differences of log w are those of z: normal with mean 0 and variance 2.
    differences = np.log(weights[:, 0] / weights[:, 1])
    assert abs(differences.mean()) < 5 * np.sqrt(2 / 600)
    assert abs(differences.var() - 2) < 5 * 2 * np.sqrt(2 / 600)


@each
def test_eager_graph_and_xla_agree(aggregator, rng):
    jacobian = tf.constant(rng.normal(size=(6, 4)))  # dependent rows
    eager = aggregator(jacobian, step=3)
    for jit_compile in (False, True):
        compiled = tf.function(aggregator.__call__, jit_compile=jit_compile, autograph=False)
        np.testing.assert_allclose(compiled(jacobian, step=3), eager, rtol=1e-7, atol=1e-9)


@each
def test_configuration_round_trip(aggregator, rng):
    config = keras.saving.serialize_keras_object(aggregator)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(aggregator)
    jacobian = rng.normal(size=(6, 8))
    for step in (0, 7):
        np.testing.assert_array_equal(again(jacobian, step), aggregator(jacobian, step))


@each
def test_a_list_of_pieces_is_the_matrix(aggregator, rng):
    pieces = [rng.normal(size=(6, 2, 3)).astype("float32"), rng.normal(size=(6, 4))]
    updates = aggregator.aggregate(pieces)
    assert [update.shape for update in updates] == [(2, 3), (4,)]
    assert [update.dtype for update in updates] == ["float32", "float64"]
    if not isinstance(aggregator, GradDrop):  # whose random numbers go by piece
        whole = np.concatenate([pieces[0].reshape(6, 6), pieces[1]], axis=1)
        flat = np.concatenate([np.ravel(update) for update in updates])
        np.testing.assert_allclose(flat, aggregator(whole), rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("case", ["zero", "tiny", "huge", "equal", "balanced", "one zero row"])
def test_edges_are_finite(aggregator, case, rng):
    jacobian = rng.normal(size=(6, 8)).astype("float32")
    match case:
        case "zero":
            jacobian *= 0
        case "tiny" | "huge":
            jacobian *= np.float32({"tiny": 1e-30, "huge": 1e30}[case])
        case "equal":
            jacobian[:] = jacobian[0]
        case "balanced":
            jacobian[3:] = -jacobian[:3]
        case "one zero row":
            jacobian[2] = 0
    update = aggregator(jacobian).numpy()
    assert update.dtype == "float32"
    assert np.isfinite(update).all()
    if case == "zero":
        np.testing.assert_array_equal(update, 0)
    if case == "equal" and type(aggregator) in (UPGrad, DualProj, MGDA, IMTLG, Mean):
        np.testing.assert_allclose(update, jacobian[0], rtol=1e-5)
    if case == "balanced" and type(aggregator) in (UPGrad, DualProj, MGDA, CAGrad, Mean):
        np.testing.assert_allclose(update, 0, atol=1e-6)


@each
def test_no_rows_no_update(aggregator):
    if isinstance(aggregator, Constant):
        aggregator = Constant(1.0)
    np.testing.assert_array_equal(aggregator(np.zeros([0, 4])), np.zeros(4))


@each
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(aggregator, dtype, rng):
    jacobian = tf.cast(rng.normal(size=(6, 8)), dtype)
    if isinstance(aggregator, GradDrop):
        pytest.skip("a random number may fall between the two purities")
    wide = aggregator(tf.cast(jacobian, "float32"))
    update = aggregator(jacobian)
    assert update.dtype == dtype
    np.testing.assert_allclose(tf.cast(update, "float32"), wide, rtol=1e-2, atol=1e-2)


def test_no_gradient_goes_through(rng):
    jacobian = tf.constant(rng.normal(size=(3, 4)))
    with tf.GradientTape() as tape:
        tape.watch(jacobian)
        update = UPGrad()(jacobian)
    assert tape.gradient(update, jacobian) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UPGrad([1.0, -1.0]),
            "`preference` must be a list of finite numbers of at least 0",
        ),
        (lambda: DualProj("mean"), "`preference` must be a list of finite numbers"),
        (
            lambda: UPGrad([0.5, 0.5])(np.eye(3)),
            "`preference` must have one entry for each of the 3",
        ),
        (lambda: Constant([1.0])(np.eye(3)), "`values` must have one entry for each of the 3"),
        (lambda: Constant(None), "`values` must be a number or a list of numbers"),
        (lambda: CAGrad(-0.1), "`c` must be a number of at least 0. Received: -0.1"),
        (lambda: NashMTL(max_norm=0), "`max_norm` must be a positive number or None. Received: 0"),
        (lambda: GradDrop([0.5, 1.5]), "`leak` must be in \\[0, 1\\]"),
        (lambda: PCGrad(seed=-1), "`seed` must be an integer in"),
        (lambda: Mean()([3.0]), "`jacobian` must be \\[m, n\\]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
