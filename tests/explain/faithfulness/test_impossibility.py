import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from kzoo.explain import IntegratedGradients, Saliency
from kzoo.explain.faithfulness.impossibility import (
    END_TASKS,
    LINEAR_TASK,
    RADIUS,
    best_test,
    equal_attribution_pairs,
    impossibility_benchmark,
    model_query_test,
    piecewise_linear_model,
    sensitivity_specificity,
)

pytestmark = pytest.mark.paper("Impossibility Theorems for Feature Attribution")

LOCAL, RECOURSE, SPURIOUS = END_TASKS


def integrated_gradients(model, x, y):
    return IntegratedGradients(model, steps=20, rule="middle")(x, y)["attributions"]


def signed_gradient(model, x, y):
    return Saliency(model, absolute=False)(x, y)["attributions"]


def shapley(model, x):
    """Exact Shapley values with baseline 0 of every output, by all subsets: [outputs, features]."""
    features = len(x)
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=features)))
    values = model(masks * x).numpy()
    index = {tuple(mask): row for row, mask in enumerate(masks)}
    result = np.zeros([values.shape[1], features])
    for mask in masks:
        size = int(mask.sum())
        for j in np.flatnonzero(mask == 0):
            weight = math.factorial(size) * math.factorial(features - size - 1)
            joined = mask.copy()
            joined[j] = 1
            gain = values[index[tuple(joined)]] - values[index[tuple(mask)]]
            result[:, j] += weight / math.factorial(features) * gain
    return result


def test_the_network_is_the_piecewise_linear_function(rng):
    knots = np.array([-1.0, 0.5, 1.0, 3.0])
    values = rng.normal(size=(2, 3, 4))
    model = piecewise_linear_model(knots, values)
    x = rng.uniform(-1, 3, (50, 3))
    expected = [
        [sum(np.interp(row[j], knots, values[o, j]) for j in range(3)) for o in range(2)]
        for row in x
    ]
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    # Beyond the first and the last knot it goes on straight.
    ends = model(np.array([[-2.0, 0, 0], [-1, 0, 0], [0.5, 0, 0]])).numpy()
    slope = (values[:, 0, 1] - values[:, 0, 0]) / 1.5
    np.testing.assert_allclose(ends[1] - ends[0], slope, atol=1e-5)


@pytest.mark.parametrize("task", END_TASKS, ids=lambda task: task.name)
def test_pairs_have_equal_attributions_and_opposite_behaviour(task):
    model, alternative = equal_attribution_pairs(task, num_pairs=3, num_features=6, seed=4)
    x = np.ones([6, 6], "float32")
    attributions = integrated_gradients(model, x, np.arange(6)).numpy()
    values = shapley(model, x[0])
    np.testing.assert_allclose(attributions[::2], attributions[1::2], atol=1e-5)
    np.testing.assert_allclose(values[::2], values[1::2], atol=1e-5)
    np.testing.assert_allclose(attributions, values, atol=2e-5)
    gain = np.diagonal(model(x).numpy()) - model(0 * x).numpy()[0]
    np.testing.assert_allclose(attributions.sum(axis=1), gain, atol=2e-5)
    if task is LOCAL:
        slopes = signed_gradient(model, x, np.arange(6)).numpy()[:, 0]
        np.testing.assert_array_equal(slopes > 0, alternative)


def test_behaviour_of_recourse_and_spurious_pairs():
    model, alternative = equal_attribution_pairs(RECOURSE, 20)
    above = np.ones([2, 4], "float32")
    above[1, 0] += RADIUS
    here, there = model(above).numpy()
    np.testing.assert_array_equal(there > here, alternative)

    model, alternative = equal_attribution_pairs(SPURIOUS, 20)
    around = np.ones([201, 4], "float32")
    around[:, 0] += RADIUS * np.linspace(-1, 1, 201)
    spread = np.ptp(model(around).numpy(), axis=0)
    np.testing.assert_array_equal(spread > 0.01, alternative)


def test_sensitivity_and_specificity_by_counting(rng):
    statistic, alternative = rng.normal(size=40), rng.random(40) < 0.4
    sensitivity, specificity = sensitivity_specificity(statistic, alternative)
    thresholds = [np.inf, *np.sort(statistic)[::-1]]
    np.testing.assert_allclose(
        sensitivity, [np.mean(statistic[alternative] >= t) for t in thresholds]
    )
    np.testing.assert_allclose(
        specificity, [np.mean(statistic[~alternative] < t) for t in thresholds]
    )


def test_best_test_limits(rng):
    alternative = np.arange(10) % 2 == 1
    assert best_test(alternative, alternative) == 2
    assert best_test(-1.0 * alternative, alternative) == 2
    assert best_test(np.ones(10), alternative) == 1
    assert best_test(np.repeat(rng.normal(size=5), 2), alternative) == pytest.approx(1)


def test_queries_of_a_known_function():
    # f = |x_1| around 0: the pairs (-1, 2) and (-3, 1) change it by 1 and -2.
    model = piecewise_linear_model([-4, 0, 4], [[[4, 0, 4], [0, 0, 0]]])
    offsets = np.array([[[-1, 2], [-3, 1]]])
    mean = model_query_test(model, np.zeros(2), [0], offsets)
    largest = model_query_test(model, np.zeros(2), [0], offsets, signed=False)
    np.testing.assert_allclose([mean[0], largest[0]], [-0.5, 2], atol=1e-6)
    other = model_query_test(model, np.zeros(2), [0], offsets, feature=1)
    np.testing.assert_allclose(other, 0)


@pytest.fixture(scope="module")
def report():
    methods = {"integrated gradients": integrated_gradients, "gradient": signed_gradient}
    return impossibility_benchmark(methods, num_pairs=200, queries=(1, 8, 16))


def test_complete_attributions_guess_where_models_are_rich(report):
    for task in END_TASKS:
        assert report[task.name]["integrated gradients"] <= 1.05


def test_queries_answer_and_more_of_them_better(report):
    for task in END_TASKS:
        assert report[task.name]["32 queries"] >= 1.9
    spurious = report["spurious features"]
    assert spurious["2 queries"] < spurious["16 queries"] <= spurious["32 queries"]


def test_what_the_gradient_can_and_cannot_tell(report):
    assert report["local behaviour"]["gradient"] == 2
    assert report["recourse"]["gradient"] < 1.3


def test_linear_models_are_no_obstacle(report):
    assert report[LINEAR_TASK.name]["integrated gradients"] == 2


def test_integrated_gradients_are_complete_and_linear(rng):
    values = rng.normal(size=(2, 3, 12))
    model, knots = piecewise_linear_model(np.arange(12) / 11, values), np.arange(12) / 11
    both = piecewise_linear_model(knots, [2 * values[0] - 3 * values[1]])
    x = rng.uniform(size=(4, 3)).astype("float32")
    one, two = (integrated_gradients(model, x, np.full(4, o)) for o in (0, 1))
    joined = integrated_gradients(both, x, np.zeros(4, int))
    np.testing.assert_allclose(joined, 2 * one - 3 * two, atol=1e-4)
    errors = []
    for steps in (20, 2000):
        result = IntegratedGradients(model, steps=steps, rule="middle")(x, 0)
        errors.append(float(tf.reduce_max(tf.abs(result["convergence_delta"]))))
    assert errors[1] < errors[0] / 20


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`num_pairs` must be a positive integer. Received: 0"):
        equal_attribution_pairs(LOCAL, 0)
    with pytest.raises(ValueError, match="`knots` must be at least two ascending numbers"):
        piecewise_linear_model([1, 0], np.zeros([1, 1, 2]))
    with pytest.raises(ValueError, match="`values` must have the shape"):
        piecewise_linear_model([0, 1], np.zeros([1, 1, 3]))
    with pytest.raises(ValueError, match="`offsets` must have the shape"):
        model_query_test(None, np.zeros(2), [0], np.zeros([2, 1, 2]))
    with pytest.raises(ValueError, match="`alternative` must have both"):
        sensitivity_specificity(np.ones(3), np.ones(3, bool))
