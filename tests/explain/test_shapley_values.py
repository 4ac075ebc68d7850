import itertools

import numpy as np
import pytest

from kzoo.explain.shapley_values import exact_shapley_values, shapley_values

pytestmark = pytest.mark.paper(
    "CopyScope: Model-level Copyright Infringement Quantification in the Diffusion Workflow"
)


def game(rng, players):
    """A game at random: {coalition: utility}."""
    return {
        coalition: rng.normal()
        for size in range(players + 1)
        for coalition in itertools.combinations(range(players), size)
    }


def over_all_orders(utility, players):
    """The definition: marginal contributions averaged over the n! orders."""
    orders = list(itertools.permutations(range(players)))
    values = np.zeros(players)
    for order in orders:
        for place, player in enumerate(order):
            before = tuple(sorted(order[:place]))
            values[player] += utility[tuple(sorted((*before, player)))] - utility[before]
    return values / len(orders)


@pytest.mark.parametrize("players", [1, 2, 4, 5])
def test_exact_values_are_the_mean_over_all_orders(rng, players):
    utility = game(rng, players)
    result = shapley_values(utility.__getitem__, players)
    np.testing.assert_allclose(result.values, over_all_orders(utility, players), atol=1e-12)
    total = utility[tuple(range(players))] - utility[()]
    assert result.values.sum() == pytest.approx(total, abs=1e-12)
    assert result.coalitions == 2**players
    assert not result.standard_errors.any()


def test_glove_game_by_hand():
    # Players 0 and 1 have a left glove, 2 the only right one: 1/6, 1/6 and 4/6.
    def pairs(coalition):
        return float(2 in coalition and len(coalition) > 1)

    np.testing.assert_allclose(shapley_values(pairs, 3).values, [1 / 6, 1 / 6, 4 / 6])


def test_null_symmetric_and_additive_players():
    weights = np.array([0.5, -2, 3, 0, 1])
    additive = shapley_values(lambda coalition: 7 + weights[list(coalition)].sum(), 5).values
    np.testing.assert_allclose(additive, weights, atol=1e-12)

    def threshold(coalition):  # 0 and 1 are alike, 2 never matters
        return float(len(set(coalition) & {0, 1, 3}) >= 2) + 3 * (3 in coalition)

    values = shapley_values(threshold, 4).values
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert values[2] == pytest.approx(0, abs=1e-12)
    assert values[3] > values[0] > 0


def test_estimate_is_within_its_errors_and_adds_up(rng):
    utility = game(rng, 5)
    exact = shapley_values(utility.__getitem__, 5).values
    estimate = shapley_values(utility.__getitem__, 5, permutations=2000, seed=3)
    assert (np.abs(estimate.values - exact) < 3 * estimate.standard_errors).all()
    assert estimate.standard_errors.max() < 0.05
    assert estimate.values.sum() == pytest.approx(exact.sum(), abs=1e-10)


def test_standard_errors_are_those_of_repeated_estimates(rng):
    utility = game(rng, 4)
    runs = [shapley_values(utility.__getitem__, 4, 30, seed) for seed in range(200)]
    spread = np.std([run.values for run in runs], axis=0)
    errors = np.mean([run.standard_errors for run in runs], axis=0)
    np.testing.assert_allclose(errors, spread, rtol=0.2)


def test_utilities_are_asked_for_once(rng):
    asked = []

    def utility(coalition):
        asked.append(coalition)
        return len(coalition)

    result = shapley_values(utility, 3, permutations=50)
    assert len(asked) == len(set(asked)) == result.coalitions == 8
    np.testing.assert_array_equal(result.standard_errors, 0)  # every order says the same


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`players` must be a positive integer. Received: 0"):
        shapley_values(len, 0)
    with pytest.raises(ValueError, match="at most 20 for exact values"):
        shapley_values(len, 21)
    with pytest.raises(ValueError, match="`permutations` must be None or .* Received: 1"):
        shapley_values(len, 3, permutations=1)
    with pytest.raises(ValueError, match=r"`utility` must be finite. Received: nan of \(\)"):
        shapley_values(lambda coalition: np.nan, 2)
    with pytest.raises(ValueError, match=r"`utilities` must be of shape \[2\^n\]"):
        exact_shapley_values(np.zeros(6))
