"""LIME: a linear model of the scores of the input's neighbours, weighted by how near they are.

    xi = argmin_g sum_z pi(z) (F(x_z) - g(z))^2 + Omega(g),   pi(z) = exp(-D(x, z)^2 / sigma^2)

over random coalitions z of regions (equations 1 and 2).

"'Why Should I Trust You?': Explaining the Predictions of Any Classifier", Ribeiro, Singh, Guestrin,
2016, arXiv 1602.04938.

Deviations and open choices: g is a ridge regression with an intercept, as in the authors' code,
without the choice of K regions by Lasso before; D is their cosine distance of z to the whole input,
1 - sqrt(|z| / M), for images and tables alike, and sigma 0.25. Tables are perturbed by hiding
features, not by drawing from the training data.
"""

import numpy as np

from kzoo.explain.coalitions import CoalitionExplainer, Design
from kzoo.explain.scores import probability_score
from kzoo.papers import Example, Paper, component

PAPER = Paper(
    title='"Why Should I Trust You?": Explaining the Predictions of Any Classifier',
    authors=("Marco Tulio Ribeiro", "Sameer Singh", "Carlos Guestrin"),
    year=2016,
    arxiv="1602.04938",
)


@component(PAPER, example=Example(kwargs={"samples": 20, "regions": 2}))
class LIME(CoalitionExplainer):
    """The weights of a linear model that imitates the model around one input.

    Args:
        model: a model of one input; see `CoalitionExplainer`, as are `regions`, `baseline`, `tap`
            and `rows`.
        samples: number of neighbours. Defaults to 1000.
        kernel_width: sigma, above 0. Defaults to 0.25.
        alpha: strength of the ridge penalty, at least 0. Defaults to 1.
        seed: integer from which the neighbours come. Defaults to 0.
        score: see `Explainer`. Defaults to the probability of the target class.

    Returns (when called): `attributions` [batch, ...] without the channels, with the weight of its
    region at each place; `region_attributions` [batch, regions]; `score`, `target`, `predictions`;
    `convergence_delta` [batch], the sum of the weights less F(x) - F(baseline).

    Reference:
        Ribeiro et al. (2016), equation 2, arxiv.org/abs/1602.04938
    """

    def __init__(
        self,
        model,
        samples=1000,
        regions=None,
        baseline=0.0,
        kernel_width=0.25,
        alpha=1.0,
        seed=0,
        score=None,
        tap=None,
        rows="auto",
    ):
        score = score or probability_score(model)
        super().__init__(model, regions, baseline, score=score, tap=tap, rows=rows)
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` must be a positive integer. Received: {samples!r}")
        if not kernel_width > 0:
            raise ValueError(f"`kernel_width` must be positive. Received: {kernel_width!r}")
        if not alpha >= 0:
            raise ValueError(f"`alpha` must be at least 0. Received: {alpha!r}")
        self.samples, self.kernel_width, self.alpha = samples, kernel_width, alpha
        self.seed = seed

    def design(self, regions):
        rng = np.random.default_rng(self.seed)
        kept = rng.random([self.samples, regions]) < 0.5
        distance = 1 - np.sqrt(kept.mean(1))
        weights = np.exp(-((distance / self.kernel_width) ** 2))
        # Ridge with an intercept: both sides are centred at their weighted means.
        z = kept - np.average(kept, axis=0, weights=weights)
        gram = z.T @ (weights[:, np.newaxis] * z) + self.alpha * np.eye(regions)
        coefficients = np.linalg.solve(gram, z.T * weights).T
        return Design(kept, coefficients, whole=np.zeros(regions), empty=np.zeros(regions))

    def get_config(self):
        return {
            **super().get_config(),
            "samples": self.samples,
            "kernel_width": self.kernel_width,
            "alpha": self.alpha,
            "seed": self.seed,
        }
