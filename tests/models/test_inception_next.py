import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, special

from kzoo.models import feature_pyramid, inception_next, load_torch_weights
from kzoo.models.inception_next import (
    InceptionNeXt,
    InceptionNeXtAtto,
    InceptionNeXtTiny,
    preprocess_input,
    timm_name,
)

pytestmark = pytest.mark.paper("InceptionNeXt: When Inception Meets ConvNeXt")

DEPTHS, WIDTHS = (2, 1, 2), (8, 16, 24)


def small(**options):
    options = {"input_shape": (16, 24, 3), "classes": 5, "patch_size": 2, **options}
    return InceptionNeXt(DEPTHS, WIDTHS, **options)


def parameters(depths, widths, square=3, band=11, ratio=0.125, patch=4, classes=1000):
    """Trainable parameters, stage by stage."""
    total = patch**2 * 3 * widths[0] + 3 * widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        hidden = (3 if stage == len(depths) - 1 else 4) * width
        mixer = int(width * ratio) * (square**2 + 2 * band + 3)
        block = mixer + 2 * width + 2 * width * hidden + hidden + width + width
        total += depth * block
        if stage:
            before = widths[stage - 1]
            total += 2 * before + 4 * before * width + width
    hidden = 3 * widths[-1]
    return total + widths[-1] * hidden + 3 * hidden + (hidden + 1) * classes


@pytest.mark.parametrize(
    ("size", "published"),
    [("Tiny", 28_055_680), ("Small", 49_374_016), ("Base", 86_672_136), ("Atto", 4_156_520)],
)
def test_parameters_as_published(size, published, monkeypatch):
    asked = {}
    signature = inspect.signature(InceptionNeXt)

    def record(*args, **kwargs):
        asked.update(signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(inception_next, "InceptionNeXt", record)
    getattr(inception_next, f"InceptionNeXt{size}")()
    options = {"band": asked.get("band_kernel_size", 11), "ratio": asked.get("branch_ratio", 0.125)}
    assert parameters(asked["depths"], asked["widths"], **options) == published
    rates = {"Atto": 0.1, "Tiny": 0.1, "Small": 0.3, "Base": 0.4}
    assert asked["drop_path_rate"] == rates[size]


def count(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.fixture(scope="module")
def tiny():
    return InceptionNeXtTiny()


def test_the_models_have_the_parameters_counted(tiny):
    assert count(tiny) == 28_055_680
    assert count(InceptionNeXtAtto()) == 4_156_520
    expected = parameters(DEPTHS, WIDTHS, patch=2, classes=5)
    assert count(small()) == expected


def test_multiply_adds_as_published(tiny):
    """4.2 G: 2 operations for each of the convolutions and dense layers of one image."""
    call = tf.function(lambda x: tiny(x, training=False))
    graph = call.get_concrete_function(tf.TensorSpec((1, 224, 224, 3))).graph
    kinds = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}
    operations = [
        2 * np.prod(op.outputs[0].shape) * weights_per_output(op)
        for op in graph.get_operations()
        if op.type in kinds
    ]
    assert round(sum(operations) / 2e9, 1) == 4.2


def weights_per_output(op):
    kernel = op.inputs[1].shape
    return np.prod(kernel[:2] if op.type == "DepthwiseConv2dNative" else kernel[:-1])


def test_strides_and_widths_of_the_stages(tiny):
    body = keras.Model(tiny.input, tiny.get_layer("P5").output)
    shapes = {name: tuple(x.shape) for name, x in feature_pyramid(body).output.items()}
    assert shapes == {
        "P2": (None, 56, 56, 96),
        "P3": (None, 28, 28, 192),
        "P4": (None, 14, 14, 384),
        "P5": (None, 7, 7, 768),
    }


def test_smaller_patches_give_larger_maps():
    pyramid = feature_pyramid(small(include_top=False))
    shapes = {name: tuple(x.shape[1:3]) for name, x in pyramid.output.items()}
    assert shapes == {"P1": (8, 12), "P2": (4, 6), "P3": (2, 3)}


def checkpoint(rng):
    """A state dictionary of `small` with the names and orders of the authors' code."""
    state = {}

    def add(name, *shape, bias=True):
        state[f"{name}.weight"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)
        state[f"{name}.bias"] = rng.normal(size=shape[0])

    def add_norm(name, width):
        add(name, width)
        state[f"{name}.running_mean"] = rng.normal(size=width)
        state[f"{name}.running_var"] = rng.uniform(0.5, 2, size=width)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    add("stem.0", WIDTHS[0], 3, 2, 2)
    add_norm("stem.1", WIDTHS[0])
    for i, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        if i:
            add_norm(f"stages.{i}.downsample.0", WIDTHS[i - 1])
            add(f"stages.{i}.downsample.1", width, WIDTHS[i - 1], 2, 2)
        for j in range(depth):
            block, hidden = f"stages.{i}.blocks.{j}", (3 if i == 2 else 4) * width
            for branch, kernel in (("hw", (3, 3)), ("w", (1, 11)), ("h", (11, 1))):
                add(f"{block}.token_mixer.dwconv_{branch}", width // 8, 1, *kernel)
            add_norm(f"{block}.norm", width)
            add(f"{block}.mlp.fc1", hidden, width, 1, 1)
            add(f"{block}.mlp.fc2", width, hidden, 1, 1)
            state[f"{block}.gamma"] = rng.normal(size=width)
    add("head.fc1", 3 * WIDTHS[-1], WIDTHS[-1])
    add("head.norm", 3 * WIDTHS[-1])
    add("head.fc2", 5, 3 * WIDTHS[-1])
    return state


class Reference:
    """The network in NumPy and SciPy, channels first, from a state dictionary."""

    def __init__(self, state):
        self.state = state

    def __call__(self, x):
        x = self.norm(self.patches(x, "stem.0"), "stem.1")
        for i, depth in enumerate(DEPTHS):
            if i:
                x = self.norm(x, f"stages.{i}.downsample.0")
                x = self.patches(x, f"stages.{i}.downsample.1")
            for j in range(depth):
                x = self.block(x, f"stages.{i}.blocks.{j}")
        x = self.gelu(self.dense(x.mean(axis=(2, 3)), "head.fc1"))
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        x = x * self.state["head.norm.weight"] + self.state["head.norm.bias"]
        return self.dense(x, "head.fc2")

    def block(self, x, name):
        y = self.norm(self.mixer(x, f"{name}.token_mixer"), f"{name}.norm")
        y = self.patches(self.gelu(self.patches(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return x + self.state[f"{name}.gamma"][:, None, None] * y

    def mixer(self, x, name):
        y, group = x.copy(), x.shape[1] // 8
        for position, branch in enumerate(("hw", "w", "h")):
            kernels = self.state[f"{name}.dwconv_{branch}.weight"]
            biases = self.state[f"{name}.dwconv_{branch}.bias"]
            for g in range(group):
                channel = x.shape[1] - (3 - position) * group + g
                y[:, channel] = biases[g] + ndimage.correlate(
                    x[:, channel], kernels[g], mode="constant"
                )
        return y

    def patches(self, x, name):
        """A convolution whose stride is its size."""
        kernel = self.state[f"{name}.weight"]
        size = kernel.shape[-1]
        batch, channels, height, width = x.shape
        cut = x.reshape(batch, channels, height // size, size, width // size, size)
        y = np.einsum("bchpwq,ocpq->bohw", cut, kernel)
        return y + self.state[f"{name}.bias"][:, None, None]

    def norm(self, x, name):
        weight, bias, mean, variance = (
            self.state[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    def dense(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x):
        return x * special.ndtr(x)


def test_outputs_of_a_published_checkpoint(float64, rng):
    state = checkpoint(rng)
    model = small(classifier_activation=None)
    load_torch_weights(model, state, timm_name)
    images = rng.normal(size=(2, 16, 24, 3))
    expected = Reference(state)(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(model(images), expected, rtol=0, atol=1e-7)


def test_body_takes_a_checkpoint_with_a_head(rng):
    state = checkpoint(rng)
    body = small(include_top=False)
    load_torch_weights(body, state, timm_name)
    np.testing.assert_allclose(
        body.get_layer("stage3_block2_scale").gamma, state["stages.2.blocks.1.gamma"], rtol=1e-6
    )
    with pytest.raises(ValueError, match="no tensors for stem_conv/kernel"):
        load_torch_weights(
            body, {k: v for k, v in state.items() if k != "stem.0.weight"}, timm_name
        )


def test_begins_as_the_published_code():
    model = small()
    scales = [layer for layer in model.layers if layer.name.endswith("_scale")]
    assert len(scales) == sum(DEPTHS)
    for layer in scales:
        np.testing.assert_array_equal(layer.gamma, np.float32(1e-6))
    for weight in model.weights:
        if weight.path.endswith("kernel") and np.prod(weight.shape) > 500:
            assert 0.017 < np.std(weight) < 0.023
        if weight.path.endswith("bias"):
            assert not np.any(weight)


def test_small_scales_make_blocks_the_identity(rng):
    model = small(include_top=False)
    stem, stage = (model.get_layer(name).output for name in ("stem_bn", "P1"))
    before, after = keras.Model(model.input, [stem, stage])(rng.normal(size=(2, 16, 24, 3)))
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_stochastic_depth_grows_linearly():
    model = small(drop_path_rate=0.4)
    rates = {
        layer.name.removesuffix("_drop_path"): layer.rate
        for layer in model.layers
        if isinstance(layer, keras.layers.Dropout)
    }
    # Five blocks: 0, 0.1, 0.2, 0.3, 0.4; the first has none.
    expected = ("stage1_block2", "stage2_block1", "stage3_block1", "stage3_block2")
    assert rates == pytest.approx(dict(zip(expected, (0.1, 0.2, 0.3, 0.4), strict=True)))


def test_stochastic_depth_drops_whole_examples_in_training_only(rng):
    model = InceptionNeXt(
        (2,), (8,), drop_path_rate=0.4, patch_size=1, layer_scale_init=1.0, input_shape=(4, 4, 3)
    )
    branch, dropped = (
        model.get_layer(f"stage1_block2_{name}").output for name in ("scale", "drop_path")
    )
    inner = keras.Model(model.input, [branch, dropped])
    images = rng.normal(size=(200, 4, 4, 3))
    full, same = inner(images, training=False)
    np.testing.assert_array_equal(full, same)
    full, sparse = (np.asarray(x) for x in inner(images, training=True))
    kept = np.abs(sparse).max(axis=(1, 2, 3)) > 0
    np.testing.assert_allclose(sparse[kept], full[kept] / 0.6, rtol=1e-5, atol=1e-7)
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / 200)


def test_trains_and_its_small_scales_grow(rng):
    model = InceptionNeXt((1,), (8,), classes=2, patch_size=2, input_shape=(8, 8, 3))
    model.compile(keras.optimizers.AdamW(4e-3), "sparse_categorical_crossentropy")
    labels = rng.integers(2, size=64)
    images = rng.normal(size=(64, 8, 8, 3)) + (2 * labels - 1)[:, None, None, None]
    losses = model.fit(images, labels, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.3 < losses[0]
    assert np.abs(model.get_layer("stage1_block1_scale").gamma).max() > 1e-3


def test_float32_output_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(classifier_activation=None)
    assert model(rng.normal(size=(2, 16, 24, 3))).dtype == tf.float32


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
        (lambda: InceptionNeXt((1, 0), (8, 8)), "`depths` must be positive integers"),
        (lambda: InceptionNeXt((), ()), "`depths` must be positive integers"),
        (lambda: InceptionNeXt((1, 1), (8,)), "must have one number for each stage"),
        (lambda: InceptionNeXt((1,), (8,), mlp_ratios=(4, 4)), "must have one number for each"),
        (lambda: InceptionNeXt((1,), (4,)), "needs at least 8 channels. Received: 4"),
        (lambda: small(patch_size=3), "`patch_size` must be a power of 2. Received: 3"),
        (lambda: small(drop_path_rate=1.0), r"`drop_path_rate` must be in \[0, 1\)"),
        (lambda: small(branch_ratio=0.4), "`branch_ratio` must be in"),
        (lambda: small(input_shape=(7, 8, 3)), "`input_shape` must .* least 8"),
        (lambda: InceptionNeXtTiny(input_shape=(31, 32, 3)), "`input_shape` must .* least 32"),
        (lambda: InceptionNeXtTiny(weights="imagenet"), 'weights="imagenet" exists'),
    ],
)
def test_refuses_impossible_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
