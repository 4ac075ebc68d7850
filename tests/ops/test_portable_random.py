import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from kzoo.ops.portable_random import fold_in, portable_normal


def draw(step, size=(33,), dtype="float32"):
    return portable_normal(size, fold_in([7, 0], step, 3), dtype)


def test_xla_draws_the_same_numbers():
    # Steps whose folded seeds are both positive and negative. As an argument: what is constant is
    # computed by TensorFlow before XLA sees it.
    compiled = tf.function(draw, jit_compile=True)
    for step in (*range(8), 10**6, 2**40):
        step = tf.constant(step, tf.int64)
        np.testing.assert_allclose(compiled(step), draw(step), rtol=1e-5, atol=1e-6)


def test_numbers_are_standard_normal():
    numbers = draw(0, (100_000,)).numpy()
    assert scipy.stats.kstest(numbers, "norm").pvalue > 0.01
    assert 3.5 < np.abs(numbers).max() < 6


def test_seeds_have_numbers_of_their_own():
    seeds = [(seed, step, place) for seed in (0, 1) for step in (0, 1, 2) for place in (0, 1, 2)]
    draws = [portable_normal((2000,), fold_in((seed, 0), *rest)) for seed, *rest in seeds]
    correlations = np.corrcoef(draws) - np.eye(len(seeds))
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes_differ_by_rounding_only(dtype):
    numbers = draw(0, (4, 5), dtype)
    assert (numbers.dtype, numbers.shape) == (dtype, (4, 5))
    np.testing.assert_allclose(tf.cast(numbers, "float32"), draw(0, (4, 5)), rtol=0.01, atol=1e-3)
