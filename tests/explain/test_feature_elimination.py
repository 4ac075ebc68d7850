import numpy as np
import pytest

from kzoo.data.chaosmining import chaosmining_symbolic
from kzoo.data.formulas import Formula
from kzoo.explain.feature_elimination import RFEwNA, negative_mean_absolute_error

pytestmark = pytest.mark.paper(
    "ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments"
)


class LeastSquares:
    """A linear model, whose gradient is its coefficients."""

    def __init__(self, x, y):
        self.coefficients = np.linalg.lstsq(x, y, rcond=None)[0]

    def predict(self, x, verbose=0):
        return x @ self.coefficients


def train(x, y, seed):
    return LeastSquares(x, y)


def gradient(model, x, y):
    return np.broadcast_to(model.coefficients, x.shape)


@pytest.fixture(scope="module")
def data():
    formula = Formula(3, "a - 2b + c/2", lambda a, b, c: a - 2 * b + 0.5 * c)
    source, _ = chaosmining_symbolic(formula, num_irrelevant=30, num_examples=160, noise=0.3)
    x, y = source.features, source.labels
    return (x[:80], y[:80]), (x[80:], y[80:])


def test_finds_the_features_that_matter(data):
    search = RFEwNA(train, gradient, patience=None).fit(*data)
    np.testing.assert_array_equal(np.flatnonzero(search.support_), [0, 1, 2])
    scores = [score for _, score in search.history_]
    assert max(scores) > scores[0]
    assert negative_mean_absolute_error(search.model_, data[1][0][:, :3], data[1][1]) == max(scores)


def test_a_fifth_of_the_features_goes_in_a_round_and_at_least_one(data):
    search = RFEwNA(train, gradient, patience=None).fit(*data)
    sizes = [len(features) for features, _ in search.history_]
    assert sizes[:5] == [33, 27, 22, 18, 15]
    assert sizes[-4:] == [4, 3, 2, 1]
    for before, after in zip(search.history_, search.history_[1:], strict=False):
        assert set(after[0]) < set(before[0])


def test_stops_at_the_first_worse_score_and_returns_the_set_before(data):
    scores = iter([1.0, 3.0, 2.0])
    search = RFEwNA(train, gradient, score=lambda *_: next(scores)).fit(*data)
    assert len(search.history_) == 3
    np.testing.assert_array_equal(np.flatnonzero(search.support_), search.history_[1][0])
    scores = iter([1.0, 0.5, 2.0, 1.0, 1.0])
    patient = RFEwNA(train, gradient, score=lambda *_: next(scores), patience=1).fit(*data)
    assert patient.support_.sum() == len(patient.history_[2][0])


def test_importance_is_the_mean_magnitude():
    # Column 0 has large attributions that cancel, column 1 small ones that add up.
    signs = np.where(np.arange(8) % 2, 1.0, -1.0)
    attribution = np.stack([5 * signs, np.ones(8)], axis=1)
    x = np.zeros([8, 2])
    search = RFEwNA(
        lambda x, y, seed: None,
        lambda model, x, y: attribution[:, : x.shape[1]],
        score=lambda model, x, y: 0.0,
        patience=None,
    ).fit((x, x[:, 0]), (x, x[:, 0]))
    np.testing.assert_array_equal(search.history_[1][0], [0])


def test_errors_name_the_argument(data):
    with pytest.raises(ValueError, match="`keep` must be in .* Received: 1"):
        RFEwNA(train, gradient, keep=1)
    with pytest.raises(ValueError, match="`patience` must be None or at least 0. Received: -1"):
        RFEwNA(train, gradient, patience=-1)
    with pytest.raises(ValueError, match="must hold tables of the same columns"):
        RFEwNA(train, gradient).fit(data[0], (data[1][0][:, :5], data[1][1]))
    with pytest.raises(ValueError, match="`attribute` must return the shape"):
        RFEwNA(train, lambda model, x, y: np.ones([len(x), 2])).fit(*data)
