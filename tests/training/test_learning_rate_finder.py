import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers import LinearDecay
from kzoo.training import find_learning_rate


class Parabola(keras.Model):
    """Outputs w for every row; the loss is curvature w^2 / 2."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=[1], initializer="ones")

    def call(self, x):
        return tf.zeros_like(x) + self.w


def compiled(optimizer):
    model = Parabola()
    model.compile(optimizer, lambda _, w: 4.0 * tf.square(w) / 2)
    return model


DATA = tf.data.Dataset.from_tensors((np.zeros([2, 1], "float32"),) * 2).repeat(7)


def test_losses_are_those_of_gradient_descent_with_growing_rates():
    found = find_learning_rate(compiled(keras.optimizers.SGD(5.0)), DATA, 1e-3, 0.1, steps=20)
    rates = np.geomspace(1e-3, 0.1, 20)
    np.testing.assert_allclose(found.rates, rates)
    w = np.cumprod([1.0, *(1 - 4 * rates)])[:-1]
    np.testing.assert_allclose(found.losses, 2 * w**2, rtol=1e-4)
    average = [found.losses[0], (0.9 * 0.1 * found.losses[0] + 0.1 * found.losses[1]) / 0.19]
    np.testing.assert_allclose(found.averages[:2], average, rtol=1e-6)


def test_stops_where_the_loss_diverges():
    # Gradient descent on this parabola diverges beyond a rate of 2 / 4.
    found = find_learning_rate(compiled("sgd"), DATA, 1e-3, 100.0, steps=100)
    assert 0.5 < found.rates[-1] < 5.0
    assert found.steepest < 0.5
    assert found.tenth_of_lowest < found.rates[-1] / 9
    assert found.figure().axes[0].get_xscale() == "log"


def test_leaves_model_and_optimizer_as_they_were():
    model = compiled(keras.optimizers.Adam(LinearDecay(0.1, 100)))
    model.fit(DATA, shuffle=False, verbose=0)
    before = [value.copy() for value in model.get_weights()], model.optimizer
    slots = [variable.numpy() for variable in model.optimizer.variables]
    find_learning_rate(model, DATA, steps=10)
    assert model.optimizer is before[1]
    np.testing.assert_array_equal(model.get_weights(), before[0])
    for variable, value in zip(model.optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    model.fit(DATA, shuffle=False, verbose=0)
    assert model.optimizer.iterations.numpy() == 14


def test_works_with_loss_scaling():
    model = compiled(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    assert len(find_learning_rate(model, DATA, high=0.1, steps=12).losses) == 12


@pytest.mark.parametrize(
    ("options", "named"), [({"low": 0.0}, "low"), ({"low": 2.0, "high": 1.0}, "low"),
                           ({"steps": 3}, "steps")],
)  # fmt: skip
def test_refuses_what_is_out_of_range(options, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        find_learning_rate(compiled("sgd"), DATA, **options)
