import numpy as np
import pytest
from scipy.stats import ortho_group

from kzoo.analysis.isometry_gap import isometry_gap

pytestmark = pytest.mark.paper(
    "Towards Training Without Depth Limits: Batch Normalization Without Gradient Explosion"
)


def test_is_the_papers_formula(rng):
    x = rng.normal(size=(2, 3, 7))
    for gap, each in zip(isometry_gap(x), x, strict=True):
        gram = each @ each.T
        expected = -np.log(np.linalg.det(gram) ** (1 / 3) / (np.trace(gram) / 3))
        np.testing.assert_allclose(gap, expected, rtol=1e-12)


def test_by_hand():
    # Eigenvalues 1 and 4: a mean of 5 / 2 over a geometric mean of 2.
    np.testing.assert_allclose(isometry_gap(np.diag([1.0, 2.0])), np.log(1.25), rtol=1e-14)


def test_is_0_for_multiples_of_an_isometry_and_above_for_others(rng):
    q = ortho_group.rvs(6, random_state=0)
    for scale in (1e-160, 1.0, 1e160):
        assert isometry_gap(scale * q[:4]) < 1e-14
    for _ in range(20):
        assert isometry_gap(q + 1e-3 * rng.normal(size=q.shape)) > 1e-7


def test_does_not_see_scale_or_rotation(rng):
    x = rng.normal(size=(5, 5))
    gap = isometry_gap(x)
    np.testing.assert_allclose(isometry_gap(-3 * x), gap, rtol=1e-12)
    np.testing.assert_allclose(isometry_gap(x @ ortho_group.rvs(5)), gap, rtol=1e-10)
    np.testing.assert_allclose(isometry_gap(ortho_group.rvs(5) @ x), gap, rtol=1e-10)


def test_dependent_samples_are_infinitely_far(rng):
    x = rng.normal(size=(3, 4))
    assert isometry_gap(x.T) == np.inf
    x[2] = x[0] + x[1]
    assert isometry_gap(x) == np.inf
    assert isometry_gap(x.astype("float32")) == np.inf
    assert isometry_gap(np.zeros((2, 2))) == np.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones(3), "samples, features"), (np.ones((0, 3)), "samples, features")],
)
def test_bad_shapes(values, message):
    with pytest.raises(ValueError, match=message):
        isometry_gap(values)


def test_bad_values():
    with pytest.raises(ValueError, match="finite"):
        isometry_gap(np.array([[1.0, np.nan]]))
