import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models import feature_pyramid
from kzoo.models.poincare_resnet import PoincareResNet, PoincareResNet20, preprocess_input

pytestmark = pytest.mark.paper("Poincaré ResNet")


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return PoincareResNet(8, widths=(4, 6, 8), input_shape=(8, 8, 1), classifier_activation=None)


def expected_parameters(depth, widths, classes):
    blocks, channels = (depth - 2) // 6, 3
    norm = lambda width: width + 1  # noqa: E731
    total = 9 * channels * widths[0] + widths[0] + norm(widths[0])
    channels = widths[0]
    for width in widths:
        for _ in range(blocks):
            total += 9 * channels * width + width + norm(width)
            total += 9 * width * width + width + norm(width)
            if channels != width:
                total += channels * width + width
            channels = width
    return total + channels * classes + classes


def test_parameters():
    model = PoincareResNet20(classes=100)
    actual = sum(int(np.prod(w.shape)) for w in model.trainable_variables)
    assert actual == expected_parameters(20, (8, 16, 32), 100)


def test_all_feature_maps_are_inside_the_ball(small, rng):
    names = [layer.name for layer in small.layers if "Poincare" in type(layer).__name__]
    outputs = [small.get_layer(name).output for name in names if name != "logits"]
    maps = keras.Model(small.inputs, outputs)(
        tf.constant(100 * rng.normal(size=(2, 8, 8, 1)), tf.float32), training=True
    )
    for each in maps:
        assert np.sqrt(0.1) * np.linalg.norm(each, axis=-1).max() <= 1 - 3.9e-3


def test_stages_and_pyramid(small):
    shapes = {name: output.shape[1:] for name, output in feature_pyramid(small).output.items()}
    assert shapes == {"P0": (8, 8, 4), "P1": (4, 4, 6), "P2": (2, 2, 8)}


def test_without_top_and_of_any_size(rng):
    body = PoincareResNet(
        8, (4, 6, 8), include_top=False, pooling="avg", input_shape=(None, None, 3)
    )
    assert body(rng.normal(size=(2, 9, 7, 3))).shape == (2, 8)


def test_a_step_lowers_the_loss(small, rng):
    x, y = rng.uniform(-1, 1, size=(16, 8, 8, 1)).astype("float32"), rng.integers(0, 10, 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(0.01)

    def step():
        with tf.GradientTape() as tape:
            value = loss(y, small(x, training=True))
        weights = small.trainable_variables
        optimizer.apply(tape.gradient(value, weights), weights)
        return value

    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_preprocessing():
    np.testing.assert_allclose(preprocess_input(np.array([0, 255])), [-1.0, 1.0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 21}, "20 and 26"),
        ({"depth": 8, "widths": (4, 0, 8)}, "`widths`"),
        ({"depth": 8, "widths": (4, 8)}, "the nearest are 6 and 10"),
        ({"depth": 8, "curvature": 0}, "`curvature`"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PoincareResNet(**kwargs)
