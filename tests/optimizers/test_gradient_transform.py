"""What wrappers that change gradients share, whatever the change and the optimizer inside."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.callbacks import GradientNormRecorder
from kzoo.optimizers import AdEMAMix, Grams
from kzoo.optimizers.coordinate_clip import CoordinateClip
from kzoo.optimizers.gradient_noise import GradientNoise
from kzoo.optimizers.gradient_transform import GradientTransform
from kzoo.optimizers.learning_rate_multipliers import LearningRateMultipliers
from kzoo.training import Loop
from tests.optimizers.reference import trajectory

optimizers = keras.optimizers


@keras.saving.register_keras_serializable("kzoo_tests")
class Tripled(GradientTransform):
    """Three times the gradient."""

    def transform(self, gradients, variables):
        return [3.0 * gradient for gradient in gradients]


# With the options that this base takes over, and rules with more than one slot or weight decay.
EVERY = {
    "SGD": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW": lambda: optimizers.AdamW(0.1, weight_decay=0.1, clipvalue=0.5),
    "Adam": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 12), global_clipnorm=0.5),
    "Lion": lambda: optimizers.Lion(0.1, clipnorm=0.5, gradient_accumulation_steps=2),
    "Nadam": lambda: optimizers.Nadam(0.1, use_ema=True, ema_overwrite_frequency=3),
    "Muon": lambda: optimizers.Muon(0.1, weight_decay=0.1, adam_weight_decay=0.3),
    "ScheduleFreeAdamW": lambda: optimizers.ScheduleFreeAdamW(0.1, weight_decay=0.1),
    "AdEMAMix": lambda: AdEMAMix(0.1, warmup_steps=20, loss_scale_factor=4.0, weight_decay=0.1),
}


def without_change(optimizer):
    return GradientNoise(optimizer, eta=0.0)


@pytest.mark.parametrize("name", EVERY)
def test_a_transform_that_changes_nothing_is_the_base_optimizer(float64, rng, name):
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(12, 3, 2))
    plain, wrapped, nested = (
        trajectory(wrap(EVERY[name]()), start, gradients)
        for wrap in (
            lambda o: o,
            without_change,
            lambda o: without_change(CoordinateClip(o, fraction=0.0, target="update")),
        )
    )
    np.testing.assert_allclose(wrapped, plain, rtol=1e-6)
    np.testing.assert_allclose(nested, plain, rtol=1e-6)


def test_five_steps_computed_by_hand(float64):
    # The gradient is clipped to 1, then tripled; the weight decays by 1/8 of itself first.
    optimizer = Tripled(optimizers.SGD(0.25, weight_decay=0.5, clipvalue=1.0))
    expected, w = [], 1.0
    for clipped in (1.0, -1.0, 0.5, 0.0, 1.0):
        w = 7 / 8 * w - 0.75 * clipped
        expected.append([w])
    gradients = np.array([[4.0], [-1.0], [0.5], [0.0], [9.0]])
    np.testing.assert_allclose(trajectory(optimizer, np.ones(1), gradients), expected, rtol=1e-12)


def test_nested_transforms_act_from_the_outside_in():
    # Tripled before the outer noise's clip would be 3, after it is 9; both wrappers act once.
    optimizer = Tripled(Tripled(optimizers.SGD(1.0)), clipvalue=1.0)
    weights = trajectory(optimizer, np.zeros(1, "float32"), np.array([[5.0]]))
    np.testing.assert_allclose(weights, [[-9.0]])


def network(optimizer, **options):
    keras.utils.set_random_seed(1)
    # Compiled and not compiled updates are compared by the contract suite.
    getattr(optimizer, "inner_optimizer", optimizer).jit_compile = False
    layers = [keras.Input([3]), keras.layers.Dense(4, "tanh", name="hidden")]
    model = keras.Sequential([*layers, keras.layers.Dense(1, name="head")])
    model.compile(optimizer, "mse", **options)
    return model


def rows():
    rng = np.random.default_rng(3)
    return tuple(rng.normal(size=(24, n)).astype(keras.config.floatx()) for n in (3, 1))


def fitted(optimizer, **options):
    model = network(optimizer, **options)
    model.fit(*rows(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientNoise(optimizers.AdamW(0.05, use_ema=True, clipnorm=0.3), seed=4),
        lambda: CoordinateClip(optimizers.Adam(0.05), target="update"),
        lambda: GradientNoise(CoordinateClip(Grams(0.05, skip_nonfinite=True)), weight_decay=0.1),
        lambda: optimizers.LossScaleOptimizer(GradientNoise(optimizers.SGD(0.05, momentum=0.9))),
    ],
)
def test_a_loaded_model_takes_the_same_next_step(make, tmp_path):
    model = fitted(make())
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations) == 6
    for each in (model, again):
        each.fit(*rows(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_saved_model_holds_each_slot_once(tmp_path):
    sizes = []
    for optimizer in (optimizers.Adam(), without_change(optimizers.Adam())):
        model = keras.Sequential([keras.Input([200]), keras.layers.Dense(500)])
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        model.save(tmp_path / "model.keras")
        sizes.append((tmp_path / "model.keras").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]


def test_checkpoints_and_set_weights_hold_the_slots(tmp_path):
    model, other = (fitted(GradientNoise(optimizers.Adam(0.05))) for _ in "12")
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
    values = [v.numpy() for v in model.optimizer.variables]
    for restore in (
        lambda: tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(saved),
        lambda: other.optimizer.set_weights(values),
    ):
        other.fit(*rows(), verbose=0)
        restore()
        for value, variable in zip(values, other.optimizer.variables, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)


def test_callbacks_set_the_learning_rate():
    optimizer = GradientNoise(optimizers.SGD(0.05, weight_decay=0.5), eta=1.0)
    model = network(optimizer)
    before = model.get_weights()
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    model.fit(*rows(), verbose=0, callbacks=[schedule])
    assert optimizer.get_config()["base_optimizer"]["config"]["learning_rate"] == 0.0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arguments_replace_those_of_the_base():
    optimizer = Tripled(optimizers.SGD(0.5, clipvalue=1.0), learning_rate=1.0, clipvalue=None)
    weights = trajectory(optimizer, np.zeros(1, "float32"), np.array([[5.0]]))
    np.testing.assert_allclose(weights, [[-15.0]])


def test_learning_rate_multipliers_go_around(float64):
    def make(rate, decay):
        inner = GradientNoise(optimizers.SGD(rate, weight_decay=decay), eta=0.5)
        return LearningRateMultipliers(inner, [0.25], [2.0]) if rate == 0.5 else inner

    gradients = np.array([[1.0], [-2.0], [0.5]])
    np.testing.assert_allclose(
        trajectory(make(0.5, 0.25), np.ones(1), gradients),
        trajectory(make(0.125, 0.5), np.ones(1), gradients),
        rtol=1e-12,
    )


def test_weight_decay_can_be_excluded():
    optimizer = without_change(optimizers.SGD(0.5, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_names=["variable"])
    weights = trajectory(optimizer, np.ones(1, "float32"), np.zeros([2, 1]))
    np.testing.assert_array_equal(weights, [[1.0], [1.0]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientNoise(optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.2), eta=0.1),
        lambda: CoordinateClip(optimizers.SGD(0.05, weight_decay=0.1), fraction=0.3),
        lambda: CoordinateClip(optimizers.Adam(0.05, use_ema=True), 0.3, target="update"),
        lambda: GradientNoise(CoordinateClip(optimizers.Adam(0.05), 0.3, "update"), eta=0.1),
        lambda: optimizers.LossScaleOptimizer(
            GradientNoise(optimizers.SGD(0.05, global_clipnorm=0.2)), initial_scale=8.0
        ),
    ],
)
def test_two_replicas_equal_one_device(make, mirrored, float64):
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = network(make())
        # An uneven last batch.
        data = tf.data.Dataset.from_tensor_slices(rows()).batch(9)
        Loop(model, data, epochs=2, strategy=strategy).run()
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def test_the_recorder_of_norms_sees_the_gradients_before_the_change():
    norms = []
    for optimizer in (optimizers.SGD(0.0), GradientNoise(optimizers.SGD(0.0), eta=100.0)):
        recorder = GradientNormRecorder()
        model = network(optimizer)
        model.fit(*rows(), batch_size=8, shuffle=False, verbose=0, callbacks=[recorder])
        norms.append(recorder.norms)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)
    assert len(norms[0]) == 3


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_float16")
    model = network(GradientNoise(optimizers.Adam(0.02), eta=1e-4))
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    losses = model.fit(*rows(), epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_refuses_what_it_cannot_wrap():
    with pytest.raises(TypeError, match="must be a keras.optimizers.Optimizer. Received: 'sgd'"):
        GradientNoise("sgd")
    with pytest.raises(ValueError, match="which LossScaleOptimizer does not define"):
        GradientNoise(optimizers.LossScaleOptimizer(optimizers.SGD(0.1)))
    used = optimizers.SGD(0.1)
    used.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="must not have been built"):
        GradientNoise(used)
    with pytest.raises(ValueError, match="Only one of `clipnorm`"):
        GradientNoise(optimizers.SGD(0.1, clipnorm=1.0), clipvalue=1.0)
