"""muP: the tables, the exact identities, and activations that do not know the width."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.analysis.coordinate_check import coordinate_check, log_slope
from kzoo.layers.scaled_dense import ScaledDense
from kzoo.models.mup import base_shapes, mup_parametrize
from kzoo.optimizers import Grams
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers

pytestmark = pytest.mark.paper(
    "Tensor Programs IVb: Adaptive Optimization in the Infinite-Width Limit"
)
layers = keras.layers
optimizers = keras.optimizers


def perceptron(width, readout=layers.Dense, activation="tanh", initializer="glorot_uniform"):
    options = {"activation": activation, "kernel_initializer": initializer}
    return keras.Sequential(
        [
            keras.Input([6]),
            layers.Dense(width, name="first", **options),
            layers.Dense(width, name="second", **options),
            readout(2, name="out"),
        ]
    )


def rows(seed=0, size=8):
    rng = np.random.default_rng(seed)
    dtype = keras.config.floatx()
    return rng.normal(size=(size, 6)).astype(dtype), rng.normal(size=(size, 2)).astype(dtype)


def train(model, optimizer, steps=5):
    model.compile(optimizer, "mse", jit_compile=False)
    for _ in range(steps):
        model.train_on_batch(*rows())
    return model.get_weights()


def by_name(mup):
    return {"/".join(row.path.split("/")[-2:]): row for row in mup.variables}


def test_the_table_of_a_perceptron():
    for readout, last in ((layers.Dense, (1 / 4, 1 / 4, 1 / 4, 1)), (ScaledDense, (1, 1, 4, 4))):
        mup = mup_parametrize(perceptron(32, readout), perceptron(8, readout))
        expected = {
            "first/kernel": ("input", 1, 1, 4, 4),
            "first/bias": ("input", 1, 1, 4, 4),
            "second/kernel": ("hidden", 1 / 2, 1 / 4, 1, 4),
            "second/bias": ("input", 1, 1, 4, 4),
            "out/kernel": ("output", *last),
            "out/bias": ("finite", 1, 1, 1, 1),
        }
        for name, row in by_name(mup).items():
            got = (row.role, row.deviation, row.rates["adam"], row.rates["sgd"], row.gradient)
            assert got == expected[name], name


def test_initial_deviations_are_those_of_the_table():
    # Glorot's deviation depends on both fans, and is replaced by that of the base.
    base, wide = perceptron(256), perceptron(1024)
    mup_parametrize(wide, base)
    for index, factor in ((0, 1), (2, 1 / 2), (4, 1 / 4)):
        ratio = wide.get_weights()[index].std() / base.get_weights()[index].std()
        assert ratio == pytest.approx(factor, rel=0.06)


@pytest.mark.parametrize(
    "make", [lambda: optimizers.AdamW(0.02), lambda: optimizers.SGD(0.1), lambda: Grams(0.02)]
)
def test_at_the_width_of_the_base_nothing_changes(make):
    keras.utils.set_random_seed(1)
    plain = perceptron(16, ScaledDense)
    model = keras.models.clone_model(plain)
    model.set_weights(plain.get_weights())
    mup = mup_parametrize(model, base_shapes(perceptron(16, ScaledDense)))
    for a, b in zip(train(model, mup.optimizer(make())), train(plain, make()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [lambda: optimizers.SGD(0.1, weight_decay=0.1), lambda: optimizers.AdamW(0.02, epsilon=1e-3)],
)
def test_both_rows_of_the_output_are_the_same_training(float64, make):
    # abc-parametrizations that differ by a shift: multiplier 1/4 of w, or w/4 itself.
    scaled, plain = perceptron(32, ScaledDense), perceptron(32)
    scaled_mup = mup_parametrize(scaled, base_shapes(perceptron(8)))
    plain_mup = mup_parametrize(plain, base_shapes(perceptron(8)))
    assert scaled.layers[-1].multiplier == 1 / 4
    weights = scaled.get_weights()
    weights[4] = weights[4] / 4
    plain.set_weights(weights)
    train(scaled, scaled_mup.optimizer(make()))
    train(plain, plain_mup.optimizer(make()))
    x, _ = rows(1)
    np.testing.assert_allclose(plain.predict_on_batch(x), scaled.predict_on_batch(x), rtol=1e-9)


def test_weight_decay_does_not_depend_on_the_width():
    # Without gradients, every weight shrinks as in the base model: by lr * decay.
    model = perceptron(32)
    optimizer = mup_parametrize(model, perceptron(8)).optimizer(optimizers.AdamW(0.5, 0.25))
    before = model.get_weights()
    variables = model.trainable_variables
    optimizer.apply([tf.zeros_like(variable) for variable in variables], variables)
    for w, w0 in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(w, w0 * (1 - 0.5 * 0.25), rtol=1e-6)


def attention(key_dim, scale=None):
    inputs = keras.Input([4, 6])
    layer = layers.MultiHeadAttention(2, key_dim, use_bias=False, name="attention")
    model = keras.Model(inputs, layers.Flatten()(layer(inputs, inputs)))
    if scale is not None:
        layer._inverse_sqrt_key_dim = scale
    return model


@pytest.mark.parametrize(("rule", "exponent"), [("adam", 1), ("sgd", 2)], ids=["adam", "sgd"])
def test_queries_are_those_of_scores_divided_by_d(float64, rng, rule, exponent):
    inner = {"adam": lambda: optimizers.Adam(0.02, epsilon=0.0), "sgd": lambda: optimizers.SGD(0.1)}
    model = attention(key_dim=32)
    optimizer = mup_parametrize(model, attention(key_dim=2)).optimizer(inner[rule]())
    # sqrt(2) / 32 instead of 1 / sqrt(32): 1 / d attention that agrees with the base.
    other = attention(key_dim=32, scale=np.sqrt(2) / 32)
    query, *others = model.get_weights()
    other.set_weights([4 * query, *others])
    rate, *others = optimizer.get_config()["multipliers"]
    reference = LearningRateMultipliers(inner[rule](), [rate * 4**exponent, *others])
    x, y = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, 24))
    for each, its_optimizer in ((model, optimizer), (other, reference)):
        each.compile(its_optimizer, "mse", run_eagerly=True)
        for _ in range(3):
            each.train_on_batch(x, y)
    np.testing.assert_allclose(model(x), other(x), rtol=1e-5, atol=1e-8)


def zoo(width):
    tokens = keras.Input([8], dtype="int32")
    x = layers.Embedding(5, 2 * width, name="embed")(tokens)
    x = x + layers.MultiHeadAttention(width // 4, 4, name="mha")(x, x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.EinsumDense("abc,cd->abd", (8, width), name="einsum")(x)
    x = layers.Reshape([4, 2, width])(x)
    x = layers.Conv2D(3 * width, 2, groups=2, padding="same", name="conv")(x)
    x = layers.BatchNormalization(name="batch")(x)
    x = layers.DepthwiseConv2D(2, padding="same", name="depth")(x)
    x = layers.SeparableConv2D(width, 2, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(2 * width, 2, name="transposed")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.RMSNormalization(name="rms")(x))
    return keras.Model(tokens, layers.Dense(3, name="head")(layers.Flatten()(x)))


def test_every_supported_layer_has_its_fans():
    rows = by_name(mup_parametrize(zoo(24), zoo(8)))
    hidden = {
        "query/kernel", "key/kernel", "value/kernel", "attention_output/kernel", "einsum/kernel",
        "conv/kernel", "separable/pointwise_kernel", "transposed/kernel",
    }  # fmt: skip
    for name, row in rows.items():
        if name in hidden:
            assert (row.role, row.rates["adam"]) == ("hidden", pytest.approx(1 / 3)), name
            assert row.rates["sgd"] == pytest.approx(1), name
            assert row.deviation == pytest.approx(3**-0.5), name
        elif name == "head/kernel":
            assert (row.role, row.deviation) == ("output", pytest.approx(1 / 3))
        elif name == "head/bias":
            assert row.role == "finite"
        else:
            assert (row.role, row.rates) == ("input", {"adam": 1.0, "sgd": 3.0}), name
            assert row.deviation == 1.0, name
    assert len(rows) == 27


def test_delta_tells_infinite_dimensions_in_which_the_model_is_the_base():
    def bottleneck(inner, outer):
        return keras.Sequential(
            [keras.Input([4]), layers.Dense(inner), layers.Dense(outer), layers.Dense(1)]
        )

    roles = [
        [row.role for row in mup_parametrize(bottleneck(32, 8), bottleneck(8, 8), delta).variables]
        for delta in (None, bottleneck(16, 16))
    ]
    assert roles[0] == ["input", "input", "output", "finite", "finite", "finite"]
    assert roles[1] == ["input", "input", "hidden", "input", "output", "finite"]


def check(parametrize, optimizer):
    def make(width):
        model = perceptron(width, activation="relu", initializer="lecun_normal")
        inner = optimizer()
        if parametrize:
            inner = mup_parametrize(model, perceptron(32)).optimizer(inner)
        model.compile(inner, "mse", run_eagerly=True)
        return model

    # Targets beside which the random outputs at the start do not count.
    x, y = rows()
    return coordinate_check(make, (64, 256, 1024), (x, 10 * y), steps=3, seeds=(0, 1))


@pytest.mark.parametrize(
    "make", [lambda: optimizers.Adam(0.002), lambda: optimizers.SGD(0.01)], ids=["adam", "sgd"]
)
def test_activations_move_as_far_at_all_widths(make):
    found = check(True, make)
    for layer, slope in found.slopes().items():
        assert abs(slope) < 0.1, layer
    # The output begins with deviations of n^-1/2.
    assert found.slopes("sizes", 0)["out"] == pytest.approx(-0.5, abs=0.15)


def test_in_the_standard_parametrization_they_move_further_with_the_width():
    slopes = check(False, lambda: optimizers.Adam(0.0002)).slopes()
    # An update of n aligned entries of the size of the learning rate.
    assert slopes["second"] == pytest.approx(1, abs=0.15)
    assert slopes["out"] > 1


def test_epsilon_weighs_the_same_at_all_widths(monkeypatch):
    large = lambda: optimizers.Adam(0.02, epsilon=1.0)  # noqa: E731
    assert abs(check(True, large).slopes()["second"]) < 0.1
    plain = LearningRateMultipliers.__init__
    # Without the exponents d, gradients of 1 / n vanish beside it.
    monkeypatch.setattr(
        LearningRateMultipliers,
        "__init__",
        lambda self, *args, **kwargs: plain(
            self, *args, **{**kwargs, "gradient_multipliers": None}
        ),
    )
    assert check(True, large).slopes()["second"] < -0.3


def residual(depth, multiplier=1.0):
    inputs = keras.Input([6])
    x = layers.Dense(32, name="embed")(inputs)
    for i in range(depth):
        branch = layers.Dense(32, use_bias=False, name=f"block_{i}")(layers.ReLU()(x))
        x = layers.Add()([x, layers.Rescaling(multiplier)(branch)])
    return keras.Model(
        inputs, layers.Dense(2, name="out")(layers.Activation("linear", name="last")(x))
    )


@pytest.mark.paper(
    "Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning"
)
def test_depth_does_not_change_how_far_activations_move():
    def make(depth, deep):
        model = residual(depth, (2 / depth) ** 0.5 if deep else 1.0)
        options = {
            "branches": lambda variable: "block" in variable.path,
            "depth_ratio": depth / 2,
        }
        mup = mup_parametrize(model, base_shapes(model), **(options if deep else {}))
        model.compile(mup.optimizer(optimizers.Adam(0.001)), "mse", run_eagerly=True)
        return model

    depths = (2, 8, 32)
    changes = {
        deep: coordinate_check(
            lambda depth, deep=deep: make(depth, deep), depths, rows(), 2, ["last"]
        ).changes[:, -1, 0]
        for deep in (True, False)
    }
    assert abs(log_slope(depths, changes[True])) < 0.15
    assert log_slope(depths, changes[False]) > 1.0


def test_rates_in_residual_branches_fall_with_the_root_of_the_depth():
    model = residual(8)
    mup = mup_parametrize(
        model, base_shapes(model), branches=lambda v: "block" in v.path, depth_ratio=4.0
    )
    found = by_name(mup)
    assert found["block_3/kernel"].rates == {"adam": 0.5, "sgd": 1.0}
    assert found["out/kernel"].rates == {"adam": 1.0, "sgd": 1.0}


def test_a_loaded_model_takes_the_same_next_step(tmp_path):
    model = perceptron(32, ScaledDense)
    train(model, mup_parametrize(model, perceptron(8)).optimizer(optimizers.Adam(0.02)), 2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[-1].multiplier == 1 / 4
    for each in (model, again):
        each.train_on_batch(*rows(2))
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_layers_have_no_rates():
    model = perceptron(32)
    mup = mup_parametrize(model, perceptron(8))
    model.layers[0].trainable = False
    assert len(mup.optimizer(optimizers.SGD(0.1)).get_config()["multipliers"]) == 4


def test_base_shapes_are_json():
    shapes = base_shapes(perceptron(8))
    assert json.loads(json.dumps(shapes)) == shapes
    assert shapes[2]["shape"] == [8, 8]


def one(layer, shape=(4, 6)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one(layers.LSTM(3)), "not defined here: .*lstm_cell/kernel"),
        (lambda: one(layers.Dense(3, kernel_initializer="identity")), "which muP cannot rescale"),
    ],
)
def test_refuses_unsupported_layers(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        mup_parametrize(model, model)


def test_refuses_other_attention():
    inputs = keras.Input([4, 6])
    dot = layers.Attention(name="dot")([inputs, inputs])
    grouped = layers.GroupQueryAttention(2, 2, 1, name="grouped")(inputs, inputs)
    for outputs, name in ((dot, "dot"), (grouped, "grouped")):
        model = keras.Model(inputs, outputs)
        with pytest.raises(ValueError, match=rf"{name} \(.*Attention\)"):
            mup_parametrize(model, model)


def test_refuses_bad_arguments():
    model = perceptron(32)
    with pytest.raises(ValueError, match="`model` must be a built"):
        mup_parametrize(keras.Sequential([layers.Dense(1)]), model)
    with pytest.raises(ValueError, match="with as many variables: 6. Received: 2"):
        mup_parametrize(model, one(layers.Dense(2), (6,)))
    bases = base_shapes(model)
    bases[0]["shape"] = [6]
    with pytest.raises(
        ValueError, match=r"It has .*first/kernel \[6\] for .*first/kernel \[6, 32\]"
    ):
        mup_parametrize(model, bases)
    with pytest.raises(ValueError, match="`depth_ratio` needs `branches`"):
        mup_parametrize(model, model, depth_ratio=2.0)
    with pytest.raises(ValueError, match="`depth_ratio` must be positive"):
        mup_parametrize(model, model, depth_ratio=0.0)
    mup = mup_parametrize(model, perceptron(8))
    with pytest.raises(ValueError, match="already been parametrized"):
        mup_parametrize(model, perceptron(8))
    with pytest.raises(ValueError, match="rule for Lamb is not known"):
        mup.optimizer(optimizers.Lamb(0.1))
    with pytest.raises(ValueError, match='`rule` must be "adam", "sgd" or None'):
        mup.optimizer(optimizers.Lamb(0.1), rule="lamb")
    with pytest.raises(ValueError, match="`multiplier` must be finite"):
        ScaledDense(2, multiplier=-1.0)
