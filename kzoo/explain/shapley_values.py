"""Shapley values of a game: what each player adds, on average over the orders in which they come.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))
          = mean over the orders of the players of v(those before i, and i) - v(those before i)

They add up to v(all) - v(none), give nothing to a player who adds nothing, and the same to players
who add the same.

The exact values take v of all 2^n coalitions. The estimate draws orders at random; each gives one
marginal contribution of every player, so that an estimate adds up exactly, too.

Shapley, "A Value for n-Person Games", 1953; the estimate: Castro, Gómez, Tejada, "Polynomial
calculation of the Shapley value based on sampling", 2009. They serve "CopyScope: Model-level
Copyright Infringement Quantification in the Diffusion Workflow", Zhou, Gao, Wang, Wei, 2023, arXiv
2311.12847, here; `kzoo.explain.SampledShapley` and `KernelSHAP` are for the features of an input.
"""

from dataclasses import dataclass
from math import factorial

import numpy as np

from kzoo.papers import Paper, component

PAPER = Paper(
    title="CopyScope: Model-level Copyright Infringement Quantification in the Diffusion Workflow",
    authors=("Junlei Zhou", "Jiashi Gao", "Ziwei Wang", "Xuetao Wei"),
    year=2023,
    arxiv="2311.12847",
)

# A million coalitions; beyond it, orders are drawn.
_MOST_PLAYERS = 20


@dataclass(frozen=True)
class ShapleyValues:
    """The values of a game.

    Attributes:
        values: float64 [players].
        standard_errors: float64 [players] of an estimate; 0 where the values are exact.
        coalitions: number of coalitions whose utility was asked for.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    coalitions: int


@component(PAPER, not_served="it asks a utility of the caller, in Python")
def shapley_values(utility, players, permutations=None, seed=0):
    """Shapley values of the players of a game, exact or estimated.

    The utility of a coalition is asked for once, whatever number of orders it appears in.

    Args:
        utility: `utility(coalition)` -> float; a coalition is a sorted tuple of numbers of players,
            () for none of them.
        players: n, number of players; at most 20 for exact values.
        permutations: number of orders to draw, at least 2; None for the exact values.
        seed: int, of the orders.

    Returns:
        `ShapleyValues`.

    Raises:
        ValueError: for arguments out of range, or a utility that is not finite.

    Example:

    >>> shapley_values(lambda coalition: len(coalition) ** 2, players=3).values
    array([3., 3., 3.])

    Reference:
        Zhou et al. (2023), arxiv.org/abs/2311.12847; Shapley (1953); Castro et al. (2009)
    """
    if not isinstance(players, int) or players < 1:
        raise ValueError(f"`players` must be a positive integer. Received: {players!r}")
    if permutations is None and players > _MOST_PLAYERS:
        raise ValueError(
            f"`players` must be at most {_MOST_PLAYERS} for exact values; give `permutations` for "
            f"more. Received: {players}"
        )
    if permutations is not None and (not isinstance(permutations, int) or permutations < 2):
        raise ValueError(
            f"`permutations` must be None or an integer of at least 2. Received: {permutations!r}"
        )
    utility = _CachedUtility(utility)
    if permutations is None:
        utilities = [utility(_members(code, players)) for code in range(2**players)]
        values = exact_shapley_values(utilities)
        return ShapleyValues(values, np.zeros(players), len(utility.known))
    contributions = _sampled_contributions(utility, players, permutations, seed)
    errors = contributions.std(axis=0, ddof=1) / np.sqrt(permutations)
    return ShapleyValues(contributions.mean(axis=0), errors, len(utility.known))


def exact_shapley_values(utilities):
    """The values from the utilities of all coalitions, without a loop over them.

    Args:
        utilities: [2^n], those of the coalitions by their binary code: player i is in number
            `code` if the bit of 2^i is set, so the first is that of nobody, the last of all.

    Returns:
        float64 [n].
    """
    utilities = np.asarray(utilities, "float64")
    players = len(utilities).bit_length() - 1
    if utilities.ndim != 1 or len(utilities) != 2**players or players < 1:
        raise ValueError(
            f"`utilities` must be of shape [2^n], n at least 1. Received: {list(utilities.shape)}"
        )
    n = players
    weights = np.array([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)])
    # How many of the other n - 1 players are in each coalition of theirs.
    sizes = np.zeros(1, int)
    for _ in range(n - 1):
        sizes = np.concatenate([sizes, sizes + 1])
    without_and_with = (
        np.moveaxis(utilities.reshape(-1, 2, 2**i), 1, 0).reshape(2, -1) for i in range(n)
    )
    return np.array([weights[sizes] @ (joined - alone) for alone, joined in without_and_with])


class _CachedUtility:
    def __init__(self, utility):
        self.utility = utility
        self.known = {}

    def __call__(self, coalition):
        if coalition not in self.known:
            value = float(self.utility(coalition))
            if not np.isfinite(value):
                raise ValueError(f"`utility` must be finite. Received: {value} of {coalition}")
            self.known[coalition] = value
        return self.known[coalition]


def _members(code, players):
    return tuple(player for player in range(players) if code >> player & 1)


def _sampled_contributions(utility, players, permutations, seed):
    """What each player adds in each of some random orders, [permutations, players]."""
    rng = np.random.default_rng(seed)
    contributions = np.empty([permutations, players])
    for row in contributions:
        order = rng.permutation(players).tolist()
        gained = [utility(tuple(sorted(order[:count]))) for count in range(players + 1)]
        row[order] = np.diff(gained)
    return contributions
