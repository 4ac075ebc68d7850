import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training import SAM, Loop
from tests.weights import Weights

pytestmark = pytest.mark.paper(
    "Sharpness-Aware Minimization for Efficiently Improving Generalization"
)


def one_step(model, loss, batch=4, **options):
    trainer = SAM(model, **options)
    trainer.compile(keras.optimizers.SGD(0.1), loss)
    trainer.fit(np.zeros([batch, 1]), np.zeros([batch, 1]), batch_size=batch, verbose=0)


def half_quadratic(hessian):
    return lambda _, w: 0.5 * tf.reduce_sum(w * tf.linalg.matvec(hessian, w), axis=-1)


@pytest.fixture
def hessian(rng, float64):
    a = rng.normal(size=(4, 4))
    return a @ a.T


def test_gradient_of_a_quadratic(hessian, rng):
    # grad L(w + rho g / ||g||) with g = H w is H w + rho H H w / ||H w||.
    w = rng.normal(size=4)
    model = Weights(w)
    one_step(model, half_quadratic(hessian), rho=0.3)
    g = hessian @ w
    expected = w - 0.1 * (g + 0.3 * hessian @ g / np.linalg.norm(g))
    np.testing.assert_allclose(model.w.numpy(), expected, rtol=1e-10)


def test_adaptive_gradient_of_a_quadratic(hessian, rng):
    w = rng.normal(size=4)
    model = Weights(w)
    one_step(model, half_quadratic(hessian), rho=0.3, adaptive=True, eta=0.05)
    g, scale = hessian @ w, np.abs(w) + 0.05
    eps = 0.3 * scale**2 * g / np.linalg.norm(scale * g)
    np.testing.assert_allclose(model.w.numpy(), w - 0.1 * hessian @ (w + eps), rtol=1e-10)


def test_perturbation_has_length_rho_over_all_weights(float64, rng):
    sam = SAM(keras.Sequential([keras.Input([3]), keras.layers.Dense(4), keras.layers.Dense(2)]))
    weights = sam.trainable_variables
    gradients = [tf.constant(rng.normal(size=w.shape)) for w in weights]
    moves = [m - w.value for m, w in zip(sam.perturbed(weights, gradients), weights, strict=True)]
    np.testing.assert_allclose(tf.linalg.global_norm(moves), 0.05, rtol=1e-12)
    still = sam.perturbed(weights, [tf.zeros_like(g) for g in gradients])
    np.testing.assert_array_equal(still[0], weights[0])


def network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input([5]),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3),
        ]
    )


def data(rng):
    x, y = rng.normal(size=(16, 5)), rng.integers(0, 3, 16)
    return tf.data.Dataset.from_tensor_slices((x.astype(keras.config.floatx()), y)).batch(8)


def fitted(trainer, dataset):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    history = trainer.fit(dataset, epochs=3, shuffle=False, verbose=0)
    return trainer.get_weights(), history.history


def test_rho_zero_is_the_base_optimizer_bit_for_bit(rng):
    dataset = data(rng)
    plain, plain_history = fitted(network(), dataset)
    ours, history = fitted(SAM(network(), rho=0.0), dataset)
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history == plain_history


def test_batch_norm_takes_its_statistics_from_the_chosen_pass(float64, rng):
    x = rng.normal(size=(8, 5))
    dataset = tf.data.Dataset.from_tensors((x, np.zeros(8, "int32")))
    means = {}
    for choice in ("first", "second"):
        model = network()
        dense, bn = model.layers[:2]
        kernel, bias = dense.kernel.numpy(), dense.bias.numpy()
        trainer = SAM(model, rho=5.0, batch_norm=choice)
        trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        trainer.fit(dataset, shuffle=False, verbose=0)
        means[choice] = bn.moving_mean.numpy()
    np.testing.assert_allclose(means["first"], 0.01 * (x @ kernel + bias).mean(0), rtol=1e-9)
    assert np.abs(means["second"] - means["first"]).max() > 1e-4


@pytest.mark.parametrize("m_sharpness", [True, False])
def test_replicas(float64, mirrored, rng, m_sharpness):
    """m-sharpness averages the replicas' own SAM gradients; otherwise one device is equalled."""
    hessians = rng.normal(size=(2, 4, 4))
    hessians = hessians @ hessians.transpose(0, 2, 1)
    w = rng.normal(size=4)

    def loss(y_true, w):  # the label says which of the two quadratics a row belongs to
        hessian = tf.gather(tf.constant(hessians), tf.cast(y_true[:, 0], tf.int32))
        return 0.5 * tf.reduce_sum(w * tf.linalg.matvec(hessian, w), axis=-1)

    with mirrored.scope():
        model = Weights(w)
        trainer = SAM(model, rho=0.3, m_sharpness=m_sharpness)
        trainer.compile(keras.optimizers.SGD(0.1), loss)
    rows = np.zeros([4, 1]), np.array([[0], [0], [1], [1]])
    Loop(trainer, tf.data.Dataset.from_tensors(rows), strategy=mirrored).run()

    def sam_gradient(h):
        g = h @ w
        return h @ (w + 0.3 * g / np.linalg.norm(g))

    own = (sam_gradient(hessians[0]) + sam_gradient(hessians[1])) / 2
    expected = own if m_sharpness else sam_gradient(hessians.mean(0))
    np.testing.assert_allclose(model.w.numpy(), w - 0.1 * expected, rtol=1e-10)
    assert np.abs(own - sam_gradient(hessians.mean(0))).max() > 1e-3


def test_moves_along_the_minima_to_the_flattest(float64):
    # Every w1 w2 = 1 is a minimum of (w1 w2 - 1)^2, with sharpness 2 (w1^2 + w2^2), least at 1, 1.
    def loss(_, w):
        return tf.square(w[:, 0] * w[:, 1] - 1.0)

    sharpness = {}
    for rho in (0.0, 0.2):
        model = Weights(np.array([3.0, 0.4]))
        trainer = SAM(model, rho=rho)
        trainer.compile(keras.optimizers.SGD(0.01), loss)
        trainer.fit(np.zeros([1000, 1]), np.zeros([1000, 1]), batch_size=1, epochs=3, verbose=0)
        w = model.w.numpy()
        assert abs(w[0] * w[1] - 1.0) < 0.3
        sharpness[rho] = 2 * (w**2).sum()
    assert sharpness[0.0] > 18.0
    assert sharpness[0.2] < 5.0


def test_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match=r"`rho` must be a number of at least 0. Received: -1"):
        SAM(network(), rho=-1)
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model. Received: int"):
        SAM(3)


class Added(keras.layers.Layer):
    """Adds a loss of its own."""

    def call(self, x):
        self.add_loss(0.1 * tf.reduce_mean(x**2))
        return x


def test_penalties_of_layers_and_losses_of_outputs(float64, rng):
    # Without a radius it is the base optimizer, whatever the loss is made of.
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    kernels, histories = [], []
    for wrap in (lambda model: model, lambda model: SAM(model, rho=0.0)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        first = keras.layers.Dense(2, kernel_regularizer="l2", activity_regularizer="l1", name="a")
        hidden = first(inputs)
        second = keras.layers.Dense(2, name="b")(Added()(hidden))
        model = keras.Model(inputs, [hidden, second])
        trainer = wrap(model)
        trainer.compile(keras.optimizers.SGD(0.1), ["mse", "mae"])
        histories.append(trainer.fit(x, [y, y], verbose=0, epochs=2).history)
        kernels.append(model.get_weights()[0])
    np.testing.assert_allclose(*kernels, rtol=1e-12)
    assert sorted(histories[0]) == sorted(histories[1])
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-9, err_msg=name)
