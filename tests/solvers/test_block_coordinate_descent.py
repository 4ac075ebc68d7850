import networkx
import numpy as np
import pytest
from scipy.optimize import check_grad, lsq_linear, minimize
from sklearn.linear_model import Lasso

from kzoo.solvers.active_set import identification_radius
from kzoo.solvers.block_coordinate_descent import BlockCoordinateDescent
from kzoo.solvers.forests import (
    coloring_partition,
    forest_partition,
    greedy_forest,
    solve_forest,
)
from kzoo.solvers.greedy_rules import (
    FixedBlocks,
    VariableBlocks,
    separable_decrease,
    sorted_blocks,
)
from kzoo.solvers.penalties import L1, Bounds, NoPenalty, minimize_model, violation
from kzoo.solvers.problems import (
    LeastSquares,
    LogisticRegression,
    Quadratic,
    SoftmaxRegression,
    label_propagation,
)

pytestmark = pytest.mark.paper(
    "Let's Make Block Coordinate Descent Converge Faster: Faster Greedy Rules, Message-Passing, "
    "Active-Set Complexity, and Superlinear Convergence"
)


def scaled_features(rng, rows=60, columns=30):
    """Columns of very unlike lengths, so that the Lipschitz constants differ."""
    return rng.normal(size=(rows, columns)) * np.exp(rng.normal(size=columns))


def problems(rng):
    features = scaled_features(rng, 20, 6)
    half = rng.normal(size=(6, 6))
    return {
        "quadratic": Quadratic(half @ half.T + np.eye(6), rng.normal(size=6)),
        "least squares": LeastSquares(features, rng.normal(size=20), 0.3),
        "logistic": LogisticRegression(features, rng.choice([-1, 1], 20), 0.3),
        "softmax": SoftmaxRegression(features[:, :2], rng.integers(0, 3, 20), 3, 0.3),
    }


@pytest.mark.parametrize("name", ["quadratic", "least squares", "logistic", "softmax"])
def test_derivatives_and_bounds_of_the_problems(name, rng):
    problem = problems(rng)[name]
    x, block = rng.normal(size=problem.size) * 0.3, np.array([1, 2, 5])
    assert check_grad(problem.value, problem.gradient, x) < 1e-4

    def along(step):
        moved = x.copy()
        moved[block] += step
        return problem.gradient(moved)[block]

    steps = 1e-5 * np.eye(3)
    numeric = np.stack([(along(s) - along(-s)) / 2e-5 for s in steps])
    hessian = problem.hessian(x, block)
    np.testing.assert_allclose(hessian, numeric, rtol=1e-5, atol=1e-6)
    bound = problem.bound(block)
    assert np.linalg.eigvalsh(bound - hessian)[0] > -1e-9
    assert (np.diag(hessian) <= problem.lipschitz[block] + 1e-9).all()


def test_scores_of_the_rules_equal_their_formulas(rng):
    problem = problems(rng)["quadratic"]
    blocks = [np.array([0, 3]), np.array([1, 2, 4]), np.array([5])]
    x = rng.normal(size=6)
    g, matrix = problem.gradient(x), problem.matrix
    norms = np.array([g[b] @ g[b] for b in blocks])
    top = np.array([np.linalg.eigvalsh(matrix[np.ix_(b, b)])[-1] for b in blocks])
    expected = {
        "gs": norms / (2 * np.diag(matrix).max()),
        "gsl": norms / (2 * top),
        "gsd": [np.sum(g[b] ** 2 / np.diag(matrix)[b]) / 2 for b in blocks],
        "gsq": [g[b] @ np.linalg.inv(matrix[np.ix_(b, b)]) @ g[b] / 2 for b in blocks],
    }
    for rule, scores in expected.items():
        rules = FixedBlocks(problem, NoPenalty(), blocks, rule, rng)
        np.testing.assert_allclose(rules.decreases(x, g), scores, rtol=1e-10)
        np.testing.assert_array_equal(rules.choose(x, g, 0), blocks[np.argmax(scores)])


def test_variable_blocks_take_the_best_variables():
    problem = Quadratic(np.diag([1.0, 100.0, 4.0, 1.0]), np.array([-1.0, -5.0, -3.0, 0.5]))
    x, g = np.zeros(4), np.array([1.0, 5.0, 3.0, -0.5])
    # |g|: 1, 5, 3, .5;  g^2 / L: 1, .25, 2.25, .25
    for rule, expected in {"gs": [1, 2], "gsl": [0, 2], "gsd": [0, 2], "gsq": [0, 2]}.items():
        rules = VariableBlocks(problem, NoPenalty(), 2, rule, None)
        np.testing.assert_array_equal(rules.choose(x, g, 0), expected)


def test_rules_with_bounds_count_what_the_bounds_allow():
    problem = Quadratic(np.eye(2), np.array([-5.0, 1.0]))
    # x_0 is at its bound and pushed against it, so that only x_1 can make progress: 1/2.
    rules = VariableBlocks(problem, Bounds(), 1, "gsd", None)
    np.testing.assert_allclose(rules.scores(np.zeros(2), np.array([5.0, -1.0])), [0.0, 0.5])


def test_lipschitz_rule_makes_the_progress_it_promises_and_more_than_gauss_southwell(rng):
    features = scaled_features(rng)
    problem = LeastSquares(features, rng.normal(size=60))
    lipschitz = (features**2).sum(0)
    result = BlockCoordinateDescent("gsl", "newton", block_size=1, max_iterations=30).minimize(
        problem
    )
    x = np.zeros(30)
    for before, after in zip(result.values, result.values[1:], strict=False):
        g = features.T @ (features @ x - problem.targets)
        greatest, southwell = np.argmax(g**2 / lipschitz), np.argmax(np.abs(g))
        promised = g**2 / (2 * lipschitz)
        np.testing.assert_allclose(before - after, promised[greatest], rtol=1e-8, atol=1e-10)
        assert before - after >= promised[southwell] - 1e-9
        x[greatest] -= g[greatest] / lipschitz[greatest]


@pytest.mark.parametrize("blocks", ["variable", "sorted"])
@pytest.mark.parametrize("update", ["gradient", "matrix", "newton"])
@pytest.mark.parametrize("rule", ["gs", "gsl", "gsd", "gsq", "random", "cyclic", "lipschitz"])
def test_every_combination_falls_to_the_minimum_of_scipy(blocks, update, rule, rng):
    labels = np.sign(rng.normal(size=40))
    problem = LogisticRegression(rng.normal(size=(40, 12)), labels, l2=1.0)
    expected = minimize(problem.value, np.zeros(12), jac=problem.gradient, tol=1e-12).fun
    solver = BlockCoordinateDescent(rule, update, blocks, 4, tolerance=1e-6)
    result = solver.minimize(problem)
    assert result.converged
    assert result.values[-1] == pytest.approx(expected, abs=1e-9)
    assert (np.diff(result.values) <= 1e-12 * result.values[0]).all()


def test_greedy_newton_is_faster_than_greedy_gradient_than_random(rng):
    features = scaled_features(rng, 200, 100)
    problem = LogisticRegression(features, np.sign(features @ rng.normal(size=100)), l2=1.0)
    values = [
        BlockCoordinateDescent(rule, update, max_iterations=60).minimize(problem).values[-1]
        for rule, update in (("gsd", "newton"), ("gsd", "gradient"), ("random", "gradient"))
    ]
    optimum = BlockCoordinateDescent(block_size=100).minimize(problem).values[-1]
    gaps = np.array(values) - optimum
    assert 100 * gaps[0] < gaps[1] < gaps[2]


@pytest.fixture
def lasso(rng):
    features = scaled_features(rng, 80, 50)
    truth = np.where(rng.random(50) < 0.1, rng.normal(size=50), 0.0)
    targets = features @ truth + 0.1 * rng.normal(size=80)
    model = Lasso(alpha=0.05, fit_intercept=False, tol=1e-14, max_iter=100000)
    return LeastSquares(features, targets), L1(80 * 0.05), model.fit(features, targets).coef_


@pytest.mark.parametrize("penalty", [NoPenalty(), L1(0.7), Bounds(-0.5, 0.8)])
def test_decrease_of_the_separable_bound_equals_its_definition(penalty, rng):
    x = penalty.prox(rng.normal(size=200) * (rng.random(200) < 0.7), 0.0)
    gradient, curvature = rng.normal(size=200), rng.random(200) + 0.2
    z = penalty.prox(x - gradient / curvature, 1 / curvature)
    model = gradient * (z - x) + curvature * (z - x) ** 2 / 2 + penalty.each(z) - penalty.each(x)
    np.testing.assert_allclose(
        separable_decrease(x, gradient, curvature, penalty), -model, atol=1e-12
    )


def test_second_order_blocks_end_on_the_lasso_after_finitely_many_steps(lasso):
    problem, penalty, expected = lasso
    solver = BlockCoordinateDescent("gsd", "newton", block_size=20, penalty=penalty, tolerance=0.0)
    result = solver.minimize(problem)
    exact = solver.__class__(block_size=20, penalty=penalty, tolerance=1e-11).minimize(problem)
    assert np.count_nonzero(expected) <= 20
    np.testing.assert_allclose(exact.x, expected, atol=1e-7)
    np.testing.assert_array_equal(exact.active, expected == 0)
    assert exact.converged
    assert exact.iterations < 40
    assert exact.identified_at < exact.iterations
    # Nothing is gained after it has ended, down to rounding.
    assert result.violations[exact.iterations :].min() < 1e-12


@pytest.mark.parametrize("update", ["gradient", "newton"])
def test_lasso_support_is_found_before_the_solution(lasso, update):
    problem, penalty, expected = lasso
    solver = BlockCoordinateDescent("gsd", update, "sorted", 5, penalty, 1e-8, 20000)
    result = solver.minimize(problem)
    assert result.converged
    np.testing.assert_allclose(result.x, expected, atol=1e-7)
    assert result.identified_at < result.iterations


def test_bounds_equal_scipys_active_set_method(rng):
    features, targets = scaled_features(rng), rng.normal(size=60)
    expected = lsq_linear(features, targets, (-0.02, 0.03), "bvls").x
    penalty = Bounds(-0.02, 0.03)
    problem = LeastSquares(features, targets)
    result = BlockCoordinateDescent(penalty=penalty, block_size=10, tolerance=1e-11).minimize(
        problem
    )
    np.testing.assert_allclose(result.x, expected, atol=1e-10)
    np.testing.assert_array_equal(result.active, np.abs(expected - 0.005) > 0.025 - 1e-12)
    assert 0 < result.active.sum() < 30


def test_model_of_a_block_is_minimized_exactly(rng):
    half = rng.normal(size=(8, 8))
    hessian, gradient, x = half @ half.T, 3 * rng.normal(size=8), rng.normal(size=8)
    for penalty in (L1(1.5), L1(np.arange(8.0)), Bounds(-0.2, 0.5), NoPenalty()):
        z = minimize_model(hessian, gradient, penalty.prox(x, 0.0), penalty)
        slope = gradient + hessian @ (z - penalty.prox(x, 0.0))
        assert violation(z, slope, penalty) < 1e-9


def test_a_step_from_within_the_radius_finds_the_active_set(lasso, rng):
    problem, penalty, solution = lasso
    radius = identification_radius(problem, penalty, solution)
    largest = np.linalg.eigvalsh(problem.features.T @ problem.features)[-1]
    slack = penalty.strength - np.abs(problem.gradient(solution))[solution == 0]
    assert radius == pytest.approx(slack.min() / (2 * largest), rel=1e-6)
    for _ in range(20):
        x = solution + radius * (d := rng.normal(size=50)) / np.linalg.norm(d)
        moved = penalty.prox(x - problem.gradient(x) / largest, 1 / largest)
        assert (moved[solution == 0] == 0).all()


def random_tree(size, seed=0):
    """A positive definite matrix on a random tree."""
    rng = np.random.default_rng(seed)
    tree = networkx.random_labeled_tree(size, seed=seed)
    matrix = np.zeros((size, size))
    for i, j in tree.edges:
        matrix[i, j] = matrix[j, i] = rng.normal()
    return matrix + np.diag(np.abs(matrix).sum(0) + rng.random(size) + 0.1)


def test_message_passing_equals_a_dense_solve():
    matrix = random_tree(1000)
    rhs = np.random.default_rng(1).normal(size=1000)
    np.testing.assert_allclose(solve_forest(matrix, rhs), np.linalg.solve(matrix, rhs), rtol=1e-8)


def test_message_passing_solves_forests_and_single_nodes():
    matrix = np.zeros((9, 9))
    matrix[:4, :4], matrix[4:8, 4:8], matrix[8, 8] = random_tree(4), random_tree(4, 1), 2.0
    np.testing.assert_allclose(
        solve_forest(matrix, np.arange(9.0)), np.linalg.solve(matrix, np.arange(9.0)), rtol=1e-10
    )


def test_message_passing_refuses_cycles_and_indefinite_matrices():
    cycle = 3 * np.eye(3) + np.ones((3, 3))
    with pytest.raises(ValueError, match="`matrix` must be a forest"):
        solve_forest(cycle, np.ones(3))
    with pytest.raises(ValueError, match="`matrix` must be positive definite"):
        solve_forest([[1.0, 2.0], [2.0, 1.0]], np.ones(2))
    with pytest.raises(ValueError, match="`vector` must be"):
        solve_forest(np.eye(3), np.ones(2))


@pytest.fixture(scope="module")
def lattice():
    return networkx.to_scipy_sparse_array(networkx.grid_2d_graph(8, 8), dtype=float)


def as_graph(matrix, block):
    return networkx.from_scipy_sparse_array(matrix[block][:, block])


def test_partitions_of_a_lattice(lattice):
    red_black = coloring_partition(lattice)
    assert len(red_black) == 2
    assert all(as_graph(lattice, block).number_of_edges() == 0 for block in red_black)
    forests = forest_partition(lattice)
    assert len(forests) == 2
    assert all(networkx.is_forest(as_graph(lattice, block)) for block in forests)
    assert sorted(np.concatenate(forests)) == list(range(64))


def test_greedy_forest_is_maximal_and_takes_the_first(lattice, rng):
    order = rng.permutation(64)
    block = greedy_forest(lattice, order)
    assert set(order[:2]) <= set(block)
    for node in np.setdiff1d(np.arange(64), block):
        assert not networkx.is_forest(as_graph(lattice, np.append(block, node)))


@pytest.fixture
def labelled(lattice, rng):
    labels = np.full(64, np.nan)
    labels[rng.choice(64, 8, replace=False)] = rng.choice([-1.0, 1.0], 8)
    return labels


def harmonic(lattice, labels):
    known = ~np.isnan(labels)
    weights = lattice.toarray()
    laplacian = np.diag(weights.sum(1)) - weights
    right = weights[np.ix_(~known, known)] @ labels[known]
    return np.linalg.solve(laplacian[np.ix_(~known, ~known)], right)


@pytest.mark.parametrize("rule", ["gs", "gsd", "random"])
def test_label_propagation_by_greedy_forests_is_the_harmonic_solution(lattice, labelled, rule):
    problem, unknown = label_propagation(lattice, labelled)
    solver = BlockCoordinateDescent(rule, "message_passing", "forest", tolerance=1e-10)
    result = solver.minimize(problem)
    np.testing.assert_array_equal(unknown, np.flatnonzero(np.isnan(labelled)))
    np.testing.assert_allclose(result.x, harmonic(lattice, labelled), atol=1e-8)


def test_label_propagation_in_fewer_steps_by_forests_than_by_colours(lattice, labelled):
    problem, _ = label_propagation(lattice, labelled)
    steps = [
        BlockCoordinateDescent("cyclic", "message_passing", partition, tolerance=1e-8)
        .minimize(problem)
        .iterations
        for partition in (forest_partition(problem.matrix), coloring_partition(problem.matrix))
    ]
    assert steps[0] < steps[1] < 1000


def test_sorted_blocks_hold_like_constants():
    blocks = sorted_blocks(np.array([5.0, 1.0, 3.0, 2.0, 4.0]), 2)
    assert [list(block) for block in blocks] == [[1, 3], [2, 4], [0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "best"}, "`rule` must be one of"),
        ({"update": "adam"}, "`update` must be one of"),
        ({"blocks": "some"}, "`blocks` must be one of"),
        ({"block_size": 0}, "`block_size` must be a positive integer"),
        ({"tolerance": -1.0}, "`tolerance` must be at least 0"),
        ({"update": "message_passing", "penalty": L1(1.0)}, "takes no `penalty`"),
        ({"blocks": "forest", "rule": "gsq"}, "needs the `rule`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockCoordinateDescent(**arguments)


def test_bad_problems():
    with pytest.raises(ValueError, match="`matrix` must be symmetric"):
        Quadratic([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0])
    with pytest.raises(ValueError, match="`labels` must be -1 or 1"):
        LogisticRegression(np.ones((2, 1)), [0, 1])
    with pytest.raises(ValueError, match="`labels` must be in"):
        SoftmaxRegression(np.ones((2, 1)), [0, 3], 3)
    with pytest.raises(ValueError, match="`labels` must have both"):
        label_propagation(np.eye(2), [1.0, 1.0])
    with pytest.raises(ValueError, match="`start` must be"):
        BlockCoordinateDescent().minimize(Quadratic(np.eye(2), np.ones(2)), np.ones(3))
    solver = BlockCoordinateDescent(blocks=[np.array([0])])
    with pytest.raises(ValueError, match="`blocks` must hold each"):
        solver.minimize(Quadratic(np.eye(2), np.ones(2)))
    with pytest.raises(ValueError, match="`strength` must be"):
        L1(-1.0)
    with pytest.raises(ValueError, match="`lower` must be below"):
        Bounds(1.0, 1.0)
