import keras
import numpy as np
import pytest

from kzoo.analysis.online_regret import adam_counterexample, online_regret
from kzoo.optimizers.amsgrad import AdamNC, AMSGrad
from kzoo.optimizers.schedules.inverse_sqrt_decay import InverseSqrtDecay

pytestmark = pytest.mark.paper("On the Convergence of Adam and Beyond")


def without_root(make, **options):
    """With the constants of theorem 1: beta_1 = 0, beta_2 = 1 / (1 + 3^2), lr 1/2 / sqrt(t)."""
    return make(InverseSqrtDecay(0.5), beta_1=0.0, **options)


def test_the_slopes_of_theorem_1():
    np.testing.assert_array_equal(adam_counterexample(7), [3, -1, -1, 3, -1, -1, 3])
    np.testing.assert_array_equal(adam_counterexample(102, 1010, 10, 101)[[0, 1, 101]],
                                  [1010, -10, 1010])  # fmt: skip
    with pytest.raises(ValueError, match="or the lower end is not best. Received: 2.0, 1.0, 3"):
        adam_counterexample(10, large=2.0)


def test_regret_computed_by_hand():
    # x = 0, -1 (of -1.5, projected), -0.5, 0: losses 0, 1, 0.5 of slopes 3, -1, -1, and 0.
    run = online_regret(keras.optimizers.SGD(0.5), [3.0, -1.0, -1.0, -2.0], start=0.0)
    np.testing.assert_allclose(run.points, [0, -1, -0.5, 0])
    # Best losses so far: -3, -2, -1, and -1 (at 1, where 1 - ... = -(3 - 1 - 1 - 2)).
    np.testing.assert_allclose(run.regret, [3, 3, 2.5, 2.5])
    np.testing.assert_allclose(run.average_regret, [3, 1.5, 2.5 / 3, 0.625])


def test_adam_goes_to_the_worst_point_and_its_relatives_to_the_best():
    slopes = adam_counterexample(20_000)
    adam, amsgrad, adam_nc = (
        online_regret(optimizer, slopes, start=0.0)
        for optimizer in (
            without_root(keras.optimizers.Adam, beta_2=0.1),
            without_root(AMSGrad, beta_2=0.1),
            without_root(AdamNC),
        )
    )
    assert adam.points[-100:].min() > 0.98
    assert adam.average_regret[-1] > 0.6  # at 1, it is (C - 2) (1 - -1) / 3 = 2/3
    for run in (amsgrad, adam_nc):
        assert run.points[-100:].max() < -0.98
        # O(1 / sqrt(T)): a tenth of the steps has about three times the average.
        assert run.average_regret[-1] < 0.5 * run.average_regret[1999] < 0.1


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`start` must be in \[-1.0, 1.0\]. Received: 2.0"):
        online_regret(keras.optimizers.SGD(0.1), [1.0], start=2.0)
    with pytest.raises(ValueError, match="`slopes` must be a sequence of numbers"):
        online_regret(keras.optimizers.SGD(0.1), [])
