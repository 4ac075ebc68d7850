import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.models.cross_stage_partial import cross_stage_partial
from kzoo.models.csp_densenet import CSPDenseNet, partial_dense_stage
from kzoo.models.cspnet import (
    CSPDarkNet53,
    CSPNet,
    CSPResNet50,
    CSPResNeXt50,
    preprocess_input,
    timm_name,
)
from kzoo.models.densenet import DenseNetBC
from kzoo.models.feature_pyramid import feature_pyramid
from kzoo.models.torch_weights import load_torch_weights

pytestmark = pytest.mark.paper("CSPNet: A New Backbone that can Enhance Learning Capability of CNN")

# The layouts as timm has them: channels over those of the stage's output, of the 1x1 convolution
# before the split ("expand"), of a block's output ("block") and of its inside over that ("bottle").
RESNET = {"expand": [2.0], "block": [1.0], "bottle": [0.5], "grow": False, "linear": True}
RESNEXT = {"expand": [1.0], "block": [0.5], "bottle": [1.0], "grow": False, "linear": True}
DARKNET = {
    "expand": [2.0, 1.0],
    "block": [1.0, 0.5],
    "bottle": [0.5, 1.0],
    "grow": True,
    "linear": False,
}


class Timm:
    """timm's CspNet: shapes of its checkpoint, [out, in, height, width], and its function."""

    def __init__(self, kind, depths, widths, stem, groups=1, classes=1000):
        self.kind, self.depths, self.widths, self.stem = kind, depths, widths, stem
        self.groups, self.classes = groups, classes
        self.layout = {"resnet": RESNET, "resnext": RESNEXT, "darknet": DARKNET}[kind]
        self.dark = kind == "darknet"

    def ratio(self, key, stage):
        values = self.layout[key]
        return values[min(stage, len(values) - 1)]

    def shapes(self):
        found = {}

        def unit(name, inputs, outputs, size, groups=1):
            found[f"{name}.conv.weight"] = (outputs, inputs // groups, size, size)
            for part in ("weight", "bias", "running_mean", "running_var"):
                found[f"{name}.bn.{part}"] = (outputs,)
            return outputs

        last = unit("stem.conv1", 3, self.stem, 3 if self.dark else 7)
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if self.dark or i:
                down = width if self.layout["grow"] else last
                last = unit(f"stages.{i}.conv_down", last, down, 3, self.groups)
            half = unit(f"stages.{i}.conv_exp", last, int(width * self.ratio("expand", i)), 1) // 2
            last, out = half, int(width * self.ratio("block", i))
            inner = int(out * self.ratio("bottle", i))
            for j in range(depth):
                name = f"stages.{i}.blocks.{j}"
                unit(f"{name}.conv1", last, inner, 1)
                if self.dark:
                    last = unit(f"{name}.conv2", inner, out, 3)
                else:
                    unit(f"{name}.conv2", inner, inner, 3, self.groups)
                    last = unit(f"{name}.conv3", inner, out, 1)
            unit(f"stages.{i}.conv_transition_b", last, half, 1)
            last = unit(f"stages.{i}.conv_transition", 2 * half, width, 1)
        found |= {"head.fc.weight": (self.classes, last), "head.fc.bias": (self.classes,)}
        return found

    def logits(self, state, x):
        def unit(x, name, stride=1, groups=1, act=True):
            kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
            pad = [kernel.shape[0] // 2] * 2
            x = tf.pad(x, [[0, 0], pad, pad, [0, 0]])
            pairs = zip(tf.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
            x = tf.concat([tf.nn.conv2d(a, b, stride, "VALID") for a, b in pairs], -1)
            gamma, beta, mean, variance = (
                state[f"{name}.bn.{part}"]
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            x = (x - mean) / tf.sqrt(variance + 1e-5) * gamma + beta
            return tf.maximum(x, 0.01 * x) if act else x

        def block(x, name):
            if self.dark:
                return x + unit(unit(x, f"{name}.conv1"), f"{name}.conv2")
            y = unit(unit(x, f"{name}.conv1"), f"{name}.conv2", groups=self.groups)
            x = x + unit(y, f"{name}.conv3", act=False)
            return tf.maximum(x, 0.01 * x)

        x = unit(x, "stem.conv1", stride=1 if self.dark else 2)
        if not self.dark:
            x = tf.nn.max_pool2d(x, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
        for i, depth in enumerate(self.depths):
            if self.dark or i:
                x = unit(x, f"stages.{i}.conv_down", 2, self.groups)
            x = unit(x, f"stages.{i}.conv_exp", act=not self.layout["linear"])
            around, x = tf.split(x, 2, axis=-1)
            for j in range(depth):
                x = block(x, f"stages.{i}.blocks.{j}")
            x = unit(x, f"stages.{i}.conv_transition_b")
            x = unit(tf.concat([around, x], -1), f"stages.{i}.conv_transition")
        return tf.reduce_mean(x, [1, 2]) @ state["head.fc.weight"].T + state["head.fc.bias"]


PUBLISHED = [
    # Millions of parameters as timm lists them, 10^9 multiply-adds of 224x224 images as
    # mmpretrain's table has them (with some for norms and activations).
    (CSPResNet50, Timm("resnet", (3, 3, 5, 2), (128, 256, 512, 1024), 64), 21.62, 3.48),
    (CSPResNeXt50, Timm("resnext", (3, 3, 5, 2), (256, 512, 1024, 2048), 64, 32), 20.57, 3.11),
    (CSPDarkNet53, Timm("darknet", (1, 2, 8, 8, 4), (64, 128, 256, 512, 1024), 32), 27.64, 5.04),
]
SMALL = [
    ("resnet", (2, 1), (8, 16), 6, 1),
    ("resnext", (1, 2, 1), (8, 12, 16), 6, 2),
    ("darknet", (1, 2), (8, 12), 5, 1),
]


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def multiply_adds(model):
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    )


@pytest.mark.parametrize(("build", "timm", "parameters", "giga"), PUBLISHED)
def test_has_the_weights_of_timms_checkpoints(build, timm, parameters, giga):
    shapes = timm.shapes()
    model = build(input_shape=(224, 224, 3))
    trained = sum(np.prod(s) for name, s in shapes.items() if ".running" not in name)
    assert count(model.trainable_variables) == trained
    assert round(trained / 1e6, 2) == parameters
    assert 0.985 * giga < multiply_adds(model) / 1e9 < giga
    # Refuses a tensor without a weight, a weight without a tensor, and another shape.
    state = {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()}
    load_torch_weights(model, state, timm_name)
    assert all(np.all(weight == 0.5) for weight in model.get_weights())


@pytest.mark.parametrize(("kind", "depths", "widths", "stem", "groups"), SMALL)
def test_outputs_are_timms(kind, depths, widths, stem, groups, rng):
    timm = Timm(kind, depths, widths, stem, groups, classes=5)
    state = {name: rng.normal(size=shape) for name, shape in timm.shapes().items()}
    for name, value in state.items():
        if value.ndim > 1:
            value *= np.sqrt(2 / np.prod(value.shape[1:]))
        elif name.endswith("running_var"):
            value[:] = value**2 + 0.5
    state = {name: value.astype("float32") for name, value in state.items()}
    model = CSPNet(
        kind,
        depths,
        widths,
        stem,
        groups,
        classes=5,
        input_shape=(22, 17, 3),
        classifier_activation=None,
    )
    load_torch_weights(model, state, timm_name)
    images = rng.normal(size=(2, 22, 17, 3)).astype("float32")
    expected = timm.logits(state, images)
    np.testing.assert_allclose(model(images), expected, atol=1e-5 * np.abs(expected).max())


def test_blocks_begin_as_the_identity(rng):
    # The last scale of each block is 0 at first, so that only what it adds to is left.
    model = CSPNet("darknet", (2,), (8,), 4, input_shape=(8, 8, 3))
    names = ("stage1_block1_add", "stage1_block2_add")
    first, second = (model.get_layer(name).output for name in names)
    first, second = keras.Model(model.input, [first, second])(rng.normal(size=(1, 8, 8, 3)))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first).max() > 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            lambda: CSPNet("resnet", (1, 1), (4, 8), 4, include_top=False, input_shape=(33, 64, 3)),
            {"P2": (9, 16, 4), "P3": (5, 8, 8)},
        ),
        (
            lambda: CSPNet("darknet", (1, 1, 1), (4, 6, 8), 4, input_shape=(16, 40, 1)),
            {"P1": (8, 20, 4), "P2": (4, 10, 6), "P3": (2, 5, 8)},
        ),
        (
            lambda: CSPDenseNet(16, 4, gamma=0.25, input_shape=(16, 8, 3)),
            # 6 of 8 maps and 2 * 4; then (8 + 8) / 2 = 8 again, of which the last concatenates all.
            {"P0": (16, 8, 14), "P1": (8, 4, 14), "P2": (4, 2, 16)},
        ),
    ],
)
def test_feature_pyramid(body, expected):
    pyramid = feature_pyramid(body())
    assert {name: x.shape[1:] for name, x in pyramid.output.items()} == expected


def test_any_size_and_pooling_without_top():
    body = CSPNet(
        "resnext", (1, 1), (4, 8), 4, 2, False, pooling="max", input_shape=(None, None, 1)
    )
    assert body(np.ones((2, 1, 1, 1), "float32")).shape == (2, 8)
    assert body(np.ones((2, 19, 7, 1), "float32")).shape == (2, 8)


# CSPDenseNet


def bn_conv(model, x, bn, conv):
    """BN, ReLU and a convolution in plain operations, from the weights by name."""
    weights = {v.path: tf.constant(v) for v in model.variables}
    gamma, beta, mean, variance = (
        weights[f"{bn}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    x = tf.nn.relu((x - mean) / tf.sqrt(variance + 1.001e-5) * gamma + beta)
    return x if conv is None else tf.nn.conv2d(x, weights[f"{conv}/kernel"], 1, "SAME")


def halve(x):
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


def dense_reference(model, x, layers, around, fusion):
    """Equation 4 with `around` maps around the block of each stage."""
    x = tf.nn.conv2d(x, tf.constant(model.get_layer("conv1_conv").kernel), 1, "SAME")
    for stage, skipped in zip((2, 3, 4), around, strict=True):
        part, maps = x[..., :skipped], [x[..., skipped:]]
        for layer in range(1, layers + 1):
            name = f"conv{stage}_block{layer}"
            y = bn_conv(model, tf.concat(maps, -1), f"{name}_0_bn", f"{name}_1_conv")
            maps.append(bn_conv(model, y, f"{name}_1_bn", f"{name}_2_conv"))
        x = tf.concat(maps, -1)
        if stage < 4 and fusion != "first":
            name = f"conv{stage}_transition"
            x, part = halve(bn_conv(model, x, f"{name}_bn", f"{name}_conv")), halve(part)
        x = tf.concat([part, x], -1)
        if stage < 4 and fusion != "last":
            x = bn_conv(model, x, f"pool{stage}_bn", f"pool{stage}_conv")
            x = halve(x) if fusion == "first" else x
    return tf.reduce_mean(bn_conv(model, x, "bn", None), [1, 2])


def randomize(model, rng):
    for variable in model.variables:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


@pytest.mark.parametrize(
    ("fusion", "around"),
    # 0.8 of the stem's 10 maps; then of (10 + 8) // 2 and (9 + 8) // 2, as wide as the plain net,
    # or of what is concatenated, 8 + (2 + 8) // 2 and 10 + (3 + 8) // 2.
    [("first", (8, 7, 6)), ("both", (8, 7, 6)), ("last", (8, 10, 12))],
)
def test_densenet_is_equation_4(fusion, around, rng):
    model = CSPDenseNet(
        16, 4, 0.8, fusion, stem_filters=10, include_top=False, pooling="avg", input_shape=(8, 8, 3)
    )
    randomize(model, rng)
    images = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    expected = dense_reference(model, images, 2, around, fusion)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_gamma_of_0_is_the_plain_densenet(rng):
    kwargs = {"input_shape": (8, 8, 3), "dropout_rate": 0.1, "compression": 0.7}
    plain, ours = DenseNetBC(16, 4, **kwargs), CSPDenseNet(16, 4, 0, "first", **kwargs)
    assert [v.path for v in ours.weights] == [v.path for v in plain.weights]
    randomize(plain, rng)
    ours.set_weights(plain.get_weights())
    images = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(ours(images), plain(images))


def costs(layers, growth, stem, size, gamma, fusion, classes=10):
    """(parameters, multiply-adds) by the sum over layers, with theta = 1/2."""
    parameters = 27 * stem
    work, channels = parameters * size**2, stem

    def convolve(inputs, outputs, kernel, positions):
        nonlocal parameters, work
        parameters += 2 * inputs + kernel**2 * inputs * outputs
        work += kernel**2 * inputs * outputs * positions

    for stage in range(3):
        around = round(gamma * channels)
        inside, plain = channels - around, (channels + layers * growth) // 2
        for _ in range(layers):
            convolve(inside, 4 * growth, 1, size**2)
            convolve(4 * growth, growth, 3, size**2)
            inside += growth
        channels = around + inside
        if stage < 2:
            if fusion != "first":
                convolve(inside, inside // 2, 1, size**2)
                channels = around + inside // 2
            if fusion != "last":
                convolve(channels, plain, 1, size**2 if fusion == "first" else (size // 2) ** 2)
                channels = plain
            size //= 2
    return parameters + 2 * channels + (channels + 1) * classes, work + channels * classes


@pytest.mark.parametrize(("fusion", "bound"), [("both", 0.79), ("last", 0.78), ("first", 0.84)])
def test_densenet_saves_a_fifth(fusion, bound):
    # The paper's case: the input of a stage is much wider than the growth rate.
    model = CSPDenseNet(40, 12, fusion=fusion, stem_filters=96)
    parameters, work = costs(6, 12, 96, 32, 0.5, fusion)
    assert count(model.trainable_variables) == parameters
    assert multiply_adds(model) == work
    assert work / costs(6, 12, 96, 32, 0, "first")[1] <= bound


def test_saves_more_with_a_larger_gamma():
    work = [costs(6, 12, 96, 32, gamma, "both")[1] for gamma in (0, 0.25, 0.5, 0.75)]
    assert work == sorted(work, reverse=True)


def dense_stage(gamma, fusion, rng):
    inputs = keras.Input((4, 4, 8))
    outputs = partial_dense_stage(inputs, 3, 4, gamma, fusion, 0.5, 0.0, 2)
    model = keras.Model(inputs, outputs)
    randomize(model, rng)
    blocks = [layer.output for layer in model.layers if layer.name.endswith("_2_conv")]
    return model, keras.Model(inputs, [*blocks, model.get_layer("P0").output])


@pytest.mark.parametrize("fusion", ["both", "first", "last"])
def test_blocks_do_not_see_what_goes_around(fusion, rng):
    x = rng.normal(size=(2, 4, 4, 8)).astype("float32")
    other = np.concatenate([rng.normal(size=(2, 4, 4, 4)).astype("float32"), x[..., 4:]], -1)
    model, blocks = dense_stage(0.5, fusion, rng)
    assert len(blocks.outputs) == 4
    for mine, changed in zip(blocks(x), blocks(other), strict=True):
        np.testing.assert_array_equal(mine, changed)
    assert np.abs(model(x) - model(other)).max() > 0.1
    _, plain = dense_stage(0, fusion, rng)
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(plain(x), plain(other), strict=True))


def test_gradients_of_dense_layers_hold_nothing_of_what_goes_around(rng):
    x = rng.normal(size=(2, 4, 4, 8)).astype("float32")
    other = np.concatenate([rng.normal(size=(2, 4, 4, 4)).astype("float32"), x[..., 4:]], -1)

    def gradients(model, x, weighting):
        kernels = [v.value for v in model.trainable_variables if "block" in v.path]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) * weighting)
        return tape.gradient(loss, kernels)

    for gamma, same in ((0.5, True), (0, False)):
        model, _ = dense_stage(gamma, "last", rng)
        weighting = rng.normal(size=(2, 2, 2, model.output_shape[-1])).astype("float32")
        pairs = zip(gradients(model, x, weighting), gradients(model, other, weighting), strict=True)
        equal = [np.array_equal(a, b) for a, b in pairs]
        assert len(equal) == 18
        assert all(equal) == same


def test_cross_stage_partial_by_hand():
    inputs = keras.Input((1, 1, 5))
    doubled = cross_stage_partial(
        inputs,
        lambda y: 2 * y,
        gamma=0.4,
        partial_transition=lambda y: y + 1,
        transition=lambda y: -y,
        shortcut=lambda y: 10 * y,
    )
    outputs = keras.Model(inputs, doubled)(np.arange(5.0).reshape(1, 1, 1, 5))
    np.testing.assert_array_equal(np.ravel(outputs), [0, -10, -5, -7, -9])


@pytest.mark.parametrize(
    "build",
    [
        lambda: CSPNet("resnext", (1,), (16,), 8, 2, classes=10, input_shape=(8, 8, 1)),
        lambda: CSPDenseNet(10, 4, input_shape=(8, 8, 1)),
    ],
)
def test_trains(build, rng):
    model = build()
    images, labels = rng.normal(size=(16, 8, 8, 1)), np.arange(16) % 10
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    before = [np.array(v) for v in model.non_trainable_variables]
    losses = model.fit(images, labels, batch_size=16, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    after = model.non_trainable_variables
    assert all(np.any(new != old) for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_preprocessing_keeps_the_callers_array(rng, kind):
    images = rng.integers(0, 256, size=(2, 4, 4, 3)).astype(kind)
    before = images.copy()
    expected = (before / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess_input(images), expected, atol=1e-5)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CSPNet("dense", (1,), (8,)), "`block` must be one of resnet, resnext, darknet"),
        (lambda: CSPNet("resnet", (1, 0), (8, 8)), "`depths` must be positive integers"),
        (lambda: CSPNet("resnet", (), ()), "`depths` must be positive integers"),
        (lambda: CSPNet("resnet", (1, 1), (8,)), "one number for each stage"),
        (lambda: CSPNet("resnet", (1,), (8,), 2.5), "`stem_filters` must be positive integers"),
        (lambda: CSPNet("resnet", (1,), (7,)), "`widths` must be multiples of 2"),
        (lambda: CSPNet("resnext", (1,), (12,), groups=4), "`widths` must be multiples of 8"),
        (lambda: CSPNet("darknet", (1,), (8,), groups=2), '`groups` must be 1 unless .* "resnext"'),
        (lambda: CSPResNet50(input_shape=(0, 8, 3)), "`input_shape` must be .* at least 1"),
        (lambda: CSPResNet50(weights="imagenet"), "Received it for: cspresnet50"),
        (lambda: CSPResNet50(classes=0), "`classes` must be a positive integer"),
        (lambda: CSPDenseNet(12, 4), "`depth` must be 6 n .* 10 and 16. Received: 12"),
        (lambda: CSPDenseNet(10, 0), "`growth_rate` must be a positive integer"),
        (lambda: CSPDenseNet(10, 4, stem_filters=0), "`stem_filters` must be a positive integer"),
        (lambda: CSPDenseNet(10, 4, gamma=1), r"`gamma` must be in \[0, 1\). Received: 1"),
        (lambda: CSPDenseNet(10, 4, gamma=-0.5), r"`gamma` must be in \[0, 1\)"),
        (lambda: CSPDenseNet(10, 4, gamma=0.01), "of 8 channels it can be from 0.125 to 0.875"),
        (lambda: CSPDenseNet(10, 4, gamma=0.99), "`gamma` must leave a channel"),
        (lambda: CSPDenseNet(10, 4, fusion="none"), "`fusion` must be one of both, first, last"),
        (lambda: CSPDenseNet(10, 4, compression=0), r"`compression` must be in \(0, 1\]"),
        (lambda: CSPDenseNet(10, 4, dropout_rate=1), r"`dropout_rate` must be in \[0, 1\)"),
        (lambda: CSPDenseNet(10, 4, input_shape=(3, 8, 3)), "`input_shape` must .* at least 4"),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
