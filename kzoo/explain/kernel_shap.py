"""Kernel SHAP: Shapley values as the solution of a weighted linear regression.

    phi = argmin sum_z w(z) (F(x_z) - F(x_0) - z . phi)^2   with  sum_i phi_i = F(x) - F(x_0)
    w(z) = (M - 1) / (C(M, |z|) |z| (M - |z|))                  (theorem 2)

over coalitions z of the M regions, x_0 the baseline. With all coalitions it gives the Shapley
values exactly.

"A Unified Approach to Interpreting Model Predictions", Lundberg, Lee, 2017, arXiv 1705.07874.

Deviations: where there are more coalitions than `samples`, they are drawn with their sizes in
proportion to the total weight of that size, each with its complement, and all weigh the same
(Covert and Lee, 2021, arXiv 2012.01536, section 3.2).
"""

import math

import numpy as np

from kzoo.explain.coalitions import CoalitionExplainer, Design
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="A Unified Approach to Interpreting Model Predictions",
    authors=("Scott M. Lundberg", "Su-In Lee"),
    year=2017,
    arxiv="1705.07874",
)


@component(PAPER, example=Example(kwargs={"samples": 20, "regions": 2}))
class KernelSHAP(CoalitionExplainer):
    """Shapley values of features, patches or superpixels, by regression over coalitions.

    Args:
        model: a model of one input; see `CoalitionExplainer`, as are `regions`, `baseline`,
            `score`, `tap` and `rows`.
        samples: number of coalitions at most; where all 2^M - 2 are fewer, all are taken and the
            values are exact. At least 2 M are needed. Defaults to 2048.
        seed: integer from which the coalitions come. Defaults to 0.

    Returns (when called): `attributions` [batch, ...] without the channels, with the value of its
    region at each place; `region_attributions` [batch, regions], which add up to F(x) -
    F(baseline) exactly; `score`, `target`, `predictions`; `convergence_delta` [batch], rounding.

    Example:

    >>> result = KernelSHAP(model, baseline=table.mean(0))(table)
    >>> result["attributions"].shape == table.shape
    True

    Reference:
        Lundberg and Lee (2017), theorem 2, arxiv.org/abs/1705.07874
    """

    def __init__(
        self,
        model,
        samples=2048,
        regions=None,
        baseline=0.0,
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        super().__init__(model, regions, baseline, score=score, tap=tap, rows=rows)
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        self.samples = samples
        self.seed = seed

    def design(self, regions):
        if regions == 1:
            nothing = np.zeros([1, 1])
            return Design(nothing.astype(bool), nothing, np.ones(1), -np.ones(1))
        if 2**regions - 2 <= self.samples:
            kept = np.array(list(np.ndindex(*[2] * regions)), bool)[1:-1]
            weights = _kernel(regions)[kept.sum(1)]
        else:
            kept = self._sampled(regions)
            weights = np.ones(len(kept))
        return _regression(kept, weights)

    def _sampled(self, regions):
        """Pairs of a coalition and its complement, bool [about `samples`, regions]."""
        if self.samples < 2 * regions:
            raise ValueError(
                f"`samples` must be at least {2 * regions}, twice the number of regions. "
                f"Received: {self.samples}"
            )
        rng = np.random.default_rng(self.seed)
        sizes = np.arange(1, regions)
        mass = 1 / (sizes * (regions - sizes))
        chosen = rng.choice(sizes, size=self.samples // 2, p=mass / mass.sum())
        ranks = np.argsort(rng.random([len(chosen), regions]), axis=1)
        kept = ranks < chosen[:, np.newaxis]
        return np.concatenate([kept, ~kept])

    def get_config(self):
        return {**super().get_config(), "samples": self.samples, "seed": self.seed}


def _kernel(regions):
    """Weights of coalitions by their size, [regions + 1]; those of none and of all are not used."""
    sizes = range(1, regions)
    inner = [(regions - 1) / (math.comb(regions, k) * k * (regions - k)) for k in sizes]
    return np.array([0, *inner, 0])


def _regression(kept, weights):
    """The `Design` whose sum is the constrained weighted least squares solution."""
    z = kept.astype(float)
    inverse = np.linalg.inv(z.T @ (weights[:, np.newaxis] * z))
    share = inverse.sum(1) / inverse.sum()
    projected = inverse - np.outer(share, inverse.sum(0))
    coefficients = (projected @ (z.T * weights)).T
    return Design(kept, coefficients, whole=share, empty=-share - coefficients.sum(0))
