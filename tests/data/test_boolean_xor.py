import numpy as np
import pytest

from kzoo.data.boolean_xor import boolean_xor

pytestmark = pytest.mark.paper(
    "Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better "
    "Generalization"
)


def test_the_label_is_the_product_of_the_first_two():
    source = boolean_xor(500, num_features=7)
    x = source.features
    assert set(np.unique(x)) == {-1.0, 1.0}
    np.testing.assert_array_equal(source.labels, x[:, 0] * x[:, 1])
    assert np.abs(x.mean(axis=0)).max() < 0.15


def test_no_single_input_tells_the_label():
    source = boolean_xor(4000, num_features=5)
    correlations = (source.features * source.labels[:, np.newaxis]).mean(axis=0)
    assert np.abs(correlations).max() < 0.06


def test_distinct_corners():
    x = boolean_xor(32, num_features=5, distinct=True).features
    assert len(np.unique(x, axis=0)) == 32
    assert len(np.unique(boolean_xor(32, num_features=5).features, axis=0)) < 32


def test_the_seed_decides():
    first, again, other = (boolean_xor(20, 6, seed=seed).features for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "`num_examples` must be a positive integer"),
        ({"num_features": 1}, "`num_features` must be an integer above 1"),
        ({"num_features": 3, "distinct": True}, r"`num_examples` must be at most 2\^3 = 8"),
        ({"num_features": 30, "distinct": True}, "`num_features` must be at most 24"),
    ],
)
def test_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        boolean_xor(**{"num_examples": 9, **arguments})
