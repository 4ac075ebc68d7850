import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.svm import SVC

from kzoo.solvers.large_step_logistic import (
    batch_perceptron,
    logistic_gradient_descent,
    separation_bounds,
    separation_margin,
)

pytestmark = pytest.mark.paper(
    "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large "
    "Step Sizes"
)


@pytest.fixture
def separable(rng):
    features = 0.5 + rng.normal(size=(300, 12)) * np.exp(rng.normal(size=12))
    normal = rng.normal(size=12)
    scores = features @ normal / np.linalg.norm(normal)
    kept = np.abs(scores) > 0.1
    return features[kept], np.where(scores[kept] > 0, 1, -1)


def worst_case(size):
    """The data set of theorem 5.1: one example against all others."""
    features = np.tile([-0.5, -1.0], (size, 1))
    features[0] = [0.5, -1.0]
    return features, np.r_[1, -np.ones(size - 1)]


def test_two_steps_by_hand():
    # Theorem 4.1: theta_1 = gamma (1/2, 3/4), theta_2 / gamma -> (1, 1/4).
    run = logistic_gradient_descent(
        [[1.0, -1.0], [-1.0, -4.0]], [1, -1], step=1e6, keep_iterates=True
    )
    np.testing.assert_allclose(run.iterates / 1e6, [[0, 0], [0.5, 0.75], [1, 0.25]], atol=1e-12)
    assert run.separated_at == 2
    np.testing.assert_allclose(run.accuracies, [0, 0.5, 1])
    np.testing.assert_allclose(run.losses, [np.log(2), 1e6 / 8, 0], atol=1e-12)
    np.testing.assert_allclose(run.gradient_norms[1:], [np.sqrt(2) / 2, 0], atol=1e-12)


def test_one_step_follows_the_gradient(separable, rng):
    features, labels = separable
    start = 0.3 * rng.normal(size=12)

    def loss(theta):
        return np.mean(np.log1p(np.exp(-labels * (features @ theta))))

    options = {"max_steps": 1, "start": start}
    gradient = approx_fprime(start, loss, 1e-7)
    plain = logistic_gradient_descent(features, labels, 0.5, **options)
    np.testing.assert_allclose(plain.theta, start - 0.5 * gradient, atol=1e-6)
    assert plain.losses[0] == pytest.approx(loss(start), rel=1e-12)
    assert plain.gradient_norms[0] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    beta = 1 / np.mean(1 / (1 + np.exp(labels * (features @ start))))
    scaled = logistic_gradient_descent(features, labels, 0.5, normalized=True, **options)
    np.testing.assert_allclose(scaled.theta, start - 0.5 * beta * gradient, atol=1e-6)


def test_huge_steps_are_the_batch_perceptron(separable, rng):
    features, labels = worst_case(200)
    # Of the paper's data set without noise, some examples come to lie on the plane.
    long = (features + 0.01 * rng.normal(size=features.shape), labels)
    for data, at_least in ((separable, 5), (long, 50)):
        limit = batch_perceptron(*data, keep_iterates=True)
        run = logistic_gradient_descent(*data, 1e8, keep_iterates=True)
        assert at_least <= limit.separated_at == run.separated_at
        np.testing.assert_allclose(run.iterates / 1e8, limit.iterates, atol=1e-6)
        assert np.isfinite(run.losses).all()
        assert run.losses.max() > 1e5


def test_huge_normalized_steps_are_the_normalized_batch_perceptron(separable):
    features, labels = separable
    limit = batch_perceptron(features, labels, normalized=True, keep_iterates=True)
    run = logistic_gradient_descent(features, labels, 1e8, normalized=True, keep_iterates=True)
    assert limit.separated_at == run.separated_at
    np.testing.assert_allclose(run.iterates / 1e8, limit.iterates, atol=1e-6)


def test_steps_of_table_1():
    features, labels = worst_case(1000)
    steps = [
        logistic_gradient_descent(features, labels, step, normalized).separated_at
        for step, normalized in (
            (100.0, True),
            (10.0, True),
            (1.0, True),
            (0.1, True),
            (100.0, False),
        )
    ]
    assert steps == [2, 2, 16, 157, 308]


def test_larger_steps_are_faster_with_larger_losses(separable):
    features, labels = separable
    runs = [logistic_gradient_descent(features, labels, step) for step in (0.1, 1.0, 10.0, 100.0)]
    assert (np.diff([run.separated_at for run in runs]) < 0).all()
    peaks = [run.losses.max() for run in runs]
    np.testing.assert_allclose(peaks[:2], np.log(2), rtol=1e-14)
    assert peaks[1] < peaks[2] < peaks[3]


def test_margin_equals_that_of_a_support_vector_machine(separable):
    features, labels = separable
    margin, theta = separation_margin(features, labels)
    # A support vector machine through the origin sees every example and its mirror image.
    machine = SVC(kernel="linear", C=1e8, tol=1e-8)
    machine.fit(np.vstack([features, -features]), np.r_[labels, -labels])
    assert margin == pytest.approx(1 / np.linalg.norm(machine.coef_), rel=1e-4)
    assert np.linalg.norm(theta) == pytest.approx(1.0)
    assert np.min(labels * (features @ theta)) == pytest.approx(margin)


@pytest.mark.parametrize("size", [10, 100])
def test_bounds_hold_on_the_worst_case(size):
    features, labels = worst_case(size)
    bounds = separation_bounds(features, labels, step=2.0)
    # y a is (.5, -1) or (.5, 1): theta = (1, 0) has the margin 1/2, and R^2 is 5/4.
    assert bounds["normalized_batch_perceptron"] == pytest.approx(5.0)
    assert bounds["batch_perceptron"] == pytest.approx(5.0 * size)
    assert bounds["normalized_lr_gd"] == pytest.approx(5.0 + 4 * np.log(2 * size - 1))
    plain = batch_perceptron(features, labels).separated_at
    assert size / 10 < plain <= bounds["batch_perceptron"]
    assert batch_perceptron(features, labels, normalized=True).separated_at <= 5
    run = logistic_gradient_descent(features, labels, 2.0, normalized=True)
    assert run.separated_at <= bounds["normalized_lr_gd"]


def test_normalized_steps_go_on_where_probabilities_underflow():
    run = logistic_gradient_descent(
        [[1.0, 0.0], [0.0, 1.0]], [1, 1], 1e3, True, max_steps=5, stop_when_separated=False
    )
    assert run.separated_at == 1
    assert np.isfinite(run.theta).all()
    np.testing.assert_allclose(run.theta, [2500.0, 2500.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "`labels` must be -1 or 1"),
        ({"labels": [1]}, r"`features` must be \[n, d\]"),
        ({"step": 0.0}, "`step` must be above 0"),
        ({"start": [0.0]}, "`start` must be"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"features": np.eye(2), "labels": [1, -1], "step": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        logistic_gradient_descent(**arguments)


def test_data_that_cannot_be_separated_has_no_margin():
    with pytest.raises(ValueError, match="`features` must be separable"):
        separation_margin([[1.0], [1.0]], [1, -1])
