"""What the base of all optimizers adds to Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers import AdEMAMix, Grams, Optimizer
from kzoo.training import Loop
from tests.optimizers.reference import trajectory

HOLED = np.array([[1.0, 2.0], [np.nan, 1.0], [-1.0, 0.5], [np.inf, np.inf], [0.3, 0.2]], "float32")
OPTIONS = {"weight_decay": 0.1, "use_ema": True, "global_clipnorm": 1.0}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_without_finite_gradients_are_left_out_and_counted(jit_compile):
    start = np.ones(2, "float32")
    optimizer = Grams(0.1, beta_2=0.9, skip_nonfinite=True, jit_compile=jit_compile, **OPTIONS)
    weights = trajectory(optimizer, start, HOLED)
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_array_equal(weights[3], weights[2])
    assert (weights[[0, 2, 4]] != np.stack([start, weights[1], weights[3]])).all()
    assert int(optimizer.skipped_steps) == 2
    # The schedule goes on, and the slots are those of the finite steps.
    assert int(optimizer.iterations) == 5
    np.testing.assert_allclose(optimizer._velocities[0].numpy() > 0, True)


def test_without_the_option_the_same_gradients_end_in_nan():
    assert np.isnan(trajectory(Grams(0.1), np.ones(2, "float32"), HOLED)).any()
    with pytest.raises(AttributeError, match="skip_nonfinite=True"):
        _ = Grams(0.1).skipped_steps


def test_finite_steps_are_those_without_the_option(rng):
    gradients = rng.normal(size=(20, 3)).astype("float32")
    plain, guarded = (
        trajectory(AdEMAMix(0.1, skip_nonfinite=skip, **OPTIONS), np.ones(3, "float32"), gradients)
        for skip in (False, True)
    )
    np.testing.assert_allclose(guarded, plain, rtol=1e-6)


def test_a_batch_is_left_out_of_an_accumulated_step():
    variable = keras.Variable([1.0])
    optimizer = Grams(0.1, gradient_accumulation_steps=2, skip_nonfinite=True)
    for gradient in (np.nan, 3.0):
        optimizer.apply([tf.constant([gradient])], [variable])
    assert float(variable[0]) == pytest.approx(0.9)
    assert int(optimizer.skipped_steps) == 1


def test_replicas_leave_out_a_step_together(mirrored):
    rows = np.ones([12, 1], "float32")
    labels = np.zeros([12, 1], "float32")
    labels[5] = np.nan  # in the second of three batches, on one of two replicas
    data = tf.data.Dataset.from_tensor_slices((rows, labels)).batch(4)
    with mirrored.scope():
        model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
        model.compile(Grams(0.1, skip_nonfinite=True), "mse")
    model.layers[0].kernel.assign([[1.0]])
    Loop(model, data, strategy=mirrored, on_nonfinite="continue").run()
    assert model.optimizer.skipped_steps.numpy() == 1
    assert model.layers[0].kernel.numpy()[0, 0] == pytest.approx(0.8, abs=0.02)


def test_the_count_is_saved_with_the_model(tmp_path):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(Grams(0.1, skip_nonfinite=True), "mse")
    model.fit(np.ones([2, 1]), np.full([2, 1], np.nan), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.skipped_steps) == 1


def test_refuses_gradients_of_other_variables():
    optimizer = Grams(0.1)
    optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="different set of variables|Unknown variable"):
        optimizer.apply([tf.ones([1])], [keras.Variable([1.0])])


class GradientDescent(Optimizer):
    """w - lr g: unlike Adam's kin, it shows by how much a gradient was multiplied."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * gradient)


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_replicas_in_fit_sum_their_gradients_once(mirrored, skip_nonfinite):
    with mirrored.scope():
        dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        model = keras.Sequential([keras.Input([1]), dense])
        model.compile(GradientDescent(0.1, skip_nonfinite=skip_nonfinite), "mse")
    model.fit(np.ones([4, 1]), np.zeros([4, 1]), batch_size=4, verbose=0)
    # The gradient of the mean of w^2 is 2.
    assert dense.kernel.numpy()[0, 0] == pytest.approx(0.8)
