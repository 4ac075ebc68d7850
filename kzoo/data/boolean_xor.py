"""Boolean XOR among noise: y = x1 x2 for x uniform on the corners of a cube.

    x ~ Uniform({-1, 1}^d),   y = x_1 x_2

"Sharpness Minimization Algorithms Do Not Only Minimize Sharpness To Achieve Better Generalization",
Wen, Li, Ma, 2023, arXiv 2307.11007; there the data of two-layer ReLU networks.

Open choice: the points may be drawn without repetition, as memorizing needs it.
"""

import numpy as np

from kzoo.data.source import Source
from kzoo.models.memorizing_two_layer import PAPER
from kzoo.papers import component

_MAX_LISTED_FEATURES = 24


@component(PAPER)
def boolean_xor(num_examples, num_features=15, distinct=False, seed=0, **source):
    """Draws corners of a cube with the product of their first two coordinates.

    Args:
        num_examples: number of examples.
        num_features: d, at least 2. Defaults to 15.
        distinct: whether no corner comes twice; then d is at most 24 and there are 2^d examples at
            most. Defaults to False.
        seed: seed of the draws. Defaults to 0.
        source: further arguments of `Source`, such as `split`.

    Returns:
        `Source` of float32 [num_examples, num_features] and targets float32 [num_examples], all
        of them -1 or 1.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> source = boolean_xor(100, num_features=15)
    >>> source.features.shape, source.labels.shape
    ((100, 15), (100,))

    Reference:
        Wen et al. (2023), section 2, arxiv.org/abs/2307.11007
    """
    if not isinstance(num_features, int) or num_features < 2:
        raise ValueError(f"`num_features` must be an integer above 1. Received: {num_features!r}")
    if not isinstance(num_examples, int) or num_examples < 1:
        raise ValueError(f"`num_examples` must be a positive integer. Received: {num_examples!r}")
    rng = np.random.default_rng(seed)
    if distinct:
        bits = _distinct_bits(rng, num_examples, num_features)
    else:
        bits = rng.integers(0, 2, [num_examples, num_features])
    x = (2 * bits - 1).astype("float32")
    return Source(x, x[:, 0] * x[:, 1], **{"name": "boolean_xor", **source})


def _distinct_bits(rng, count, width):
    if width > _MAX_LISTED_FEATURES:
        raise ValueError(
            f"`num_features` must be at most {_MAX_LISTED_FEATURES} with `distinct`. "
            f"Received: {width}"
        )
    if count > 2**width:
        raise ValueError(
            f"`num_examples` must be at most 2^{width} = {2**width} with `distinct`. "
            f"Received: {count}"
        )
    numbers = rng.choice(2**width, count, replace=False)
    return numbers[:, np.newaxis] >> np.arange(width) & 1
