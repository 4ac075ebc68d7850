import functools

import keras
import numpy as np
import pytest

from kzoo.models.feature_pyramid import feature_pyramid
from kzoo.models.inception_blocks import dropout_head
from kzoo.models.inception_resnet import InceptionResNetV1, InceptionResNetV2
from kzoo.models.inception_resnet import timm_name as resnet_timm_name
from kzoo.models.inception_v4 import InceptionV4, preprocess_input
from kzoo.models.inception_v4 import timm_name as v4_timm_name
from kzoo.models.torch_weights import load_torch_weights

pytestmark = pytest.mark.paper(
    "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"
)

TINY = {"width": 1 / 32, "input_shape": (None, None, 3), "classes": 5, "blocks": (2, 1, 2)}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.fixture(scope="module")
def v4():
    return InceptionV4()


@pytest.fixture(scope="module")
def resnet_pair():
    """Ours by way of weights="imagenet", and the net of keras.applications that it asked for."""
    rng = np.random.default_rng(1)
    theirs = keras.applications.InceptionResNetV2(
        weights=None, input_shape=(75, 75, 3), classifier_activation=None
    )
    weights = theirs.get_weights()
    theirs.set_weights([rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else w for w in weights])

    def download(include_top, weights):
        assert (include_top, weights) == (True, "imagenet")
        return theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "InceptionResNetV2", download)
        ours = InceptionResNetV2(
            weights="imagenet", input_shape=(75, 75, 3), classifier_activation=None
        )
    return ours, theirs


@pytest.fixture(scope="module")
def tiny():
    """Small nets for images of any size."""
    return {build: build(**TINY) for build in (InceptionV4, InceptionResNetV1, InceptionResNetV2)}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).normal(size=(2, 75, 75, 3)).astype("float32")


# Parameters, maps and depths as published.


def test_parameters_of_v4_as_published(v4):
    assert count(v4.trainable_variables) == 42_679_816


def test_maps_of_v4_as_in_figure_9(v4):
    maps = {level: each.shape[1:] for level, each in feature_pyramid(v4).output.items()}
    assert maps == {
        "P1": (147, 147, 64),
        "P2": (71, 71, 192),
        "P3": (35, 35, 384),
        "P4": (17, 17, 1024),
        "P5": (8, 8, 1536),
    }


def test_parameters_of_resnet_v2_as_published(resnet_pair):
    ours, _ = resnet_pair
    assert count(ours.trainable_variables) == 55_813_192
    assert ours.count_params() == 55_873_736
    norms = [each for each in ours.layers if isinstance(each, keras.layers.BatchNormalization)]
    # timm's count, in which every batch norm has a gamma.
    assert 55_813_192 + sum(each.beta.shape[0] for each in norms) == 55_843_464


def norm_conv(channels, steps):
    """Parameters of convolutions of (filters, taps) with BN one after the other."""
    total = 0
    for filters, taps in steps:
        total += channels * filters * taps + 2 * filters
        channels = filters
    return total


def residual(channels, *branches):
    joined = sum(steps[-1][0] for steps in branches)
    convs = sum(norm_conv(channels, steps) for steps in branches)
    return convs + joined * channels + channels


def resnet_v1_parameters():
    """5, 10 and 5 blocks, by figures 14, 10, 7, 11, 12 and 13 of the paper."""
    stem = norm_conv(3, [(32, 9), (32, 9), (64, 9), (80, 1), (192, 9), (256, 9)])
    a = residual(256, [(32, 1)], [(32, 1), (32, 9)], [(32, 1), (32, 9), (32, 9)])
    to_b = norm_conv(256, [(384, 9)]) + norm_conv(256, [(192, 1), (192, 9), (256, 9)])
    b = residual(896, [(128, 1)], [(128, 1), (128, 7), (128, 7)])
    to_c = (
        norm_conv(896, [(256, 1), (384, 9)])
        + norm_conv(896, [(256, 1), (256, 9)])
        + norm_conv(896, [(256, 1), (256, 9), (256, 9)])
    )
    c = residual(1792, [(192, 1)], [(192, 1), (192, 3), (192, 3)])
    return stem + 5 * a + to_b + 10 * b + to_c + 5 * c


def resnet_v2_parameters():
    """5, 10 and 5 blocks, by figures 3, 16, 7, 17, 18 and 19 of the paper."""
    stem = (
        norm_conv(3, [(32, 9), (32, 9), (64, 9), (96, 9)])
        + norm_conv(160, [(64, 1), (96, 9)])
        + norm_conv(160, [(64, 1), (64, 7), (64, 7), (96, 9)])
        + norm_conv(192, [(192, 9)])
    )
    a = residual(384, [(32, 1)], [(32, 1), (32, 9)], [(32, 1), (48, 9), (64, 9)])
    to_b = norm_conv(384, [(384, 9)]) + norm_conv(384, [(256, 1), (256, 9), (384, 9)])
    b = residual(1152, [(192, 1)], [(128, 1), (160, 7), (192, 7)])
    to_c = (
        norm_conv(1152, [(256, 1), (384, 9)])
        + norm_conv(1152, [(256, 1), (288, 9)])
        + norm_conv(1152, [(256, 1), (288, 9), (320, 9)])
    )
    c = residual(2144, [(192, 1)], [(192, 1), (224, 3), (256, 3)])
    return stem + 5 * a + to_b + 10 * b + to_c + 5 * c


@pytest.mark.parametrize(
    ("build", "parameters", "channels"),
    [
        (InceptionResNetV1, resnet_v1_parameters, (256, 896, 1792)),
        (
            functools.partial(InceptionResNetV2, layout="paper", batch_norm_scale=True),
            resnet_v2_parameters,
            (384, 1152, 2144),
        ),
    ],
)
def test_parameters_and_maps_of_the_papers_resnets(build, parameters, channels):
    body = build(include_top=False)
    assert count(body.trainable_variables) == parameters()
    maps = feature_pyramid(body).output
    for level, size, depth in zip(("P3", "P4", "P5"), (35, 17, 8), channels, strict=True):
        assert maps[level].shape == (None, size, size, depth)


# The functions that the nets compute.


def test_weights_of_keras_applications_give_their_outputs(resnet_pair, rng):
    ours, theirs = resnet_pair
    images = rng.normal(size=(2, 75, 75, 3)).astype("float32")
    logits = theirs(images)
    assert np.std(logits) > 0.1
    np.testing.assert_allclose(ours(images), logits, atol=1e-4 * np.abs(logits).max())


def inner(model, *names):
    return keras.Model(model.input, [model.get_layer(name).output for name in names])


def test_scale_0_makes_a_block_the_identity(images):
    model = InceptionResNetV1(**TINY, scales=(0, 0, 0), include_top=False)
    before, one, two = inner(model, "conv5a_relu", "block35_1_out", "block35_2_out")(images)
    assert np.max(before) > 0
    np.testing.assert_array_equal(one, before)
    np.testing.assert_array_equal(two, before)


@pytest.mark.parametrize(
    ("block", "before", "scale"),
    [
        ("block35_2", "block35_1_out", 0.17),
        ("block17_1", "mixed6a_mixed", 0.1),
        ("block8_1", "mixed7a_mixed", 0.2),
    ],
)
def test_a_block_adds_a_fraction_of_a_linear_convolution(tiny, images, block, before, scale):
    model = tiny[InceptionResNetV1]
    convolution = model.get_layer(f"{block}_up_conv")
    convolution.bias.assign(keras.random.normal(convolution.bias.shape, 0, 9, seed=3))
    x, mixed, out = inner(model, before, f"{block}_mixed", f"{block}_out")(images)
    kernel, bias = convolution.get_weights()
    expected = x + scale * (np.asarray(mixed) @ kernel[0, 0] + bias)
    assert np.min(expected) < 0
    np.testing.assert_allclose(out, np.maximum(expected, 0), atol=1e-5)


def test_last_block_of_the_authors_code_is_neither_scaled_nor_rectified(tiny, images):
    names = ("block8_1_out", "block8_2_up_conv", "block8_2_out")
    x, residual, out = inner(tiny[InceptionResNetV2], *names)(images)
    assert np.min(out) < 0
    np.testing.assert_allclose(out, x + residual, atol=1e-6)


def test_dropout_comes_before_the_classifier():
    maps = keras.Input((2, 3, 400))
    head = keras.Model(maps, dropout_head(0.2)(maps, 5))
    pooled, dropped = inner(head, "avg_pool", "dropout")(np.ones((4, 2, 3, 400)), training=True)
    kept = np.asarray(dropped) != 0
    assert 0.75 < kept.mean() < 0.85
    np.testing.assert_allclose(dropped[kept], 1.25 * pooled[kept], rtol=1e-5)
    kernel, bias = head.get_layer("logits").get_weights()
    expected = np.ones((1, 400)) @ kernel + bias
    np.testing.assert_allclose(head(np.ones((1, 2, 3, 400))), expected, rtol=1e-4)


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert dropout_head(0.2)(keras.Input((2, 2, 3)), 5).dtype == "float32"


@pytest.mark.parametrize("build", [InceptionV4, InceptionResNetV1, InceptionResNetV2])
def test_any_size_from_75_on(tiny, build):
    body = feature_pyramid(tiny[build])
    for (height, width), size in {(75, 75): (1, 1), (139, 107): (3, 2)}.items():
        assert body(np.zeros((1, height, width, 3), "float32"))["P5"].shape[1:3] == size
    with pytest.raises(ValueError, match="`input_shape` must .* least 75"):
        build(**{**TINY, "input_shape": (74, 75, 3)})


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_preprocessing_keeps_the_callers_array(rng, kind):
    images = rng.integers(0, 256, size=(2, 4, 4, 3)).astype(kind)
    before = images.copy()
    np.testing.assert_allclose(preprocess_input(images), before / 127.5 - 1.0, atol=1e-6)
    np.testing.assert_array_equal(images, before)


# The layout of timm's checkpoints, written down from its models: {module: (out, in, height, width)}


def modules(prefix, channels, steps, first=0):
    """A sequence of convolutions (filters, height, width), the first of them number `first`."""
    found = {}
    for number, (filters, height, width) in enumerate(steps, first):
        found[f"{prefix}.{number}"] = (filters, channels, height, width)
        channels = filters
    return found


def timm_v4():
    c = {f"features.{i}": shape for i, shape in enumerate([(32, 3, 3, 3), (32, 32, 3, 3)])}
    c |= {"features.2": (64, 32, 3, 3), "features.3.conv": (96, 64, 3, 3)}
    c |= modules("features.4.branch0", 160, [(64, 1, 1), (96, 3, 3)])
    c |= modules("features.4.branch1", 160, [(64, 1, 1), (64, 1, 7), (64, 7, 1), (96, 3, 3)])
    c |= {"features.5.conv": (192, 192, 3, 3)}
    for i in range(6, 10):
        c |= {f"features.{i}.branch0": (96, 384, 1, 1)}
        c |= modules(f"features.{i}.branch1", 384, [(64, 1, 1), (96, 3, 3)])
        c |= modules(f"features.{i}.branch2", 384, [(64, 1, 1), (96, 3, 3), (96, 3, 3)])
        c |= modules(f"features.{i}.branch3", 384, [(96, 1, 1)], first=1)
    c |= {"features.10.branch0": (384, 384, 3, 3)}
    c |= modules("features.10.branch1", 384, [(192, 1, 1), (224, 3, 3), (256, 3, 3)])
    for i in range(11, 18):
        long = [(192, 1, 1), (192, 7, 1), (224, 1, 7), (224, 7, 1), (256, 1, 7)]
        c |= {f"features.{i}.branch0": (384, 1024, 1, 1)}
        c |= modules(f"features.{i}.branch1", 1024, [(192, 1, 1), (224, 1, 7), (256, 7, 1)])
        c |= modules(f"features.{i}.branch2", 1024, long)
        c |= modules(f"features.{i}.branch3", 1024, [(128, 1, 1)], first=1)
    long = [(256, 1, 1), (256, 1, 7), (320, 7, 1), (320, 3, 3)]
    c |= modules("features.18.branch0", 1024, [(192, 1, 1), (192, 3, 3)])
    c |= modules("features.18.branch1", 1024, long)
    for i in range(19, 22):
        c |= {
            f"features.{i}.branch0": (256, 1536, 1, 1),
            f"features.{i}.branch1_0": (384, 1536, 1, 1),
            f"features.{i}.branch1_1a": (256, 384, 1, 3),
            f"features.{i}.branch1_1b": (256, 384, 3, 1),
            f"features.{i}.branch2_0": (384, 1536, 1, 1),
            f"features.{i}.branch2_1": (448, 384, 3, 1),
            f"features.{i}.branch2_2": (512, 448, 1, 3),
            f"features.{i}.branch2_3a": (256, 512, 1, 3),
            f"features.{i}.branch2_3b": (256, 512, 3, 1),
            f"features.{i}.branch3.1": (256, 1536, 1, 1),
        }
    return norm_modules(c) | {"last_linear.weight": (1000, 1536), "last_linear.bias": (1000,)}


def timm_resnet_v2():
    stem = {"1a": (32, 3, 3, 3), "2a": (32, 32, 3, 3), "2b": (64, 32, 3, 3)}
    stem |= {"3b": (80, 64, 1, 1), "4a": (192, 80, 3, 3), "7b": (1536, 2080, 1, 1)}
    c = {f"conv2d_{place}": shape for place, shape in stem.items()}
    c |= {"mixed_5b.branch0": (96, 192, 1, 1)}
    c |= modules("mixed_5b.branch1", 192, [(48, 1, 1), (64, 5, 5)])
    c |= modules("mixed_5b.branch2", 192, [(64, 1, 1), (96, 3, 3), (96, 3, 3)])
    c |= modules("mixed_5b.branch3", 192, [(64, 1, 1)], first=1)
    ups = {}
    for i in range(10):
        c |= {f"repeat.{i}.branch0": (32, 320, 1, 1)}
        c |= modules(f"repeat.{i}.branch1", 320, [(32, 1, 1), (32, 3, 3)])
        c |= modules(f"repeat.{i}.branch2", 320, [(32, 1, 1), (48, 3, 3), (64, 3, 3)])
        ups[f"repeat.{i}.conv2d"] = (320, 128)
    c |= {"mixed_6a.branch0": (384, 320, 3, 3)}
    c |= modules("mixed_6a.branch1", 320, [(256, 1, 1), (256, 3, 3), (384, 3, 3)])
    for i in range(20):
        c |= {f"repeat_1.{i}.branch0": (192, 1088, 1, 1)}
        c |= modules(f"repeat_1.{i}.branch1", 1088, [(128, 1, 1), (160, 1, 7), (192, 7, 1)])
        ups[f"repeat_1.{i}.conv2d"] = (1088, 384)
    c |= modules("mixed_7a.branch0", 1088, [(256, 1, 1), (384, 3, 3)])
    c |= modules("mixed_7a.branch1", 1088, [(256, 1, 1), (288, 3, 3)])
    c |= modules("mixed_7a.branch2", 1088, [(256, 1, 1), (288, 3, 3), (320, 3, 3)])
    for block in [f"repeat_2.{i}" for i in range(9)] + ["block8"]:
        c |= {f"{block}.branch0": (192, 2080, 1, 1)}
        c |= modules(f"{block}.branch1", 2080, [(192, 1, 1), (224, 1, 3), (256, 3, 1)])
        ups[f"{block}.conv2d"] = (2080, 448)
    state = norm_modules(c) | {"classif.weight": (1000, 1536), "classif.bias": (1000,)}
    for name, shape in ups.items():
        state |= {f"{name}.weight": (*shape, 1, 1), f"{name}.bias": shape[:1]}
    return state


def norm_modules(convolutions):
    state = {}
    for name, shape in convolutions.items():
        state[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = shape[:1]
    return state


def keys_of(model, names, state):
    """The key in the checkpoint of each weight, as `load_torch_weights` finds it."""
    kinds = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    kinds |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    keys = {}
    for weight in model.weights:
        layer, kind = weight.path.split("/")
        found = names(layer)
        found = (found,) if isinstance(found, str) else found
        keys[weight.path] = next(
            key for key in (f"{module}.{kinds[kind]}" for module in found) if key in state
        )
    return keys


def torch_shape(shape):
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else tuple(shape)


def test_names_and_shapes_of_timms_v4(v4):
    state = timm_v4()
    keys = keys_of(v4, functools.partial(v4_timm_name, (4, 7, 3)), state)
    assert sorted(keys.values()) == sorted(state)
    for weight in v4.weights:
        assert torch_shape(weight.shape) == state[keys[weight.path]]
    # Where shapes do not tell two branches from each other.
    for layer, key in {
        "inception_a4_branch2_0_conv": "features.9.branch2.0.conv.weight",
        "inception_a1_branch3_1_bn": "features.6.branch3.1.bn.weight",
        "inception_b1_branch1_0_conv": "features.11.branch1.0.conv.weight",
        "inception_b7_branch2_0_conv": "features.17.branch2.0.conv.weight",
        "inception_c2_branch1_0_conv": "features.20.branch1_0.conv.weight",
        "inception_c3_branch2_3b_conv": "features.21.branch2_3b.conv.weight",
    }.items():
        assert keys[v4.get_layer(layer).weights[0].path] == key


def test_names_and_shapes_of_timms_resnet_v2(resnet_pair):
    ours, _ = resnet_pair
    state = timm_resnet_v2()
    keys = keys_of(ours, functools.partial(resnet_timm_name, (10, 20, 10)), state)
    gammas = {name for name in state if name.endswith(".bn.weight")}
    assert sorted(keys.values()) == sorted(state.keys() - gammas)
    for weight in ours.weights:
        assert torch_shape(weight.shape) == state[keys[weight.path]]
    for layer, key in {
        "block35_10_branch1_0_conv": "repeat.9.branch1.0.conv.weight",
        "block17_20_up_conv": "repeat_1.19.conv2d.weight",
        "block8_9_branch0_0_conv": "repeat_2.8.branch0.conv.weight",
        "block8_10_up_conv": "block8.conv2d.weight",
        "mixed7a_branch1_0_conv": "mixed_7a.branch1.0.conv.weight",
    }.items():
        assert keys[ours.get_layer(layer).weights[0].path] == key


def test_loads_a_checkpoint_with_gammas(tiny, tmp_path, rng, images):
    numpy = pytest.importorskip("safetensors.numpy")
    source = InceptionResNetV2(**TINY, batch_norm_scale=True)
    names = functools.partial(resnet_timm_name, TINY["blocks"])
    keys = keys_of(source, names, timm_resnet_v2())
    for weight in source.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    state = {
        keys[weight.path]: np.ascontiguousarray(
            np.moveaxis(weight.numpy(), (-1, -2), (0, 1)) if len(weight.shape) > 1 else weight
        )
        for weight in source.weights
    }
    numpy.save_file(state, tmp_path / "net.safetensors")
    loaded = InceptionResNetV2(**TINY, weights=tmp_path / "net.safetensors")
    np.testing.assert_array_equal(loaded(images), source(images))
    with pytest.raises(ValueError, match="no weights for .*bn.weight"):
        load_torch_weights(tiny[InceptionResNetV2], state, names)


# Errors.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InceptionV4(blocks=(4, 7)), "`blocks` must be three integers of at least 0"),
        (lambda: InceptionV4(blocks=(4, -1, 3)), r"`blocks` must .* Received: \(4, -1, 3\)"),
        (lambda: InceptionResNetV2(blocks=(1, 1, 0)), "`blocks` must have a C block"),
        (lambda: InceptionV4(width=0), "`width` must be a positive number. Received: 0"),
        (lambda: InceptionV4(dropout_rate=1.0), r"`dropout_rate` must be in \[0, 1\)"),
        (lambda: InceptionV4(weights="imagenet"), "Received it for: inception_v4"),
        (lambda: InceptionV4(weights="absent.pth"), "existing .* .safetensors file. Received"),
        (lambda: InceptionResNetV1(scales=(0.1, 0.1)), "`scales` must be three numbers"),
        (lambda: InceptionResNetV1(scales=(0.1, -1, 0.1), **TINY), "`scale` must be a number"),
        (lambda: InceptionResNetV1(weights="imagenet"), "Received it for: inception_resnet_v1"),
        (lambda: InceptionResNetV2(layout="slim"), '`layout` must be "code" or "paper"'),
        (
            lambda: InceptionResNetV2(weights="imagenet", layout="paper"),
            r'need batch_norm_scale=False, layout="code", .* Received: .*layout=.paper.',
        ),
        (
            lambda: InceptionResNetV2(weights="imagenet", width=0.5),
            r"blocks=\(10, 20, 10\) and width=1. Received: .*width=0.5",
        ),
        (lambda: InceptionResNetV2(weights="imagenet", classes=10), "`classes` must be 1000"),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
