"""Feature ablation: by how much the score falls when one region is hidden.

    phi_i = F(x) - F(x without region i)

The perturbation that Zeiler and Fergus, 2013, arXiv 1311.2901, section 4.2, do with a sliding
window, for regions of any form; with one feature to a region, "leave one covariate out".
"""

import numpy as np

from kzoo.explain.coalitions import CoalitionExplainer, Design
from kzoo.explain.guided import DECONVNET_PAPER
from kzoo.papers import Example, component


@component(DECONVNET_PAPER, example=Example(kwargs={"regions": 2}))
class FeatureAblation(CoalitionExplainer):
    """How much the score falls when a feature, a patch or a superpixel is hidden.

    Args:
        model: a model of one input; see `CoalitionExplainer`, as are `regions`, `baseline`,
            `score`, `tap` and `rows`.

    Returns (when called): `attributions` [batch, ...] without the channels, with the value of its
    region at each place; `region_attributions` [batch, regions]; `score`, `target`, `predictions`;
    `convergence_delta` [batch], the sum over the regions less F(x) - F(baseline): what the regions
    do together.

    Example:

    >>> result = FeatureAblation(model)(table)
    >>> result["attributions"].shape == table.shape
    True

    Reference:
        Zeiler and Fergus (2013), section 4.2, arxiv.org/abs/1311.2901
    """

    def design(self, regions):
        return Design(
            kept=~np.eye(regions, dtype=bool),
            coefficients=-np.eye(regions),
            whole=np.ones(regions),
            empty=np.zeros(regions),
        )
