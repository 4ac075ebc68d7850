import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kzoo.data import load
from kzoo.data.block_mnist import block_linear, block_mnist

pytestmark = pytest.mark.paper("Do Input Gradients Highlight Discriminative Features?")


@pytest.fixture(scope="module")
def digits():
    return load("digits", test_fraction=0)


def blocks(source):
    """Upper and lower blocks, each [num_examples, pixels]."""
    return source.features.reshape(source.num_examples, 2, -1).transpose(1, 0, 2)


def test_the_mask_picks_out_the_digits_and_leaves_the_null(digits):
    null = np.full([8, 8], 0.5)
    source, signal = block_mnist(digits.features, digits.labels, null, seed=1, split="test")
    assert source.features.shape == (1797, 16, 8, 1)
    assert source.split == "test"
    np.testing.assert_array_equal(source.features[signal].reshape(1797, 8, 8, 1), digits.features)
    assert (source.features[~signal] == 0.5).all()
    np.testing.assert_array_equal(source.labels, digits.labels)


def test_position_is_random_and_independent_of_the_class(digits):
    _, signal = block_mnist(digits.features, digits.labels)
    on_top = signal[:, 0, 0]
    for digit in range(10):
        # About 180 examples a class: three standard errors are 0.11.
        assert abs(on_top[digits.labels == digit].mean() - 0.5) < 0.12
    for position, top in (("top", True), ("bottom", False)):
        _, signal = block_mnist(digits.features, digits.labels, position=position)
        assert (signal[:, :8] == top).all()
        assert (signal[:, 8:] != top).all()


def test_nothing_in_the_null_block_tells_the_class(digits):
    # Nulls that look like digits, drawn whatever the class: a classifier is at chance on them.
    source, signal = block_mnist(digits.features, digits.labels, null=digits.features[:200])
    null = source.features[~signal].reshape(1797, -1)
    half = 900
    accuracy = {}
    for name, x in (("null", null), ("signal", source.features[signal].reshape(1797, -1))):
        classifier = LogisticRegression(max_iter=200).fit(x[:half], source.labels[:half])
        accuracy[name] = classifier.score(x[half:], source.labels[half:])
    assert abs(accuracy["null"] - 0.1) < 0.03
    assert accuracy["signal"] > 0.85


def test_the_default_null_is_one_hollow_square(digits):
    source, _ = block_mnist(digits.features[:5], digits.labels[:5], position="top")
    null = blocks(source)[1]
    assert (null == null[0]).all()
    assert null[0].reshape(8, 8)[2:6, 2:6].tolist() == [
        [1, 1, 1, 1],
        [1, 0, 0, 1],
        [1, 0, 0, 1],
        [1, 1, 1, 1],
    ]
    assert null[0].sum() == 12


def test_simplified_version_is_the_formula():
    source, signal = block_linear(400, num_blocks=6, block_size=5, noise=0.2, seed=3)
    x = source.features.reshape(400, 6, 5)
    inside = signal.reshape(400, 6, 5)
    where = inside[:, :, 0].argmax(axis=1)
    assert (inside.all(axis=2) == inside.any(axis=2)).all()
    assert set(where) == {0, 1, 2}
    sign = 2 * source.labels - 1
    rest = x.copy()
    rest[np.arange(400), where] -= (sign / np.sqrt(5))[:, np.newaxis]
    radius = np.linalg.norm(rest, axis=2) / 0.2
    assert radius.max() <= 1 + 1e-5
    # Uniform in the ball of five dimensions: P(radius < 0.8) = 0.8^5 = 0.328.
    assert abs(np.mean(radius < 0.8) - 0.8**5) < 0.03


def test_signal_of_the_simplified_version_separates_the_classes():
    direction = np.array([3.0, -4.0])
    source, signal = block_linear(200, 4, 2, noise=0.5, direction=direction)
    along = source.features[signal].reshape(200, 2) @ direction / 5
    assert ((along > 0) == (source.labels == 1)).all()


def test_errors_name_the_argument(digits):
    with pytest.raises(ValueError, match="`position` must be one of .* Received: 'left'"):
        block_mnist(digits.features, digits.labels, position="left")
    with pytest.raises(ValueError, match="`null` must be one image of the shape .* Received"):
        block_mnist(digits.features, digits.labels, null=np.zeros([4, 4]))
    with pytest.raises(ValueError, match="`images` must have the shape"):
        block_mnist(np.zeros([3, 4]), [0, 1, 2])
    with pytest.raises(ValueError, match="`num_blocks` must be even and positive. Received: 3"):
        block_linear(10, 3)
    with pytest.raises(ValueError, match="`direction` must be 16 numbers"):
        block_linear(10, direction=np.zeros(16))
