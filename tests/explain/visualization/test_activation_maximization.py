import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter

from kzoo.explain.visualization import (
    Objective,
    activation_maximization,
    center_biased_mask,
    channel,
    class_logit,
    class_model,
    direction,
    neuron,
)
from kzoo.explain.visualization.transforms import gaussian_blur, random_shift

pytestmark = pytest.mark.paper(
    "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps"
)


def linear(kernel, activation=None):
    model = keras.Sequential(
        [keras.Input([len(kernel)]), keras.layers.Dense(kernel.shape[1], activation)]
    )
    model.set_weights([kernel, np.full(kernel.shape[1], 0.3, "float32")])
    return model


def template_model(template):
    """The score <template, image> of images [height, width, 1]."""
    image = keras.Input([*template.shape, 1])
    flat = keras.layers.Flatten()(image)
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(image, dense(flat))
    dense.set_weights([template.reshape(-1, 1)])
    return model


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input([8, 10, 3]),
            keras.layers.Conv2D(4, 3, activation="relu", name="features"),
            keras.layers.GlobalAveragePooling2D(name="pooled"),
            keras.layers.Dense(5, "softmax"),
        ]
    )


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_the_class_model_of_a_linear_network_is_known(rng, activation):
    """d/dx (w.x + b - l |x - m|^2) = 0 at x = m + w / (2 l), for all classes at once."""
    kernel = rng.normal(size=(6, 4)).astype("float32")
    mean = rng.normal(size=6)
    sgd = keras.optimizers.SGD(0.5)
    result = class_model(
        linear(kernel, activation), [2, 0], l2=0.25, mean=mean, steps=60, optimizer=sgd
    )
    np.testing.assert_allclose(result["images"], mean + kernel.T[[2, 0]] / 0.5, atol=1e-4)
    logits = result["images"].numpy() @ kernel + 0.3
    np.testing.assert_allclose(result["activations"][-1], [logits[0, 2], logits[1, 0]], rtol=1e-4)
    np.testing.assert_allclose(result["activations"][0], (mean @ kernel + 0.3)[[2, 0]], rtol=1e-4)
    assert int(sgd.iterations) == 0, "the caller's optimizer is left alone"


def test_two_steps_by_hand():
    """a = 3 x, l2 = 1, lr = 0.1: 0 -> 0.3 -> 0.3 + 0.1 (3 - 0.6) = 0.54."""
    model = linear(np.array([[3.0]], "float32"))
    result = class_model(model, 0, l2=1.0, steps=2, optimizer=keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(result["images"], [[0.54]], rtol=1e-6)
    np.testing.assert_allclose(result["activations"][:, 0], [0.3, 1.2, 1.92], rtol=1e-6)


def test_float64_models_stay_in_float64(float64):
    result = class_model(linear(np.ones([2, 1])), 0, l2=0.5, steps=3)
    assert result["images"].dtype == result["activations"].dtype == tf.float64


def test_what_objectives_measure(cnn, rng):
    images = tf.constant(rng.normal(size=(4, 8, 10, 3)), tf.float32)
    target = [1, 0, 0, 1]
    features = cnn.get_layer("features")(images).numpy()
    pooled = features.mean((1, 2))
    rows = np.arange(4)
    unit = neuron(cnn, "features", [(1, 2, 3), (0, 5, 1)])
    np.testing.assert_allclose(
        unit(images, target),
        [features[0, 0, 5, 1], features[1, 1, 2, 3], features[2, 1, 2, 3], features[3, 0, 5, 1]],
    )
    assert unit.names == ("features[1, 2, 3]", "features[0, 5, 1]")
    np.testing.assert_allclose(
        channel(cnn, "features", [3, 2])(images, target), pooled[rows, [2, 3, 3, 2]], rtol=1e-5
    )
    np.testing.assert_allclose(neuron(cnn, "pooled", 3)(images, [0] * 4), pooled[:, 3], rtol=1e-5)
    logits = pooled @ cnn.layers[-1].kernel.numpy() + cnn.layers[-1].bias.numpy()
    np.testing.assert_allclose(
        class_logit(cnn, [4, 1])(images, target), logits[rows, [1, 4, 4, 1]], rtol=1e-5
    )


def test_direction_is_a_dot_product_times_a_power_of_the_cosine(cnn, rng):
    images = tf.constant(rng.normal(size=(2, 8, 10, 3)), tf.float32)
    vectors = np.abs(rng.normal(size=(2, 4)))
    output = cnn.get_layer("features")(images).numpy()
    for row, (vector, maps) in enumerate(zip(vectors, output, strict=True)):
        total = 0
        for f in maps.reshape(-1, 4):
            cosine = f @ vector / max(np.linalg.norm(f), 1e-12) / np.linalg.norm(vector)
            total += f @ vector * max(cosine, 0.1) ** 2
        scores = direction(cnn, "features", vectors)(images, [0, 1])
        np.testing.assert_allclose(scores[row], total / 48, rtol=1e-4)
    plain = direction(cnn, "features", vectors, cosine_power=0)(images, [0, 1])
    np.testing.assert_allclose(plain, np.sum(output.mean((1, 2)) * vectors, -1), rtol=1e-5)


def test_models_of_every_build_give_the_same(cnn):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = cnn

        def call(self, x):
            return self.inner(x)

    options = {"steps": 3, "shape": (8, 10, 3), "seed": 1}
    expected = activation_maximization(channel(cnn, "features", [0, 1]), **options)
    image = keras.Input([8, 10, 3])
    nested = keras.Model(image, cnn(image * 1.0))
    for model in (nested, Subclassed()):
        result = activation_maximization(channel(model, "features", [0, 1]), **options)
        np.testing.assert_allclose(result["images"], expected["images"], atol=1e-6)
    expected = class_model(cnn, 2, steps=3)["images"]
    np.testing.assert_allclose(class_model(nested, 2, steps=3)["images"], expected, atol=1e-6)
    fresh = Subclassed()
    images = class_model(fresh, 2, steps=3, shape=(8, 10, 3))["images"]
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_a_target_is_optimised_as_if_it_were_alone(cnn):
    options = {"steps": 5, "jitter": 2, "noise": 0.0, "mean": 0.5, "blur": (1.0, 0.0)}
    together = activation_maximization(class_logit(cnn, [0, 3]), **options)
    alone = activation_maximization(class_logit(cnn, 3), **options)
    np.testing.assert_allclose(together["images"][1:], alone["images"], atol=1e-5)
    np.testing.assert_allclose(together["activations"][:, 1:], alone["activations"], atol=1e-5)


def test_the_seed_decides(cnn):
    goal = channel(cnn, "features", 0)
    first, again, other = (
        activation_maximization(goal, steps=3, jitter=3, seed=seed)["images"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_normalised_steps_do_not_depend_on_the_scale_of_the_network(rng):
    """One SGD step of size 0.1 changes a pixel by 0.1 g / mean |g|."""
    template = rng.normal(size=(4, 5)).astype("float32")
    options = {"steps": 1, "noise": 0.0, "normalize": True, "optimizer": keras.optimizers.SGD(0.1)}
    for scale in (1, 1000):
        goal = class_logit(template_model(scale * template), 0)
        image = activation_maximization(goal, **options)["images"][0, ..., 0]
        np.testing.assert_allclose(image, 0.1 * template / np.abs(template).mean(), rtol=1e-5)


def test_the_window_grows_from_the_centre():
    template = np.ones([8, 8], "float32")
    goal = class_logit(template_model(template), 0)
    options = {"noise": 0.0, "optimizer": keras.optimizers.SGD(1.0), "window": (0.5, 1.0)}
    first = activation_maximization(goal, steps=1, **options)["images"][0, ..., 0].numpy()
    expected = np.zeros([8, 8])
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(first, expected)
    # After three steps, with windows of 4, 6 and 8 pixels, a ring has as many steps as it was in.
    third = activation_maximization(goal, steps=3, **options)["images"][0, ..., 0].numpy()
    np.testing.assert_array_equal(third[4], [1, 2, 3, 3, 3, 3, 2, 1])
    assert center_biased_mask(9, 7, 1.0).numpy().all()


def test_total_variation_flattens_and_bounds_hold(rng):
    template = rng.normal(size=(8, 8)).astype("float32")
    goal = class_logit(template_model(template), 0)
    options = {"steps": 40, "optimizer": keras.optimizers.SGD(0.05), "bounds": (-1, 1)}
    rough = activation_maximization(goal, **options)["images"]
    smooth = activation_maximization(goal, total_variation=0.3, **options)["images"]
    assert np.all(tf.image.total_variation(smooth) < 0.5 * tf.image.total_variation(rough))
    assert np.max(np.abs(rough)) == 1


def test_blur_is_scipys(rng):
    images = rng.normal(size=(2, 9, 12, 3))
    for sigma in (0.0, 0.4, 1.5):
        expected = gaussian_filter(
            images, [0, sigma, sigma, 0], mode="reflect", radius=[0, 6, 6, 0]
        )
        np.testing.assert_allclose(
            gaussian_blur(tf.constant(images), sigma, 2.0), expected, atol=1e-9
        )


def test_jitter_shifts_all_images_alike(rng):
    images = rng.normal(size=(2, 5, 6, 1))
    seen = set()
    for step in range(40):
        shifted = random_shift(tf.constant(images), 1, [0, step]).numpy()
        shift = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if np.array_equal(shifted, np.roll(images, (down, right), (1, 2)))
        ]
        seen.add(*shift)
    assert len(seen) == 9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"l2": -1}, "`l2` must be at least 0"),
        ({"total_variation": -1}, "`total_variation` must be at least 0"),
        ({"jitter": 1.5}, "`jitter` must be an integer"),
        ({"blur": (1, 2, 3)}, "`blur` must be a number or a pair"),
        ({"blur": -1}, "`blur` must be at least 0"),
        ({"window": 0.0}, "`window` must be in"),
        ({"bounds": (1, 0)}, "`bounds` must be"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"shape": (4, 4, 3)}, "`shape` must fit"),
        ({"start": np.zeros([3, 8, 10, 3])}, "`start` must be one image"),
    ],
)
def test_bad_arguments_are_refused(cnn, options, says):
    with pytest.raises(ValueError, match=says):
        activation_maximization(class_logit(cnn, [0, 1]), **options)


def test_bad_objectives_are_refused(cnn):
    goals = {
        "`classes` must be inside": class_logit(cnn, 5),
        "`units` must index": neuron(cnn, "features", 3),
        "`units` must be inside": neuron(cnn, "features", (6, 0, 0)),
        "`vectors` must have one value": direction(cnn, "features", [1.0, 2.0]),
        "no gradient": Objective(cnn, lambda images, target: tf.zeros(1), ["nothing"]),
    }
    for says, goal in goals.items():
        with pytest.raises(ValueError, match=says):
            activation_maximization(goal, steps=1)
    with pytest.raises(ValueError, match="Did you mean 'features'"):
        channel(cnn, "featurs", 0)
    with pytest.raises(ValueError, match="`channels` must be indices"):
        channel(cnn, "features", -1)
    with pytest.raises(ValueError, match="other than zero"):
        direction(cnn, "features", np.zeros(4))
    with pytest.raises(ValueError, match="for images"):
        activation_maximization(class_logit(linear(np.ones([2, 1])), 0), jitter=1)
