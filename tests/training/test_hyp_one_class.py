import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from kzoo.losses.hyperbolic import HyperbolicPairwiseConfusion
from kzoo.training.hyp_one_class import HypOneClass, hyp_one_class_model

pytestmark = pytest.mark.paper("Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing")


def made(optimizer="sgd", curvature=0.1, **kwargs):
    encoder = keras.Sequential([keras.Input([6]), keras.layers.Dense(4, "tanh")])
    model = hyp_one_class_model(encoder, (5,), ball_dim=3, curvature=curvature)
    trainer = HypOneClass(model, curvature=curvature, **kwargs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Graphs are for the contracts; here they cost more than they save.
    trainer.compile(optimizer, loss, run_eagerly=True)
    return trainer


def features(trainer, x):
    return keras.Model(trainer.model.input, trainer.model.get_layer("features").output)(x).numpy()


@pytest.mark.usefixtures("float64")
def test_running_mean_is_the_recursion(rng):
    trainer, x = made(keras.optimizers.SGD(0.1), alpha=0.7), rng.normal(size=(12, 6))
    mean = np.zeros(4)
    for batch in np.split(x, 3):
        mean = 0.7 * mean + 0.3 * features(trainer, batch).mean(0)
        trainer.train_on_batch(batch)
        np.testing.assert_allclose(trainer.running_mean, mean, rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_loss_is_the_sum_of_both(rng):
    """The negatives are found from the seed, everything else anew."""
    trainer, x = made(confusion_weight=0.5, sigma=2.0, seed=3), rng.normal(size=(6, 6))
    real = features(trainer, x)
    negatives = 0.2 * real.mean(0) + 2.0 * tf.random.stateless_normal(
        (6, 4), [3, 0], dtype=tf.float64, alg="philox"
    )
    model = trainer.model
    outputs = [model.get_layer("embedding").output, model.output]
    head = keras.Model(model.get_layer("features").output, outputs)
    points, logits = head(tf.concat([real, negatives], 0))
    likelihoods = log_softmax(logits.numpy(), axis=1)
    cross_entropy = -(likelihoods[:6, 0].mean() + likelihoods[6:, 1].mean()) / 2
    confusion = HyperbolicPairwiseConfusion(0.1)(np.zeros(6), points[:6])
    np.testing.assert_allclose(
        trainer.train_on_batch(x), cross_entropy + 0.5 * float(confusion), rtol=1e-10
    )


def test_negatives_change_from_step_to_step_and_follow_the_mean():
    trainer = made(alpha=0.0, sigma=0.1)
    real = tf.constant(np.tile([1.0, -2.0, 3.0, 0.0], (2000, 1)), tf.float32)
    first, second = trainer._pseudo_negatives(real), trainer._pseudo_negatives(real)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(np.mean(first, 0), [1, -2, 3, 0], atol=0.02)
    np.testing.assert_allclose(np.std(first, 0), 0.1, rtol=0.1)


def test_confusion_draws_the_real_points_together(rng):
    x = rng.normal(size=(32, 6)).astype("float32")
    spreads = []
    for weight in (0.0, 5.0):
        keras.utils.set_random_seed(0)
        trainer = made(keras.optimizers.Adam(0.05, global_clipnorm=3.0), confusion_weight=weight)
        trainer.fit(x, epochs=4, batch_size=64, verbose=0)
        model = trainer.model
        points = keras.Model(model.input, model.get_layer("embedding").output)(x)
        spreads.append(float(HyperbolicPairwiseConfusion(0.1)(np.zeros(32), points)))
    assert spreads[1] < 0.8 * spreads[0]


@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_extreme_inputs_leave_finite_weights(rng, scale):
    trainer = made(keras.optimizers.SGD(0.1, global_clipnorm=3.0), curvature=1.0)
    for layer in trainer.model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.kernel.assign(10 * layer.kernel)
    trainer.fit(scale * rng.normal(size=(8, 6)), epochs=2, batch_size=4, verbose=0)
    for weight in trainer.get_weights():
        assert np.isfinite(weight).all()


def test_two_replicas_share_the_mean_of_the_global_batch(rng, mirrored, float64):
    real = rng.normal(size=(9, 4))
    with mirrored.scope():
        trainer = made(keras.optimizers.SGD(0.1), alpha=0.5)
    parts = iter([real[:2], real[2:]])
    shares = mirrored.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(parts))
    )
    found = mirrored.run(tf.function(trainer._pseudo_negatives), args=(shares,))
    np.testing.assert_allclose(trainer.running_mean, 0.5 * real.mean(0), rtol=1e-12)
    first, second = (each.numpy() for each in mirrored.experimental_local_results(found))
    assert first.shape == (2, 4)
    assert np.abs(first - second[:2]).max() > 0.1


def test_bad_arguments():
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="features")])
    with pytest.raises(ValueError, match=r"logits \[batch, 2\]"):
        HypOneClass(model)
    with pytest.raises(ValueError, match="`alpha`"):
        made(alpha=1.0)
    with pytest.raises(ValueError, match="`sigma`"):
        made(sigma=0.0)
