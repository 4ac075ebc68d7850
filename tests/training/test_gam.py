import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.training import SAM, Loop
from kzoo.training.gam import GAM, AcceleratedGAM
from kzoo.training.several_passes import Batch
from tests.weights import Weights

pytestmark = pytest.mark.paper(
    "Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization"
)

HESSIAN = np.diag([1.0, 4.0, 9.0])
START = np.array([1.0, -0.5, 0.3])


def half_quadratic(hessian):
    return lambda _, w: 0.5 * tf.reduce_sum(w * tf.linalg.matvec(hessian, w), axis=-1)


def after_one_step(method, loss, start=START, **options):
    model = Weights(start)
    trainer = method(model, **options)
    trainer.compile(keras.optimizers.SGD(0.1), loss)
    trainer.fit(np.zeros([4, 1]), np.zeros([4, 1]), batch_size=4, verbose=0)
    return model.w.numpy()


def unit(v):
    return v / np.linalg.norm(v)


@pytest.mark.parametrize("hessian", ["exact", "differences"])
def test_step_on_a_quadratic(float64, hessian):
    # grad ||H w|| = H^2 w / ||H w||, by hand for this H and w; differences are exact as well.
    f = HESSIAN @ HESSIAN @ START / np.linalg.norm(HESSIAN @ START)
    np.testing.assert_allclose(f, [0.28525, -2.28199, 6.93155], atol=1e-5)
    worst = START + 0.3 * unit(f)
    penalty = 0.3 * HESSIAN @ unit(HESSIAN @ worst)
    expected = START - 0.1 * (HESSIAN @ START + 0.7 * penalty)
    w = after_one_step(GAM, half_quadratic(HESSIAN), rho=0.3, alpha=0.7, hessian=hessian)
    np.testing.assert_allclose(w, expected, rtol=1e-9)


def test_step_over_the_loss_of_sam(float64):
    sam = START - 0.1 * HESSIAN @ (START + 0.05 * unit(HESSIAN @ START))
    plain = START - 0.1 * HESSIAN @ START
    options = {"rho": 0.3, "alpha": 0.7}
    over_sam = after_one_step(GAM, half_quadratic(HESSIAN), sam_rho=0.05, **options)
    over_plain = after_one_step(GAM, half_quadratic(HESSIAN), **options)
    np.testing.assert_allclose(over_sam - over_plain, sam - plain, rtol=1e-9)


def test_accelerated_step_against_numpy(float64):
    def gradient(w):
        return w**3 + HESSIAN @ w

    def loss(_, w):
        return tf.reduce_sum(w**4, axis=-1) / 4 + half_quadratic(HESSIAN)(_, w)

    alpha, beta, gamma = 0.3, 0.8, 0.5
    g0 = gradient(START)
    g1 = gradient(START + 0.1 * unit(g0))
    worst = START + 0.4 * unit(g1 - g0)
    g2 = gradient(worst)
    g3 = gradient(worst + 0.1 * unit(g2))
    plus, minus = alpha * g1 + (1 - alpha) * g3, beta * g0 + (1 - beta) * g2
    orthogonal = minus - plus * (minus @ plus) / (plus @ plus)
    assert abs(orthogonal @ plus) < 1e-12 < np.linalg.norm(orthogonal)
    w = after_one_step(
        AcceleratedGAM, loss, rho=0.4, difference=0.1, alpha=alpha, beta=beta, gamma=gamma
    )
    np.testing.assert_allclose(w, START - 0.1 * (plus - gamma * orthogonal), rtol=1e-9)


def test_exact_products_and_differences_agree_on_a_network(float64, rng):
    x, y = rng.normal(size=(16, 5)), rng.normal(size=(16, 2))
    moved = []
    for options in ({"hessian": "exact"}, {"hessian": "differences", "difference": 1e-5}):
        keras.utils.set_random_seed(1)
        layers = [keras.Input([5]), keras.layers.Dense(7, "tanh"), keras.layers.Dense(2)]
        trainer = GAM(keras.Sequential(layers), rho=0.5, alpha=2.0, **options)
        start = np.concatenate([w.numpy().ravel() for w in trainer.model.weights])
        trainer.compile(keras.optimizers.SGD(1.0), "mse")
        trainer.fit(x, y, batch_size=16, verbose=0)
        end = np.concatenate([w.numpy().ravel() for w in trainer.model.weights])
        moved.append(end - start)
    exact, differences = moved
    assert np.linalg.norm(differences - exact) < 1e-3 * np.linalg.norm(exact)


def network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input([5]),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(3),
        ]
    )


def fitted(trainer, rng_seed=3):
    rng = np.random.default_rng(rng_seed)
    x, y = rng.normal(size=(16, 5)).astype(keras.config.floatx()), rng.integers(0, 3, 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    history = trainer.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    return trainer.get_weights(), history.history


@pytest.mark.parametrize("hessian", ["exact", "differences"])
def test_alpha_zero_is_the_base_optimizer_bit_for_bit(hessian):
    plain, plain_history = fitted(network())
    ours, history = fitted(GAM(network(), alpha=0.0, hessian=hessian))
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history == plain_history


@pytest.mark.parametrize(
    "make",
    [
        lambda: GAM(network(), alpha=0.0, sam_rho=0.05),
        lambda: AcceleratedGAM(network(), alpha=1.0, gamma=0.0, difference=0.05),
    ],
    ids=["GAM", "AcceleratedGAM"],
)
def test_without_the_penalty_it_is_sam(float64, make):
    sam, _ = fitted(SAM(network(), rho=0.05))
    ours, _ = fitted(make())
    for a, b in zip(sam, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_gradient_of_zero_has_no_direction(float64):
    zero = np.zeros(3)
    for method in (GAM, AcceleratedGAM):
        w = after_one_step(method, half_quadratic(HESSIAN), start=zero)
        np.testing.assert_array_equal(w, zero)


@pytest.mark.parametrize(
    ("make", "passes"),
    [
        (lambda: GAM(network(), hessian="differences"), 4),
        (lambda: GAM(network(), hessian="differences", sam_rho=0.1), 5),
        (lambda: GAM(network()), 2),  # each with a backward pass through a backward pass
        (lambda: AcceleratedGAM(network()), 4),
    ],
)
def test_number_of_forward_passes(monkeypatch, rng, make, passes):
    calls, forward = [], Batch.forward
    monkeypatch.setattr(Batch, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    trainer = make()
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.train_step(
        (tf.constant(rng.normal(size=(4, 5)), tf.float32), tf.constant([0, 1, 2, 0]))
    )
    assert len(calls) == passes


def _numpy_gam(h, w, direction_hessian):
    """alpha * penalty of GAM plus the gradient; the second Hessian gives the directions."""
    d = direction_hessian
    worst = w + 0.3 * unit(d @ unit(d @ w))
    return h @ w + 0.7 * 0.3 * h @ unit(d @ worst)


@pytest.mark.parametrize("m_sharpness", [True, False])
@pytest.mark.parametrize("hessian", ["exact", "differences"])
def test_replicas(float64, mirrored, rng, m_sharpness, hessian):
    """m-sharpness averages the replicas' own directions; otherwise one device is equalled."""
    hessians = rng.normal(size=(2, 3, 3))
    hessians = hessians @ hessians.transpose(0, 2, 1)

    def loss(y_true, w):  # the label says which of the two quadratics a row belongs to
        own = tf.gather(tf.constant(hessians), tf.cast(y_true[:, 0], tf.int32))
        return 0.5 * tf.reduce_sum(w * tf.linalg.matvec(own, w), axis=-1)

    with mirrored.scope():
        model = Weights(START)
        trainer = GAM(model, rho=0.3, alpha=0.7, hessian=hessian, m_sharpness=m_sharpness)
        trainer.compile(keras.optimizers.SGD(0.1), loss)
    rows = np.zeros([4, 1]), np.array([[0], [0], [1], [1]])
    Loop(trainer, tf.data.Dataset.from_tensors(rows), strategy=mirrored).run()
    mean = hessians.mean(0)
    own = sum(_numpy_gam(h, START, h) for h in hessians) / 2
    one_device = _numpy_gam(mean, START, mean)
    expected = own if m_sharpness else one_device
    np.testing.assert_allclose(model.w.numpy(), START - 0.1 * expected, rtol=1e-9)
    assert np.abs(own - one_device).max() > 1e-3


def test_accelerated_replicas_equal_one_device(float64, mirrored, rng):
    rows = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            keras.utils.set_random_seed(4)
            layers = [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
            model = keras.Sequential(layers)
            trainer = AcceleratedGAM(model, gamma=0.5, m_sharpness=False)
            trainer.compile(keras.optimizers.SGD(0.1), "mse")
        Loop(trainer, tf.data.Dataset.from_tensors(rows), epochs=3, strategy=strategy).run()
        weights.append(trainer.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (GAM, {"rho": -1}, r"`rho` must be a number of at least 0. Received: -1"),
        (GAM, {"difference": 0}, r"`difference` must be a number above 0. Received: 0"),
        (
            GAM,
            {"hessian": "full"},
            r"`hessian` must be one of exact, differences. Received: 'full'",
        ),
        (AcceleratedGAM, {"alpha": 1.5}, r"`alpha` must be a number in \[0, 1\]. Received: 1.5"),
        (AcceleratedGAM, {"gamma": None}, r"`gamma` must be a number of at least 0."),
    ],
)
def test_refuses_what_is_out_of_range(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(network(), **options)
