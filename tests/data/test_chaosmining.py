import numpy as np
import pytest

from kzoo.data.chaosmining import chaosmining_audio, chaosmining_symbolic, chaosmining_vision
from kzoo.data.formulas import FORMULAS, Formula

pytestmark = pytest.mark.paper(
    "ChaosMining: A Benchmark to Evaluate Post-Hoc Local Attribution Methods in Low SNR "
    "Environments"
)

# The authors' list, in NumPy.
REFERENCE = {
    7: lambda a, b, c: 0.5 * a**3 + 0.75 * b**2 + a * c,
    8: lambda a, b, c, d: 0.5 * np.e**a * np.sin(b) - 0.25 * np.cos(d) ** 5 / (c**2 + 1),
    9: lambda a, b, c, d, e: 0.5 * (a - b) ** 2 + 0.2 * (c + d * e) ** 3 - 0.5,
    10: lambda a, b, c, d, e, f: (
        0.5 * np.cos(a) * np.tan(b) - np.log((c - d) ** 2 + 1) / ((e + f + 1) ** 2 + 1)
    ),
    11: lambda a, b, c, d, e, f, g: (
        0.5 * (b - c) ** 2 / (a**2 + 1) + np.tan(d) * np.log(e**2 + 1) + 0.5 * np.cos(f) * np.sin(g)
    ),
    13: lambda a, b, c, d, e, f, g, h, i: (
        0.5 * (a - 1) / (b**2 + 1)
        - 0.5 * c**3 / (d**2 + 1)
        + 0.5 * e**5 / (f**2 + 1)
        - 0.5 * g**7 / (h**2 + 1)
        + 0.5 * np.tan(i)
        + 0.5
    ),
    14: lambda a, b, c, d, e, f, g, h, i, j: (
        0.5 * np.sin(a)
        - 0.5 * b**3
        - np.log(c**2 + 1)
        + 0.5 * ((d + e) ** 2 + 1) ** 0.5
        - 0.5 * np.cos(f) * g
        + h * i**2 / ((1 - j) ** 2 + 1)
        - 0.5
    ),
}


@pytest.mark.parametrize("number", REFERENCE)
def test_formulas_are_the_authors(rng, number):
    formula = FORMULAS[number]
    x = rng.uniform(-1, 1, (7, formula.num_features))
    np.testing.assert_allclose(formula(x), REFERENCE[number](*x.T), rtol=1e-12)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.text)
def test_true_attributions(rng, formula):
    x = rng.uniform(-0.9, 0.9, (4, formula.num_features))
    step = 1e-6 * np.eye(formula.num_features)
    slopes = [(formula(x + s) - formula(x - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(formula.derivatives(x), np.stack(slopes, axis=1), atol=1e-7)
    gain = formula(x) - formula(np.zeros_like(x))
    np.testing.assert_allclose(formula.integrals(x).sum(axis=1), gain, atol=1e-9)


def test_attributions_of_a_product_by_hand():
    # f = a b at (2, 3): derivatives (3, 2); integrals 2 * int 3t dt = 3 and 3; ablations 6 and 6.
    product = Formula(2, "ab", lambda a, b: a * b)
    x = np.array([[2.0, 3.0]])
    np.testing.assert_allclose(product.derivatives(x), [[3, 2]])
    np.testing.assert_allclose(product.integrals(x), [[3, 3]])
    np.testing.assert_allclose(product.ablations(x), [[6, 6]])


def test_symbolic_targets_come_from_the_first_columns_alone():
    source, relevant = chaosmining_symbolic(7, num_irrelevant=5, num_examples=2000, seed=2)
    assert source.features.shape == relevant.shape == (2000, 8)
    np.testing.assert_array_equal(relevant[0], [True] * 3 + [False] * 5)
    noise = source.labels - REFERENCE[7](*source.features[:, :3].astype(float).T)
    assert abs(noise.std() - 0.01) < 1e-3
    assert abs(source.features.std() - 0.33) < 0.01
    assert np.abs(source.features).max() == 1
    wide, _ = chaosmining_symbolic(7, 0, 2000, scale=1.0, clip=None, noise=0.0)
    assert np.abs(wide.features).max() > 2.5


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_vision_puts_the_foreground_where_the_mask_is(rng, dtype):
    pictures = rng.integers(0, 256, (40, 3, 4, 2)).astype(dtype)
    source, relevant = chaosmining_vision(pictures, np.arange(40) % 2, size=9)
    assert source.features.shape == (40, 9, 9, 2)
    assert source.features.dtype == dtype
    np.testing.assert_array_equal(source.features[relevant].reshape(pictures.shape), pictures)
    corners = {tuple(np.argwhere(mask)[0]) for mask in relevant}
    assert max(row for row, _ in corners) == 6
    assert max(column for _, column in corners) == 5
    assert len(corners) > 15


def test_vision_fixed_position_and_structural_background(rng):
    backgrounds = rng.random((3, 8, 8, 1))
    source, relevant = chaosmining_vision(
        np.full([20, 4, 4, 1], 7.0), np.zeros(20, int), 8, backgrounds, position="fixed"
    )
    assert relevant[:, 2:6, 2:6].all()
    assert relevant.sum() == 20 * 16
    outside = [image[~mask] for image, mask in zip(source.features, relevant, strict=True)]
    known = [background[~relevant[0]] for background in backgrounds]
    which = [[np.array_equal(o, k) for k in known].index(True) for o in outside]
    assert set(which) == {0, 1, 2}


def test_audio_has_one_voiced_channel(rng):
    voices = rng.uniform(-1, 1, (50, 30)).astype("float32")
    source, relevant = chaosmining_audio(voices, np.zeros(50, int), num_channels=4)
    assert source.features.shape == relevant.shape == (50, 30, 4)
    assert (relevant.sum(axis=2) == 1).all()
    assert (relevant == relevant[:, :1]).all()
    np.testing.assert_array_equal(source.features[relevant].reshape(50, 30), voices)
    assert set(relevant[:, 0].argmax(axis=1)) == {0, 1, 2, 3}
    assert abs(source.features[~relevant].std() - 0.25) < 0.01
    _, fixed = chaosmining_audio(voices, np.zeros(50, int), 4, position="fixed")
    assert fixed[:, :, 0].all()


def test_audio_backgrounds_are_pieces_at_full_volume():
    ramp = np.arange(100.0)[np.newaxis] / 50
    source, relevant = chaosmining_audio(np.zeros([9, 10]), np.zeros(9, int), 3, ramp)
    sound = source.features.transpose(0, 2, 1)[~relevant[:, 0]]
    loud = np.quantile(ramp, 0.99)
    inner = sound[(sound < 1).all(axis=1)]
    np.testing.assert_allclose(np.diff(inner, axis=1), 0.02 / loud, atol=1e-6)
    assert sound.max() <= 1


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`formula` must be a Formula or a number in 0..14"):
        chaosmining_symbolic(15)
    with pytest.raises(ValueError, match="`num_irrelevant` must be at least 0. Received: -1"):
        chaosmining_symbolic(0, -1)
    with pytest.raises(ValueError, match="`foregrounds` must have the shape"):
        chaosmining_vision(np.zeros([2, 9, 9, 1]), [0, 1], size=8)
    with pytest.raises(ValueError, match="`background` must have the shape"):
        chaosmining_vision(np.zeros([2, 4, 4, 1]), [0, 1], 8, np.zeros([3, 7, 7, 1]))
    with pytest.raises(ValueError, match="`position` must be one of fixed, random"):
        chaosmining_audio(np.zeros([2, 5]), [0, 1], position="left")
    with pytest.raises(ValueError, match=r"`x` must have the shape \[batch, 2\]"):
        FORMULAS[6].derivatives(np.zeros([3, 5]))
