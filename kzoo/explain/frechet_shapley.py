"""FID-based Shapley values: what each component of a generator adds to the likeness of its images.

    v(S)  = -FID(images generated with the components S, reference images)
    phi_i = Shapley value of component i in the game v

The components are the parts of a workflow: a base model, a LoRA, a ControlNet, a key prompt. The
nearer to the reference a component brings the images, the higher its value: it is held responsible
for the likeness.

"CopyScope: Model-level Copyright Infringement Quantification in the Diffusion Workflow", Zhou, Gao,
Wang, Wei, 2023, arXiv 2311.12847; sections on FID and the FID-based Shapley algorithm.

Open choices: what the images of no component are is up to `generate`, which is asked for the empty
coalition as for any other; where nothing can be generated, `empty_distance` stands for it. It is
common to all orders, and so decides by how much the values add up, not their differences where all
components can come first alike. Features are whatever `extractor` gives; the paper's are those of
InceptionV3.
"""

from dataclasses import dataclass

import numpy as np

from kzoo.explain.shapley_values import PAPER, ShapleyValues, shapley_values
from kzoo.metrics.frechet_distance import frechet_distance
from kzoo.papers import component


@dataclass(frozen=True)
class ComponentCredit:
    """Who brought the images near to the reference.

    Attributes:
        components: [n] names.
        shapley: `ShapleyValues`; positive for components that bring the images nearer. They add up
            to what all together took off the distance.
        distances: {coalition, a tuple of names: Fréchet distance to the reference}.
    """

    components: tuple
    shapley: ShapleyValues
    distances: dict

    @property
    def shares(self):
        """{name: share of what was gained}; NaN where nothing was gained or lost by all."""
        values = self.shapley.values
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(values.sum() != 0, values / values.sum(), np.nan)
        return dict(zip(self.components, shares.tolist(), strict=True))


@component(PAPER, not_served="it asks a utility of the caller, in Python")
class FrechetShapley:
    """Attribution of generated images to the components of the workflow that made them.

    Each coalition is generated once: the mean and covariance of its features are kept, also from
    one call to the next, so that other references cost no images.

    Args:
        components: names of the components.
        generate: `generate(coalition)` -> images [n, ...], n at least 2, made with these
            components alone; a coalition is a tuple of names in the order of `components`.
        extractor: `extractor(images)` -> features [n, d]. Defaults to the images themselves, as
            vectors.
        empty_distance: distance of the empty coalition, at least 0, for which `generate` is then
            not called. None to call it with ().
        permutations: number of random orders for an estimate; None for the exact values, which
            generate 2^components sets.
        seed: int, of the orders.

    Raises:
        ValueError: for arguments out of range.

    Example:

    >>> attribute = FrechetShapley(["base", "lora", "prompt"], generate, extractor)
    >>> attribute(artworks).shares
    {'base': 0.1, 'lora': 0.8, 'prompt': 0.1}

    Reference:
        Zhou et al. (2023), arxiv.org/abs/2311.12847
    """

    def __init__(
        self, components, generate, extractor=None, empty_distance=None, permutations=None, seed=0
    ):
        self.components = tuple(components)
        if not self.components or len(set(self.components)) < len(self.components):
            raise ValueError(
                f"`components` must be one or more different names. Received: {components!r}"
            )
        if empty_distance is not None and not empty_distance >= 0:
            raise ValueError(
                f"`empty_distance` must be None or at least 0. Received: {empty_distance!r}"
            )
        self.generate = generate
        self.extractor = extractor or _flatten
        self.empty_distance = empty_distance
        self.permutations = permutations
        self.seed = seed
        self._moments = {}

    def __call__(self, reference):
        """Attributes the likeness to `reference`, images [n, ...], n at least 2.

        Returns:
            `ComponentCredit`.
        """
        target = self._moments_of(reference, "reference")
        distances = {}

        def utility(numbers):
            coalition = tuple(self.components[i] for i in numbers)
            distances[coalition] = self._distance(coalition, target)
            return -distances[coalition]

        shapley = shapley_values(utility, len(self.components), self.permutations, self.seed)
        return ComponentCredit(self.components, shapley, distances)

    def _distance(self, coalition, target):
        if not coalition and self.empty_distance is not None:
            return float(self.empty_distance)
        if coalition not in self._moments:
            images = self.generate(coalition)
            self._moments[coalition] = self._moments_of(images, f"generate({coalition})")
        return float(frechet_distance(*self._moments[coalition], *target))

    def _moments_of(self, images, what):
        """Mean and unbiased covariance of the features."""
        features = np.asarray(self.extractor(images), "float64")
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"The features of `{what}` must be [n, d] with n of at least 2. Received: "
                f"{list(features.shape)}"
            )
        return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def _flatten(images):
    images = np.asarray(images)
    return images.reshape(len(images), -1)
