import keras
import numpy as np
import pytest
import tensorflow as tf

import kzoo.models
from kzoo.models import DenseNet, DenseNet121, DenseNet264, DenseNetBC, load_torch_weights
from kzoo.models.densenet import preprocess_input, torchvision_name

pytestmark = pytest.mark.paper("Densely Connected Convolutional Networks")


TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def norm(channels):
    return 2 * channels


def cifar_parameters(depth, growth, compression=None, classes=10):
    """Trainable parameters: convolutions without bias, BN's gamma and beta, a dense layer."""
    bottleneck = compression is not None
    layers = (depth - 4) // (6 if bottleneck else 3)
    channels = 2 * growth if bottleneck else 16
    total = 27 * channels
    for block in range(3):
        for _ in range(layers):
            total += norm(channels)
            if bottleneck:
                total += 4 * growth * channels + norm(4 * growth) + 36 * growth * growth
            else:
                total += 9 * channels * growth
            channels += growth
        total += norm(channels)
        if block < 2:
            kept = int(channels * compression) if bottleneck else channels
            total += channels * kept
            channels = kept
    return total + (channels + 1) * classes


@pytest.mark.parametrize(
    ("depth", "growth", "compression", "published"),
    [
        (40, 12, None, 1_019_722),
        (100, 12, None, 6_979_642),
        (100, 12, 0.5, 769_162),
        (250, 24, 0.5, 15_324_406),
        (190, 40, 0.5, 25_624_430),
    ],
)
def test_cifar_parameters_as_published(depth, growth, compression, published):
    assert cifar_parameters(depth, growth, compression) == published
    # The large nets are only counted; the constructors are the same with fewer layers.
    if compression is None:
        built, depth = DenseNet(min(depth, 40), growth), min(depth, 40)
    else:
        built, depth = DenseNetBC(min(depth, 40), growth, compression), min(depth, 40)
    assert count(built.trainable_variables) == cifar_parameters(depth, growth, compression)


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [
        ("DenseNet121", 8_062_504, 7_978_856),
        ("DenseNet169", 14_307_880, 14_149_480),
        ("DenseNet201", 20_242_984, 20_013_928),
        ("DenseNet161", 28_900_936, 28_681_000),
    ],
)
def test_imagenet_parameters_as_published(name, total, trainable):
    model = getattr(kzoo.models, name)()
    assert model.count_params() == total
    assert count(model.trainable_variables) == trainable


def test_densenet264_has_the_blocks_of_table_1():
    names = [layer.name for layer in DenseNet264(input_shape=(32, 32, 3)).layers]
    layers = [
        sum(f"conv{stage}_" in name and name.endswith("_2_conv") for name in names)
        for stage in (2, 3, 4, 5)
    ]
    assert layers == [6, 12, 64, 48]


@pytest.fixture(scope="module")
def pair():
    """Ours and that of keras.applications, with the same weights, none of them trivial."""
    rng = np.random.default_rng(1)
    theirs = keras.applications.DenseNet121(weights=None, input_shape=(64, 64, 3))
    weights = [
        rng.uniform(0.5, 1.5, each.shape) if each.ndim == 1 else each
        for each in theirs.get_weights()
    ]
    theirs.set_weights(weights)
    ours = DenseNet121(input_shape=(64, 64, 3), classifier_activation=None)
    ours.set_weights(theirs.get_weights())
    return ours, theirs


def test_weights_of_keras_applications_give_their_outputs(pair, rng):
    ours, theirs = pair
    images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    probabilities = keras.ops.softmax(ours(images))
    np.testing.assert_allclose(probabilities, theirs(images), atol=1e-5)
    assert [v.shape for v in ours.trainable_variables] == [
        v.shape for v in theirs.trainable_variables
    ]


def test_layers_are_named_as_in_keras_applications(pair):
    ours, theirs = ([v.path.split("/")[0] for v in model.variables] for model in pair)
    assert ours == theirs


def test_imagenet_weights_are_those_of_keras_applications(monkeypatch):
    original = keras.applications.DenseNet121
    asked = []

    def download(include_top, weights):
        asked.append((include_top, weights))
        return original(include_top=include_top, weights=None)

    monkeypatch.setattr(keras.applications, "DenseNet121", download)
    keras.utils.set_random_seed(7)
    model = DenseNet121(weights="imagenet", include_top=False, input_shape=(32, 32, 3))
    assert asked == [(False, "imagenet")]
    # That the random weights of `download` came in shows in Keras's own initialiser.
    limit = np.sqrt(6 / (49 * 3 + 49 * 64))
    kernel = model.get_layer("conv1_conv").get_weights()[0]
    assert 0.98 * limit < np.abs(kernel).max() <= limit


def test_every_layer_sees_every_earlier_one_directly():
    model = DenseNet(16, 2, input_shape=(8, 8, 3))
    # With kernels of zero and offsets of one only the direct connections pass a gradient, and
    # each of them passes it unchanged but for the batch norm's 1 / sqrt(1 + epsilon).
    for variable in model.variables:
        if variable.name in ("kernel", "beta"):
            variable.assign(keras.ops.full(variable.shape, float(variable.name == "beta")))
    sources = ["conv1_conv"] + [f"conv2_block{i}_1_conv" for i in range(1, 5)]
    targets = [f"conv2_block{i}_0_relu" for i in range(1, 5)]
    outputs = [model.get_layer(name).output for name in sources + targets]
    inner = keras.Model(model.input, outputs)
    with tf.GradientTape(persistent=True) as tape:
        image = tf.ones((1, 8, 8, 3))
        tape.watch(image)
        maps = inner(image, training=False)
    direct = 0
    for layer, target in enumerate(maps[5:], 1):
        for earlier, source in enumerate(maps[:5]):
            gradient = tape.gradient(target, source)
            if earlier < layer:
                np.testing.assert_allclose(gradient, (1 + 1.001e-5) ** -0.5, rtol=1e-6)
                direct += 1
            else:
                assert gradient is None
    assert direct == 4 * 5 // 2


def test_digits_of_8x8x1_train(rng):
    model = DenseNetBC(10, 4, input_shape=(8, 8, 1))
    images, labels = rng.normal(size=(16, 8, 8, 1)), np.arange(16) % 10
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    losses = model.fit(images, labels, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]


def test_keras_file_round_trip(tmp_path, rng):
    model = DenseNetBC(10, 4, input_shape=(8, 8, 3), dropout_rate=0.2)
    images = rng.normal(size=(3, 8, 8, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    again = DenseNetBC(
        10, 4, input_shape=(8, 8, 3), dropout_rate=0.2, weights=tmp_path / "model.keras"
    )
    np.testing.assert_array_equal(again(images), model(images))


@pytest.mark.parametrize(
    ("pooling", "shape"), [(None, (2, 2, 2, 9)), ("avg", (2, 9)), ("max", (2, 9))]
)
def test_body_without_top(pooling, shape):
    # Three layers of 4 maps: 8 + 4, halved, + 4, halved, + 4.
    model = DenseNetBC(10, 4, include_top=False, pooling=pooling, input_shape=(8, 8, 3))
    assert (2, *model.output_shape[1:]) == shape


def test_starts_at_an_input_tensor(rng):
    images = keras.Input((8, 8, 1))
    model = DenseNetBC(10, 4, input_tensor=keras.layers.Rescaling(1 / 16)(images))
    assert model.input is images
    assert model(rng.normal(size=(2, 8, 8, 1))).shape == (2, 10)


def test_logits_and_float32_output_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = DenseNetBC(10, 4, input_shape=(8, 8, 3), classifier_activation=None)
    assert model.get_layer("predictions").activation is keras.activations.linear
    assert model(rng.normal(size=(2, 8, 8, 3))).dtype == tf.float32


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_preprocessing_keeps_the_callers_array(rng, kind):
    images = rng.integers(0, 256, size=(2, 4, 4, 3)).astype(kind)
    before = images.copy()
    expected = (before / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess_input(images), expected, atol=1e-5)
    np.testing.assert_allclose(preprocess_input(tf.constant(images)), expected, atol=1e-5)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenseNet(41, 12), "`depth` must be 3 n .* 40 and 43. Received: 41"),
        (lambda: DenseNetBC(3, 12), "`depth` must be 6 n .* 10 and 16. Received: 3"),
        (lambda: DenseNetBC(10, 0), "`growth_rate` must be a positive integer. Received: 0"),
        (lambda: DenseNetBC(10, 4, compression=1.5), r"`compression` must be in \(0, 1\]"),
        (lambda: DenseNetBC(10, 4, dropout_rate=1.0), r"`dropout_rate` must be in \[0, 1\)"),
        (lambda: DenseNetBC(10, 4, input_shape=(3, 8, 1)), "`input_shape` must .* least 4"),
        (lambda: DenseNet121(input_shape=(16, 16, 3)), "`input_shape` must .* least 32"),
        (lambda: DenseNet121(input_shape=(64, 64)), "`input_shape` must be .height, width"),
        (lambda: DenseNetBC(10, 4, classes=0), "`classes` must be a positive integer"),
        (lambda: DenseNetBC(10, 4, pooling="mean"), '`pooling` must be None, "avg" or "max"'),
        (lambda: DenseNetBC(10, 4, weights="imagenet"), "exists for DenseNet121, DenseNet169"),
        (lambda: DenseNet121(weights="imagenet", classes=10), "`classes` must be 1000"),
        (
            lambda: DenseNet121(weights="imagenet", input_shape=(64, 64, 1)),
            "need 3 channels. Received: 1",
        ),
        (lambda: DenseNetBC(10, 4, weights="absent.keras"), "existing .keras or .weights.h5 file"),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("old", [False, True])
def test_names_of_torchvision(old):
    """The layout of `torchvision.models.densenet121().state_dict()`, and of its older files."""
    model = DenseNet121(input_shape=(32, 32, 3), classes=5)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"features.conv0.weight", "classifier.weight", "classifier.bias"}
    expected |= {f"features.norm{i}.{each}" for i in (0, 5) for each in norm}
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            parent, dot = f"features.denseblock{block}.denselayer{layer}", "." if old else ""
            for i in (1, 2):
                expected.add(f"{parent}.conv{dot}{i}.weight")
                expected |= {f"{parent}.norm{dot}{i}.{each}" for each in norm}
        if block < 4:
            parent = f"features.transition{block}"
            expected |= {f"{parent}.conv.weight", *(f"{parent}.norm.{each}" for each in norm)}
    rng = np.random.default_rng(0)
    state = dict.fromkeys(expected)
    for weight in model.weights:
        layer, kind = weight.path.split("/")
        names = torchvision_name(layer)
        module = names if isinstance(names, str) else names[1 if old else 0]
        key = f"{module}.{TORCH_WEIGHTS[kind]}"
        assert key in expected
        shape = tuple(weight.shape)
        order = (3, 2, 0, 1) if len(shape) == 4 else tuple(range(len(shape)))[::-1]
        state[key] = rng.uniform(0.5, 1.5, np.transpose(np.empty(shape), order).shape)
    assert {key for key, value in state.items() if value is None} == {
        key for key in expected if key.endswith("num_batches_tracked")
    }
    load_torch_weights(model, state, torchvision_name)
    kernel = model.get_layer("conv3_block2_2_conv").kernel
    key = "features.denseblock2.denselayer2.conv" + (".2.weight" if old else "2.weight")
    np.testing.assert_allclose(np.transpose(kernel, (3, 2, 0, 1)), state[key], rtol=1e-6)
