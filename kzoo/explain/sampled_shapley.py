"""Sampled Shapley values: what a region adds on average when regions are uncovered in random order.

    phi_i = 1/P sum_p  F(regions up to i in the order p) - F(regions before i)

"Polynomial calculation of the Shapley value based on sampling", Castro, Gomez, Tejada, 2009,
Computers & Operations Research 36 (5); section 3. Its error falls as 1 / sqrt(P).

Deviations: orders come in pairs, each followed by its reverse, which lowers the variance (for a
score with interactions of pairs only, to zero) and leaves the mean.
"""

import numpy as np

from kzoo.explain.coalitions import CoalitionExplainer, Design
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title="Polynomial calculation of the Shapley value based on sampling",
    authors=("Javier Castro", "Daniel Gomez", "Juan Tejada"),
    year=2009,
)


@component(PAPER, example=Example(kwargs={"permutations": 2, "regions": 2}))
class SampledShapley(CoalitionExplainer):
    """Shapley values of features, patches or superpixels, by sampling orders.

    It costs a prediction for each region and order.

    Args:
        model: a model of one input; see `CoalitionExplainer`, as are `regions`, `baseline`,
            `score`, `tap` and `rows`.
        permutations: number P of orders. Defaults to 10.
        seed: integer from which the orders come. Defaults to 0.

    Returns (when called): `attributions` [batch, ...] without the channels, with the value of its
    region at each place; `region_attributions` [batch, regions], which add up to F(x) -
    F(baseline) exactly; `score`, `target`, `predictions`; `convergence_delta` [batch], rounding.

    Reference:
        Castro et al. (2009), section 3
    """

    def __init__(
        self,
        model,
        permutations=10,
        regions=None,
        baseline=0.0,
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        super().__init__(model, regions, baseline, score=score, tap=tap, rows=rows)
        if not isinstance(permutations, int) or permutations < 1:
            raise ValueError(
                f"`permutations` must be a positive integer. Received: {permutations!r}"
            )
        self.permutations = permutations
        self.seed = seed

    def design(self, regions):
        rng = np.random.default_rng(self.seed)
        forward = [rng.permutation(regions) for _ in range((self.permutations + 1) // 2)]
        orders = [each for order in forward for each in (order, order[::-1])][: self.permutations]
        # ranks[p, i]: how many regions come before region i; after s, those below s are kept.
        ranks = np.argsort(orders, axis=1)
        sizes = np.arange(1, regions)[np.newaxis, :, np.newaxis]
        kept = ranks[:, np.newaxis] < sizes
        # The region that makes the coalition what it is gains its score; the next one loses it.
        gains = (ranks[:, np.newaxis] == sizes - 1).astype(float) - (ranks[:, np.newaxis] == sizes)
        return Design(
            kept=kept.reshape(-1, regions),
            coefficients=gains.reshape(-1, regions) / self.permutations,
            whole=(ranks == regions - 1).mean(0),
            empty=-(ranks == 0).mean(0),
        )

    def get_config(self):
        return {**super().get_config(), "permutations": self.permutations, "seed": self.seed}
