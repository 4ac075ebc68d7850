"""Images from a recogniser and the statistics of its batch normalisations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kzoo.analysis.batch_norm_inversion import batch_norm_inversion
from kzoo.analysis.batch_norm_statistics import batch_norm_statistics_loss
from kzoo.data.builtin import digits
from kzoo.layers.arcface import ArcFaceHead
from kzoo.losses.arcface import ArcFaceLoss

pytestmark = pytest.mark.paper("ArcFace: Additive Angular Margin Loss for Deep Face Recognition")
OPTIONS = {"steps": 150, "learning_rate": 0.05, "seed": 1}


@pytest.fixture(scope="module")
def body():
    """The embedding of a recogniser of digits, nested in `recogniser`."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Conv2D(16, 3, strides=2, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(16),
        ]
    )


@pytest.fixture(scope="module")
def recogniser(body):
    model = keras.Sequential([body, ArcFaceHead(10, scale=16.0)])
    train = digits("train")
    model.compile(keras.optimizers.Adam(0.01), ArcFaceLoss(16.0))
    model.fit(train.features, train.labels, 64, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def inverted(recogniser):
    return batch_norm_inversion(recogniser, np.arange(10), **OPTIONS)


def one_batch_norm(axis=-1):
    """Identity in front of the statistics, so that they are those of the images."""
    inputs = keras.Input((3, 2))
    norm = layers.BatchNormalization(axis=axis)
    model = keras.Model(inputs, layers.Flatten()(norm(inputs)))
    norm.moving_mean.assign(np.linspace(-1, 1, norm.moving_mean.shape[0]))
    norm.moving_variance.assign(np.linspace(0.5, 3, norm.moving_mean.shape[0]))
    return model, norm


@pytest.mark.parametrize(("axis", "others"), [(-1, (0, 1)), (1, (0, 2))])
@pytest.mark.usefixtures("float64")
def test_statistics_loss_is_equation_8(rng, axis, others):
    model, norm = one_batch_norm(axis)
    images = rng.normal(size=(5, 3, 2))
    expected = np.sum((images.mean(others) - np.asarray(norm.moving_mean)) ** 2)
    expected += np.sum((images.std(others) - np.sqrt(norm.moving_variance)) ** 2)
    loss = batch_norm_statistics_loss(model, tf.constant(images))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_statistics_loss_by_hand():
    inputs = keras.Input((1,))
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs))
    norm.moving_mean.assign([1.0])
    norm.moving_variance.assign([4.0])
    # The batch has the mean 2 and the standard deviation 1: (2 - 1)^2 + (1 - 2)^2.
    assert float(batch_norm_statistics_loss(model, [[1.0], [3.0]])) == pytest.approx(2.0)


def test_layers_add_up_and_are_left_as_they_were(rng):
    inputs = keras.Input((4,))
    first, second = layers.BatchNormalization(), layers.BatchNormalization()
    inner = keras.Sequential([keras.Input((4,)), second])
    model = keras.Model(inputs, inner(2.0 * first(inputs)))
    images = rng.normal(2, 3, size=(6, 4)).astype("float32")
    before = [layer.get_weights() for layer in (first, second)]
    each = [
        np.sum(x.mean(0) ** 2 + (x.std(0) - 1) ** 2)
        for x in (images, 2 * images / np.sqrt(1 + first.epsilon))
    ]
    np.testing.assert_allclose(batch_norm_statistics_loss(model, images), sum(each), rtol=1e-5)
    assert "call" not in first.__dict__
    for weights, layer in zip(before, (first, second), strict=True):
        np.testing.assert_array_equal(weights, layer.get_weights())


def test_gradient_of_equal_images_is_finite():
    model, _ = one_batch_norm()
    images = tf.zeros([4, 3, 2])
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = batch_norm_statistics_loss(model, images)
    assert np.isfinite(tape.gradient(loss, images)).all()


@pytest.mark.usefixtures("float64")
def test_steps_are_adam_on_the_sum_of_all_terms(rng):
    inputs = keras.Input((3, 3, 1))
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, layers.Flatten()(norm(inputs)))
    goal = rng.normal(size=(2, 9))

    def terms(x):
        out = x.reshape(2, 9) / np.sqrt(1 + norm.epsilon)
        return np.mean(np.sum((out - goal) ** 2, 1)), x.mean() ** 2 + (x.std() - 1) ** 2

    def total(x):
        variation = np.abs(np.diff(x, axis=1)).sum() + np.abs(np.diff(x, axis=2)).sum()
        norms = np.linalg.norm(x.reshape(2, 9), axis=1)
        return np.dot(terms(x), [1.0, 0.7]) + 0.2 * variation / 2 + 0.3 * norms.mean()

    expected = np.random.default_rng(3).normal(size=(2, 3, 3, 1))
    first, second, before = 0.0, 0.0, []
    for step in (1, 2, 3):
        before.append(terms(expected))
        gradient = numeric_gradient(total, expected)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**step))
        expected = expected - 0.1 * first / (1 - 0.9**step) / root
    weights = {"statistics_weight": 0.7, "total_variation_weight": 0.2, "norm_weight": 0.3}
    found = batch_norm_inversion(model, goal, steps=3, learning_rate=0.1, seed=3, **weights)
    np.testing.assert_allclose(found.images, expected, atol=1e-4)
    np.testing.assert_allclose(
        np.stack([found.identity_loss, found.statistics_loss], 1), before, rtol=1e-3
    )


def numeric_gradient(function, x, delta=1e-6):
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = delta
        gradient[index] = (function(x + step) - function(x - step)) / (2 * delta)
    return gradient


def test_images_are_of_their_classes(recogniser, inverted):
    predicted = recogniser.predict(inverted.images, verbose=0).argmax(-1)
    np.testing.assert_array_equal(predicted, np.arange(10))
    assert inverted.identity_loss[-1] < 0.1 * inverted.identity_loss[0]
    assert inverted.statistics_loss[-1] < 0.2 * inverted.statistics_loss[0]


def test_prior_keeps_the_statistics(recogniser, inverted):
    free = batch_norm_inversion(recogniser, np.arange(10), statistics_weight=0.0, **OPTIONS)
    assert inverted.statistics_loss[-1] < 0.2 * free.statistics_loss[-1]


def test_seed_and_class_decide(recogniser, inverted):
    short = OPTIONS | {"steps": 5}
    first, again = (batch_norm_inversion(recogniser, [3, 4], **short).images for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other_seed = batch_norm_inversion(recogniser, [3, 4], **short | {"seed": 2}).images
    assert np.abs(first - other_seed).max() > 0.1
    # The same noise, drawn to another class.
    other_class = batch_norm_inversion(recogniser, [3, 5], **short).images
    assert np.abs(first[1] - other_class[1]).max() > 0.1


def test_reaches_embeddings_of_the_open_set(body, recogniser):
    images = digits("test").features[:10]
    goal = body.predict(images, verbose=0)
    found = batch_norm_inversion(body, goal, **OPTIONS)
    reached = body.predict(found.images, verbose=0)
    cosines = np.sum(reached * goal, 1) / np.linalg.norm(reached, axis=1)
    assert np.min(cosines / np.linalg.norm(goal, axis=1)) > 0.95


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_any_loss_open_sizes_and_16_bit(policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((None, None, 2)),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = batch_norm_inversion(model, [2, 0], loss, steps=3, shape=(5, 4, 2))
    assert found.images.shape == (2, 5, 4, 2)
    assert found.images.dtype == "float32"
    assert found.statistics_loss.shape == (3,)


def test_bad_models():
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="`model` must have `keras.layers.BatchNormalization`"):
        batch_norm_inversion(plain, [0])
    normed = keras.Sequential([keras.Input((2,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="`loss` must be given"):
        batch_norm_inversion(normed, [0], total_variation_weight=0)
    with pytest.raises(ValueError, match="`total_variation_weight` must be 0"):
        batch_norm_inversion(normed, [0])
    x, y = keras.Input((2,)), keras.Input((2,))
    two = keras.Model([x, y], layers.BatchNormalization()(x + y))
    with pytest.raises(ValueError, match="one input and one output"):
        batch_norm_inversion(two, [0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": [10]}, r"`targets` must be classes in \[0, 10\)"),
        ({"targets": [-1]}, r"`targets` must be classes in \[0, 10\)"),
        ({"targets": np.zeros((2, 16))}, "`targets` must be embeddings of the size"),
        ({"targets": []}, r"`targets` must be \[n\] integers"),
        ({"targets": np.zeros((2, 10)), "loss": "mse"}, "`loss` must be None"),
        ({"steps": 0}, "`steps` must"),
        ({"learning_rate": 0.0}, "`learning_rate` must"),
        ({"statistics_weight": -1.0}, "`statistics_weight` must"),
        ({"norm_weight": float("nan")}, "`norm_weight` must"),
        ({"shape": (8, 9, 1)}, "`shape` must"),
    ],
)
def test_bad_arguments(recogniser, changed, message):
    with pytest.raises(ValueError, match=message):
        batch_norm_inversion(recogniser, **{"targets": [0], **changed})
