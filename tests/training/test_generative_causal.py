"""Generative causal explanations: the paper's linear-Gaussian case, the terms of the objective."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.linalg import sqrtm
from scipy.special import entr, expit

from kzoo.training import Loop
from kzoo.training.generative_causal import GenerativeCausalExplainer

pytestmark = pytest.mark.paper("Generative causal explanations of black-box classifiers")

SIGMA = np.array([[2.0, 0.6, 0.0], [0.6, 0.5, 0.0], [0.0, 0.0, 1.0]])
ROOT = sqrtm(SIGMA).real
NORMAL = np.array([0.0, 2.0, 1.0])


def logistic(normal):
    classifier = keras.Sequential([keras.Input([len(normal)]), keras.layers.Dense(1, "sigmoid")])
    classifier.set_weights([np.reshape(normal, [-1, 1]), np.zeros(1)])
    return classifier


def linear_encoder(size, factors, log_variance=-2.0):
    inputs = keras.Input([size])
    constant = keras.initializers.Constant(log_variance)
    spread = keras.layers.Dense(factors, kernel_initializer="zeros", bias_initializer=constant)
    return keras.Model(inputs, [keras.layers.Dense(factors)(inputs), spread(inputs)])


def logistic_flow(scale):
    """I(z; Y) for p(y = 1 | z) = sigmoid(scale z), z ~ N(0, 1), by Gauss-Hermite quadrature."""
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    entropy = entr(expit(scale * z)) + entr(expit(-scale * z))
    return np.log(2) - weight @ entropy / weight.sum()


def small(log_variance=-200.0, **options):
    """Four inputs, two factors, three classes; without noise where the variance is so small."""
    keras.utils.set_random_seed(1)
    norm = keras.layers.BatchNormalization(synchronized=True)
    classifier = keras.Sequential([keras.Input([4]), norm, keras.layers.Dense(3, "softmax")])
    decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(4, "tanh")])
    encoder = linear_encoder(4, 2, log_variance)
    options = {"num_alpha": 5, "num_beta": 4} | options
    trainer = GenerativeCausalExplainer(classifier, encoder, decoder, **options)
    trainer.compile(keras.optimizers.SGD(0.1))
    return trainer


def evaluated(trainer, x, **options):
    return trainer.evaluate(x, batch_size=len(x), verbose=0, return_dict=True, **options)


@pytest.fixture(scope="module")
def linear_gaussian():
    """Trained on N(0, Sigma), with factors that have unit length before they get its shape."""
    keras.utils.set_random_seed(0)
    whitened = keras.layers.Dense(
        3, use_bias=False, kernel_constraint=keras.constraints.UnitNorm(axis=1), name="whitened"
    )
    root = keras.initializers.Constant(ROOT)
    shape = keras.layers.Dense(3, use_bias=False, trainable=False, kernel_initializer=root)
    decoder = keras.Sequential([keras.Input([3]), whitened, shape])
    explainer = GenerativeCausalExplainer(
        logistic(NORMAL),
        linear_encoder(3, 3),
        decoder,
        elbo_weight=0.02,
        variance=0.1,
        num_alpha=32,
        num_beta=32,
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 640)
    explainer.compile(keras.optimizers.SGD(schedule, momentum=0.9))
    x = np.random.default_rng(0).multivariate_normal(np.zeros(3), SIGMA, 4096)
    dataset = tf.data.Dataset.from_tensor_slices(x.astype("float32")).batch(64)
    history = Loop(explainer, dataset, epochs=10).run().history
    return explainer, whitened.kernel.numpy(), history


def test_the_causal_direction_is_the_classifiers_in_whitened_space(linear_gaussian):
    """There v_alpha is parallel to Sigma^1/2 a, which in inputs is Sigma a, and far from a."""
    _, directions, _ = linear_gaussian

    def cosine(u, v):
        return abs(u @ v) / np.linalg.norm(u) / np.linalg.norm(v)

    assert cosine(directions[0], ROOT @ NORMAL) > 0.995
    assert cosine(directions[0] @ ROOT, SIGMA @ NORMAL) > 0.995
    assert cosine(directions[0] @ ROOT, NORMAL) < 0.8


def test_the_classifier_ignores_the_other_factors(linear_gaussian):
    explainer, directions, _ = linear_gaussian
    effects = np.abs(directions @ ROOT @ NORMAL)
    assert effects[1:].max() < 0.1 * effects[0]
    assert all(explainer.information_flow(factor) < 2e-3 for factor in (1, 2))


def test_the_flow_is_that_of_the_best_direction(linear_gaussian):
    explainer, _, history = linear_gaussian
    best = logistic_flow(np.sqrt(NORMAL @ SIGMA @ NORMAL))
    np.testing.assert_allclose(explainer.information_flow(num_alpha=2000), best, rtol=0.03)
    np.testing.assert_allclose(history["information_flow"][-1], best, rtol=0.1)
    assert max(history["information_flow"]) < np.log(2)


@pytest.mark.parametrize("from_logits", [False, True])
def test_flow_of_each_factor_against_quadrature(from_logits):
    """The classifier reads one factor, with scale 3, and no other."""
    decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, use_bias=False)])
    decoder.set_weights([np.eye(2)[::-1]])
    classifier = logistic([3.0, 0.0])
    if from_logits:
        classifier.layers[-1].activation = keras.activations.linear
    explainer = GenerativeCausalExplainer(
        classifier, linear_encoder(2, 2), decoder, from_logits=from_logits
    )
    flow = explainer.information_flow(1, num_alpha=4000, num_beta=20)
    np.testing.assert_allclose(flow, logistic_flow(3.0), rtol=0.02)
    assert 0 < explainer.information_flow(0, num_alpha=200, num_beta=500) < 1 / 500
    both = explainer.information_flow([0, 1], num_alpha=4000, num_beta=1)
    np.testing.assert_allclose(both, logistic_flow(3.0), rtol=0.02)
    assert explainer.information_flow(num_alpha=9) == explainer.information_flow([0], num_alpha=9)


def test_terms_of_the_objective(float64, rng):
    x = rng.normal(size=(6, 4))
    trainer = small(elbo_weight=0.3, variance=0.2)
    result = evaluated(trainer, x)
    mean = trainer.encode(x)
    decoded = np.asarray(trainer.decoder(mean))
    reconstruction = ((x - decoded) ** 2).sum(1).mean() / 0.4
    kl = 0.5 * (mean**2 + np.exp(-200.0) + 200 - 1).sum(1).mean()
    np.testing.assert_allclose(result["reconstruction"], reconstruction, rtol=1e-10)
    np.testing.assert_allclose(result["kl"], kl, rtol=1e-10)
    loss = 0.3 * (reconstruction + kl) - result["information_flow"]
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-10)
    assert 0 < result["information_flow"] < np.log(3)


def test_the_reconstruction_is_of_a_sample_of_the_posterior(float64, rng):
    """E ||x - W z||^2 = ||x - W m||^2 + s^2 ||W||^2 for a linear decoder W, z ~ N(m, s^2)."""
    x = np.repeat(rng.normal(size=(1, 4)), 20000, 0)
    trainer = small(np.log(0.25))
    trainer.decoder.layers[-1].activation = keras.activations.linear
    mean = trainer.encode(x[:1])
    kernel = trainer.decoder.layers[-1].kernel.numpy()
    expected = ((x[0] - mean[0] @ kernel) ** 2).sum() + 0.25 * (kernel**2).sum()
    np.testing.assert_allclose(evaluated(trainer, x)["reconstruction"], expected, rtol=0.02)


def test_a_step_follows_the_numerical_gradient(float64, rng):
    x = rng.normal(size=(6, 4))
    trainer = small(-1.0, elbo_weight=0.1)
    start = trainer.get_weights()

    def step_from(weights):
        """The loss of the first step there, all of whose draws depend on its number."""
        trainer.set_weights(weights)
        trainer.optimizer.iterations.assign(0)
        trainer.reset_metrics()
        return trainer.train_on_batch(x, return_dict=True)["loss"]

    for variable in (trainer.decoder.layers[-1].kernel, trainer.encoder.layers[1].kernel):
        place = next(i for i, v in enumerate(trainer.weights) if v is variable)
        losses = []
        for change in (1e-5, -1e-5):
            weights = [value.copy() for value in start]
            weights[place][1, 1] += change
            losses.append(step_from(weights))
        step_from(start)
        taken = (start[place] - variable.numpy())[1, 1]
        np.testing.assert_allclose(taken, 0.1 * (losses[0] - losses[1]) / 2e-5, rtol=1e-5)


def test_the_classifier_stays_and_the_rest_learns(rng):
    x = rng.normal(size=(16, 4)).astype("float32")
    trainer = small(-1.0)
    frozen = trainer.model.get_weights()
    learning = trainer.encoder.get_weights() + trainer.decoder.get_weights()
    trainer.fit(x, verbose=0)
    for before, after in zip(frozen, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    after = trainer.encoder.get_weights() + trainer.decoder.get_weights()
    assert all(np.any(a != b) for a, b in zip(learning, after, strict=True))
    np.testing.assert_array_equal(trainer(x), trainer.model(x))


def test_every_step_has_draws_of_its_own(rng):
    """With a learning rate of 0 only these can change the flow."""
    x = rng.normal(size=(4, 4)).astype("float32")
    trainer = small()
    trainer.compile(keras.optimizers.SGD(0.0))
    flows = trainer.fit(x, epochs=4, verbose=0).history["information_flow"]
    assert len(set(flows)) == 4


def test_no_causal_factors_are_a_variational_autoencoder(float64, rng):
    x = rng.normal(size=(6, 4))
    result = evaluated(small(causal_factors=0, elbo_weight=1.0), x)
    assert result["information_flow"] == 0
    np.testing.assert_allclose(result["loss"], result["reconstruction"] + result["kl"])


def test_rows_of_weight_zero_count_for_nothing_in_the_bound(float64, rng):
    x = rng.normal(size=(8, 4))
    trainer = small()
    half = evaluated(trainer, x[:4])
    weighted = evaluated(trainer, x, y=np.zeros(8), sample_weight=np.repeat([2.0, 0.0], 4))
    for name, value in half.items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-10)


def test_two_replicas_take_the_steps_of_one_device(mirrored, float64, rng):
    """The bound, without noise, with an uneven last batch; each has draws of its own for C."""
    dataset = tf.data.Dataset.from_tensor_slices(rng.normal(size=(23, 4))).batch(9)
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            trainer = small(causal_factors=0)
        Loop(trainer, dataset, epochs=2, strategy=strategy).run()
        weights.append(trainer.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def test_errors_name_the_argument():
    trainer = small()
    parts = trainer.model, trainer.encoder, trainer.decoder
    with pytest.raises(ValueError, match="`causal_factors` must be an integer from 0 to 2"):
        GenerativeCausalExplainer(*parts, causal_factors=3)
    with pytest.raises(ValueError, match="`variance` must be a number above 0. Received: 0"):
        GenerativeCausalExplainer(*parts, variance=0)
    with pytest.raises(ValueError, match="`elbo_weight` must be a number of at least 0"):
        GenerativeCausalExplainer(*parts, elbo_weight=-1)
    with pytest.raises(ValueError, match="`num_beta` must be a positive integer. Received: 0"):
        GenerativeCausalExplainer(*parts, num_beta=0)
    with pytest.raises(ValueError, match="`encoder` must have two outputs"):
        GenerativeCausalExplainer(trainer.model, trainer.decoder, trainer.decoder)
    with pytest.raises(ValueError, match="`decoder` must lead from factors"):
        GenerativeCausalExplainer(*parts[:2], trainer.model)
    with pytest.raises(TypeError, match="`encoder` must be a built keras.Model"):
        GenerativeCausalExplainer(trainer.model, None, trainer.decoder)
    with pytest.raises(ValueError, match="`factors` must have at least one number from 0 to 1"):
        trainer.information_flow(2)
