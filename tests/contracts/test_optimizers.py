"""What every registered optimizer, schedule and training method must do, from its one example."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers import Optimizer
from kzoo.training import Loop, TrainingMethod
from tests.contracts.cases import cases


def is_optimizer(part):
    return isinstance(part.target, type) and issubclass(part.target, keras.optimizers.Optimizer)


def is_schedule(part):
    base = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(part.target, type) and issubclass(part.target, base)


optimizers = cases("optimizers", when=is_optimizer)
schedules = cases("optimizers", when=is_schedule)
methods = cases("training", when=lambda part: issubclass(part.target, TrainingMethod))


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input([6]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
    )


def random_rows(rng, batch):
    return rng.normal(size=(batch, 6)), rng.integers(0, 3, batch)


def data(batch_size=8, rows=None):
    x, y = (rows or random_rows)(np.random.default_rng(2), 24)
    return tf.data.Dataset.from_tensor_slices((x.astype(keras.config.floatx()), y)).batch(
        batch_size
    )


def compiled(model, optimizer, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **options)
    return model


def weights_after_fit(model, **options):
    compiled(model, **options)
    model.fit(data(), epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


def assert_all_close(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@optimizers
def test_configuration_round_trip(part):
    optimizer = part.example.build(part.target, weight_decay=0.1, clipnorm=0.5)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    ours, theirs = (weights_after_fit(network(), optimizer=each) for each in (optimizer, again))
    assert_all_close(ours, theirs, rtol=0, atol=0)


@optimizers
def test_eager_graph_and_xla_take_the_same_steps(part):
    assert issubclass(part.target, Optimizer)
    graph, compiled_update = (
        weights_after_fit(network(), optimizer=part.example.build(part.target, jit_compile=jit))
        for jit in (False, True)
    )
    eager = weights_after_fit(
        network(), optimizer=part.example.build(part.target), run_eagerly=True
    )
    assert_all_close(graph, compiled_update, rtol=1e-4, atol=1e-5)
    assert_all_close(graph, eager, rtol=1e-4, atol=1e-5)


def check_next_step_after_loading(model, rows, tmp_path):
    model.fit(data(rows=rows), shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(data(rows=rows), shuffle=False, verbose=0)
    assert_all_close(again.get_weights(), model.get_weights(), rtol=0, atol=0)


@optimizers
def test_a_loaded_model_takes_the_same_next_step(part, tmp_path):
    optimizer = part.example.build(part.target, weight_decay=0.01, use_ema=True)
    check_next_step_after_loading(compiled(network(), optimizer), None, tmp_path)


def check_two_replicas(make, mirrored):
    """The same weights on one device and two replicas, with an uneven last batch."""
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = make()
        Loop(model, data(batch_size=9), epochs=2, strategy=strategy).run()
        weights.append(model.get_weights())
    assert_all_close(*weights, rtol=1e-9, atol=1e-10)


@optimizers
def test_two_replicas_equal_one_device(part, mirrored, float64):
    def make():
        optimizer = part.example.build(part.target, global_clipnorm=0.2, weight_decay=0.01)
        return compiled(network(), optimizer)

    check_two_replicas(make, mirrored)


@optimizers
@pytest.mark.parametrize("gradient", [0.0, 1e-20, 1e20], ids=str)
def test_extreme_gradients_leave_finite_weights(part, gradient):
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = part.example.build(part.target)
    for _ in range(3):
        optimizer.apply([tf.fill([3], np.float32(gradient))], [variable])
    # The square of 1e20 is beyond float32: the step may vanish, it must not be NaN.
    assert np.isfinite(variable.numpy()).all()


@optimizers
def test_the_second_step_does_not_retrace(part):
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = part.example.build(part.target, jit_compile=True)
    for _ in range(4):
        optimizer.apply([tf.ones(3)], [variable])
    (update,) = optimizer._compiled_updates.values()
    assert update.experimental_get_tracing_count() == 1


@schedules
def test_schedules_round_trip_and_are_pure_functions_of_the_step(part):
    schedule = part.example.build(part.target)
    again = type(schedule).from_config(schedule.get_config())
    steps = range(0, 50, 7)
    values = [float(schedule(step)) for step in steps]
    assert values == [float(again(step)) for step in steps]
    assert min(values) >= 0.0
    graph = tf.function(schedule)
    np.testing.assert_allclose([float(graph(tf.constant(s))) for s in steps], values, rtol=1e-5)


@methods
def test_methods_save_and_take_the_same_next_step(part, tmp_path):
    model = compiled(part.example.build(part.target), "adam")
    check_next_step_after_loading(model, part.example.inputs, tmp_path)


@methods
@pytest.mark.parametrize("jit_compile", [False, True])
def test_methods_learn(part, jit_compile):
    if jit_compile and part.example.no_xla:
        pytest.skip(part.example.no_xla)
    model = compiled(part.example.build(part.target), "adam", jit_compile=jit_compile)
    rows = data(rows=part.example.inputs)
    losses = model.fit(rows, epochs=15, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@methods
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_methods_train_in_mixed_precision(part, policy):
    keras.config.set_dtype_policy(policy)
    model = compiled(part.example.build(part.target), "sgd")
    rows = data(rows=part.example.inputs)
    losses = model.fit(rows, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


@methods
def test_methods_train_on_two_replicas(part, mirrored, float64):
    with mirrored.scope():
        model = compiled(part.example.build(part.target), keras.optimizers.SGD(0.1))
    history = (
        Loop(model, data(rows=part.example.inputs), epochs=10, strategy=mirrored)
        .run()
        .history["loss"]
    )
    assert history[-1] < history[0]
