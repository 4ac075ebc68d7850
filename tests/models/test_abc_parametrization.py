"""Exponents of the width, and the training that they predict."""

import keras
import numpy as np
import pytest

from kzoo.analysis.coordinate_check import coordinate_check
from kzoo.models.abc_parametrization import ABCParametrization as Abc

pytestmark = pytest.mark.paper("Feature Learning in Infinite-Width Neural Networks")

SP, NTP, MUP = Abc.standard(2), Abc.neural_tangent(2), Abc.maximal_update(2)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    dtype = keras.config.floatx()
    return rng.normal(size=(8, 6)).astype(dtype), rng.normal(size=(8, 1)).astype(dtype)


@pytest.mark.parametrize(
    ("abc", "r", "features", "kernel"),
    [
        (SP, 0.5, False, True),
        (Abc.standard(5), 0.5, False, True),
        (NTP, 0.5, False, True),
        (Abc.neural_tangent(1), 0.5, False, True),
        (MUP, 0.0, True, False),
        (Abc.maximal_update(1), 0.0, True, False),
        (Abc.mean_field(), 0.0, True, False),
    ],
)
def test_exponents_of_the_presets(abc, r, features, kernel):
    assert abc.r == pytest.approx(r)
    assert (abc.is_stable, abc.is_nontrivial) == (True, True)
    assert (abc.learns_features, abc.is_kernel_regime) == (features, kernel)


def test_a_constant_rate_is_unstable_in_the_standard_parametrization():
    # r = min(0 + 1/2, 0 + 0) + 0 - 1 + min(1, 0) = -1
    assert Abc.standard(2, c=0.0).r == -1
    assert not Abc.standard(2, c=0.0).is_stable
    # A rate that shrinks faster leaves the output where it is.
    assert Abc.standard(2, c=2.0).is_stable
    assert not Abc.standard(2, c=2.0).is_nontrivial


def test_r_by_hand():
    # min(0.5 + 0.25, 1 - 0.5) - 0.5 - 1 + min(0.2 + 1, 0.6, -0.2)
    assert Abc((0.1, 0.3, -0.1, 0.5), (0, 0, 0, 0.25), -0.5).r == pytest.approx(0.5 - 1.5 - 0.2)


def trained(abc, width, base_width, base_rate=0.1, steps=4):
    model = abc.perceptron(width, 6, 1, base_width=base_width, seed=3)
    start = [layer.multiplier * layer.kernel.numpy() for layer in model.layers]
    rate = float(abc.learning_rate(base_rate, width, base_width))
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    for _ in range(steps):
        model.train_on_batch(*rows())
    return start, [layer.multiplier * layer.kernel.numpy() for layer in model.layers]


def test_all_are_the_same_at_the_base_width():
    expected = trained(SP, 16, 16)
    for abc in (NTP, MUP):
        for ours, theirs in zip(trained(abc, 16, 16), expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("abc", [SP, NTP, MUP])
def test_a_shift_of_the_exponents_changes_nothing(float64, abc):
    shifted = abc.shifted(0.75)
    assert shifted.r == pytest.approx(abc.r)
    assert shifted.is_stable
    for ours, theirs in zip(trained(shifted, 32, 2), trained(abc, 32, 2), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12)


def test_mean_field_is_a_shift_of_maximal_update():
    # Of the first layer by -1/2 in all layers: (0, 1) - 1/2, (0, 0) + 1/2, -1 + 1.
    assert Abc.mean_field().shifted(-0.5) == Abc.maximal_update(1)


@pytest.mark.parametrize("abc", [MUP, NTP, SP], ids=["muP", "NTP", "SP"])
def test_the_last_hidden_layer_moves_by_n_to_the_minus_r(abc):
    def make(width):
        model = abc.perceptron(width, 6, 1)
        rate = float(abc.learning_rate(0.02, width))
        model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
        return model

    # Targets beside which the random outputs at the start do not count.
    x, y = rows()
    check = coordinate_check(make, [128, 512, 2048], (x, 10 * y), steps=3, seeds=range(3))
    assert check.slopes()["layer_2"] == pytest.approx(-abc.r, abs=0.1)
    # The output moves in all of them: none is trivial.
    assert abs(check.slopes()["layer_3"]) < 0.2


def test_refuses_bad_exponents():
    with pytest.raises(ValueError, match="one exponent for each of at least two layers"):
        Abc((0.0, 0.0), (0.0,), 0.0)
    with pytest.raises(ValueError, match="exponents must be finite"):
        Abc((0.0, float("nan")), (0.0, 0.0), 0.0)
    with pytest.raises(ValueError, match="`hidden_layers` must be a positive integer"):
        Abc.standard(0)
