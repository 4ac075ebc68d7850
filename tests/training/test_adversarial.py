import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training.adversarial import AdversarialTraining
from kzoo.training.loop import Loop

pytestmark = pytest.mark.paper("Towards Deep Learning Models Resistant to Adversarial Attacks")


def linear(weights):
    model = keras.Sequential([keras.Input([len(weights)]), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.reshape(weights, [-1, 1])])
    return model


def compiled(trainer, optimizer="sgd", loss="mse"):
    trainer.compile(optimizer, loss)
    return trainer


def network():
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input([5]),
        keras.layers.Dense(8, "tanh"),
        keras.layers.BatchNormalization(synchronized=True),
        keras.layers.Dropout(0.5, seed=3),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data(rng):
    x, y = rng.normal(size=(16, 5)), rng.integers(0, 3, 16)
    return x.astype(keras.config.floatx()), y


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_worst_point_of_a_linear_model(float64, rng, norm, dual):
    # max over the ball of y - w x is y - w x + epsilon ||w||_dual: Hoelder's inequality, tight.
    w, x = rng.normal(size=4), rng.normal(size=(6, 4))
    y = (x @ w)[:, np.newaxis] + 5.0
    trainer = compiled(AdversarialTraining(linear(w), 0.3, norm, random_start=False))
    attacked = trainer.attack(x, y)
    worst = x @ w - attacked.numpy() @ w
    np.testing.assert_allclose(worst, 0.3 * np.linalg.norm(w, dual), rtol=1e-9)


def test_one_step_by_hand(float64):
    # grad_x (y - w x)^2 = -2 (y - w x) w with w = (3, 4), x = 0, y = 1: direction -(0.6, 0.8).
    model = linear([3.0, 4.0])
    options = {"epsilon": 1.0, "steps": 1, "step_size": 0.5, "random_start": False}
    x, y = np.zeros([1, 2]), np.ones([1, 1])
    attacked = compiled(AdversarialTraining(model, norm="l2", **options)).attack(x, y)
    np.testing.assert_allclose(attacked, [[-0.3, -0.4]], rtol=1e-12)
    attacked = compiled(AdversarialTraining(model, **options)).attack(x, y)
    np.testing.assert_allclose(attacked, [[-0.5, -0.5]], rtol=1e-12)
    # The weights then move at the attacked point (-0.5, -0.5): error 1 + 3.5, gradient 4.5 (1, 1).
    trainer = compiled(AdversarialTraining(model, **options), keras.optimizers.SGD(0.1))
    trainer.fit(x, y, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [3 - 0.45, 4 - 0.45], rtol=1e-12)


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2)])
def test_attacks_stay_in_the_ball_and_in_bounds_and_raise_the_loss(data, norm, order):
    x, y = data
    model = network()
    trainer = AdversarialTraining(model, 0.4, norm, steps=20, bounds=(-0.8, 0.9))
    compiled(trainer, loss=cross_entropy())
    x = np.clip(x, -0.8, 0.9)
    attacked = trainer.attack(x, y).numpy()
    assert np.linalg.norm(attacked - x, order, axis=1).max() <= 0.4 * (1 + 1e-5)
    assert attacked.min() >= np.float32(-0.8)
    assert attacked.max() <= np.float32(0.9)
    losses = [cross_entropy()(y, model(points, training=False)) for points in (x, attacked)]
    assert losses[1] > losses[0] + 0.1


def test_epsilon_zero_is_plain_training_bit_for_bit(data):
    weights = []
    for model in (network(), AdversarialTraining(network(), epsilon=0.0)):
        compiled(model, keras.optimizers.SGD(0.1), cross_entropy())
        model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for plain, ours in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, ours)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_ball(norm):
    trainer = compiled(AdversarialTraining(linear([0.0, 0.0]), 0.5, norm))
    # A constant model has no gradient: what is left is the start.
    x = np.zeros([2000, 2], "float32")
    starts = trainer.attack(x, np.ones([2000, 1])).numpy()
    radius = np.linalg.norm(starts, np.inf if norm == "linf" else 2, axis=1)
    # In two dimensions P(radius < 0.25) = 1/4; the standard error of the share is 0.01.
    assert abs(np.mean(radius < 0.25) - 0.25) < 0.04
    assert radius.max() <= 0.5
    np.testing.assert_array_equal(starts, trainer.attack(x, np.ones([2000, 1])))
    trainer.optimizer.iterations.assign(1)
    assert not np.allclose(starts, trainer.attack(x, np.ones([2000, 1])))


def test_two_replicas_equal_one_device(mirrored, float64, data):
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            keras.utils.set_random_seed(4)
            layers = [keras.Input([5]), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
            trainer = AdversarialTraining(keras.Sequential(layers), 0.3, "l2", random_start=False)
            compiled(trainer, keras.optimizers.SGD(0.3), cross_entropy())
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
        Loop(trainer, dataset, epochs=2, strategy=strategy).run()
        weights.append(trainer.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-11)


def test_round_trip():
    trainer = AdversarialTraining(network(), 0.1, "l2", steps=3, bounds=(0, 1), seed=5)
    again = AdversarialTraining.from_config(trainer.get_config())
    for name in ("epsilon", "norm", "steps", "step_size", "random_start", "bounds", "seed"):
        assert getattr(again, name) == getattr(trainer, name)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`epsilon` must be .* Received: -1"):
        AdversarialTraining(network(), -1)
    with pytest.raises(ValueError, match="`norm` must be one of l2, linf. Received: 'l1'"):
        AdversarialTraining(network(), 1.0, "l1")
    with pytest.raises(ValueError, match="`steps` must be a positive integer. Received: 0"):
        AdversarialTraining(network(), 1.0, steps=0)
    with pytest.raises(ValueError, match="`bounds` must be"):
        AdversarialTraining(network(), 1.0, bounds=(1, 0))
    with pytest.raises(ValueError, match="`x` must be floating. Received: int32"):
        compiled(AdversarialTraining(network(), 1.0)).attack(np.ones([2, 5], "int32"), None)
