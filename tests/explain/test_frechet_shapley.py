import numpy as np
import pytest

from kzoo.explain.frechet_shapley import FrechetShapley

pytestmark = pytest.mark.paper(
    "CopyScope: Model-level Copyright Infringement Quantification in the Diffusion Workflow"
)

COMPONENTS = ("base", "lora", "prompt")
STEPS = {"base": [0.0, 0, 1], "lora": [5.0, 5, 0], "prompt": [0.5, 0, 0]}


@pytest.fixture
def noise(rng):
    return rng.normal(size=(400, 3))


@pytest.fixture
def generate(noise):
    """A pipeline in which each component shifts the images, and counts its runs."""

    def run(coalition):
        run.coalitions.append(coalition)
        return noise + sum((np.array(STEPS[name]) for name in coalition), np.zeros(3))

    run.coalitions = []
    return run


def test_shifts_by_hand(generate, noise):
    # The covariances are equal, so the distance is the squared one of the means. Between components
    # that move along axes of their own the gains add up: base 1, prompt and lora share a product.
    target = np.array([5.5, 5, 1])
    credit = FrechetShapley(COMPONENTS, generate)(noise + target)
    gain = {name: target**2 - (target - np.array(STEPS[name])) ** 2 for name in COMPONENTS}
    shared = -2 * 5 * 0.5
    expected = [gain["base"].sum(), gain["lora"].sum(), gain["prompt"].sum()]
    expected[1] += shared / 2
    expected[2] += shared / 2
    np.testing.assert_allclose(credit.shapley.values, expected, rtol=1e-6)
    assert credit.distances[()] == pytest.approx((target**2).sum())
    assert credit.distances[COMPONENTS] == pytest.approx(0, abs=1e-9)
    assert sum(credit.shares.values()) == pytest.approx(1)


def test_the_component_that_moves_to_the_reference_gets_the_credit(rng):
    def generate(coalition):
        images = rng.normal(size=(500, 2, 2, 1)) * (1.2 if "base" in coalition else 1.3)
        return images + 4 * ("lora" in coalition)

    reference = rng.normal(size=(500, 2, 2, 1)) + 4
    shares = FrechetShapley(COMPONENTS, generate)(reference).shares
    assert shares["lora"] > 0.8
    assert abs(shares["prompt"]) < 0.05
    sampled = FrechetShapley(COMPONENTS, generate, permutations=20)(reference)
    assert sampled.shares["lora"] > 0.8


def test_coalitions_are_generated_once_for_all_references(generate, noise):
    attribute = FrechetShapley(COMPONENTS, generate)
    near = attribute(noise + np.array([5, 5, 0]))
    far = attribute(noise + np.array([0, 0, 1]))
    assert len(generate.coalitions) == len(set(generate.coalitions)) == 8
    assert max(near.shares, key=near.shares.get) == "lora"
    assert far.shapley.values[1] < 0 < far.shapley.values[0]


def test_features_and_the_distance_of_nothing(generate, noise):
    seen = []

    def extractor(images):
        seen.append(images.shape)
        return images[:, :1]

    attribute = FrechetShapley(COMPONENTS, generate, extractor, empty_distance=40.0)
    credit = attribute(noise + np.array([5, 5, 0]))
    assert () not in generate.coalitions
    assert len(seen) == 8
    # Along the first axis alone: 40 at the start, (5 - 5.5)^2 in the end.
    assert credit.shapley.values.sum() == pytest.approx(40 - 0.25)


def test_nothing_gained_has_no_shares(noise):
    credit = FrechetShapley(["a"], lambda coalition: noise)(noise + 1)
    assert np.isnan(credit.shares["a"])


def test_errors_name_the_argument(generate, noise):
    with pytest.raises(ValueError, match="`components` must be one or more different names"):
        FrechetShapley(["a", "a"], generate)
    with pytest.raises(ValueError, match="`empty_distance` must be None or at least 0"):
        FrechetShapley(["a"], generate, empty_distance=-1)
    with pytest.raises(ValueError, match=r"features of `reference` must be .* Received: \[1, 3\]"):
        FrechetShapley(COMPONENTS, generate)(noise[:1])
