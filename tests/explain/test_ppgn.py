"""PPGN: the update by hand, its limits (ascent, Langevin), exact class-conditional samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from scipy.special import expit, log_softmax, softmax

from kzoo.explain.visualization import Objective, class_logit
from kzoo.explain.visualization.ppgn import class_log_probability, ppgn, ppgn_sheet

pytestmark = pytest.mark.paper(
    "Plug & Play Generative Networks: Conditional Iterative Generation of Images in Latent Space"
)

VARIANCE, NOISE = 1.0, 0.5
SHRINKAGE = NOISE / (VARIANCE + NOISE)


def dense(kernel, activation=None, bias=None):
    kernel = np.asarray(kernel)
    model = keras.Sequential(
        [keras.Input([len(kernel)]), keras.layers.Dense(kernel.shape[1], activation)]
    )
    model.set_weights([kernel, np.zeros(kernel.shape[1]) if bias is None else bias])
    return model


def optimal_denoiser(size):
    """Of N(0, VARIANCE I) with the noise N(0, NOISE I): R(x) = VARIANCE / (VARIANCE + NOISE) x."""
    return dense((1 - SHRINKAGE) * np.eye(size))


def gaussian(size, center, variance):
    """The condition log p(y | x) = -|x - center|^2 / (2 variance)."""

    def activation(x, target):
        return -tf.reduce_sum((x - center) ** 2, axis=1) / (2 * variance)

    return Objective(dense(np.eye(size)), activation, ["near"])


def test_two_steps_by_hand():
    """p = sigmoid(2 x), R = x / 2, epsilon1 = 0.1, epsilon2 = 0.5, from 0.

    0 + 0.5 * 2 (1 - 1/2) = 0.5, then
    0.5 + 0.1 (0.25 - 0.5) + 0.5 * 2 (1 - sigmoid(1)) = 0.743941.
    """
    goal = class_log_probability(dense([[2.0]], "sigmoid"), 0)
    result = ppgn(
        goal,
        denoiser=dense([[0.5]]),
        epsilon1=0.1,
        epsilon2=0.5,
        steps=2,
        start=[0.0],
        save_every=1,
    )
    np.testing.assert_allclose(result["chain"], [[[0.5]], [[0.743941]]], rtol=1e-6)
    expected = [-0.693147, -0.313262, -0.203635]
    np.testing.assert_allclose(result["activations"][:, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(result["images"], result["codes"])


def test_without_prior_and_noise_it_is_gradient_ascent_through_the_generator(rng, float64):
    """DGN-AM: h <- h + epsilon2 J_G(h)^T (w_y - sum_k p_k w_k), here with G = tanh(A h)."""
    mixing, kernel = rng.normal(size=(3, 5)), rng.normal(size=(5, 4))
    codes = start = rng.normal(size=(4, 3))
    classes = np.array([2, 2, 0, 0])
    goal = class_log_probability(dense(kernel, "softmax"), [2, 0])
    result = ppgn(goal, dense(mixing, "tanh"), epsilon2=0.3, steps=6, chains=2, start=start)
    trace = []
    for _ in range(7):
        images = np.tanh(codes @ mixing)
        trace.append(log_softmax(images @ kernel, axis=1)[range(4), classes])
        slope = kernel.T[classes] - softmax(images @ kernel, axis=1) @ kernel.T
        last, codes = codes, codes + 0.3 * (slope * (1 - images**2)) @ mixing.T
    np.testing.assert_allclose(result["activations"], trace, rtol=1e-10)
    np.testing.assert_allclose(result["codes"], last, rtol=1e-10)
    np.testing.assert_allclose(result["images"], np.tanh(last @ mixing), rtol=1e-10)
    np.testing.assert_array_equal(result["targets"], [0, 0, 1, 1])


def test_a_trained_denoiser_gives_the_score_of_gaussian_data(rng):
    """Alain and Bengio: (R(x) - x) / sigma^2 = d log p(x) / dx for data with the noise added."""
    covariance = np.array([[1.5, 0.6], [0.6, 0.8]])
    data = rng.multivariate_normal(np.zeros(2), covariance, 8000)
    denoiser = keras.Sequential(
        [
            keras.Input([2]),
            keras.layers.GaussianNoise(np.sqrt(NOISE), seed=0),
            keras.layers.Dense(2),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.2, 200)
    denoiser.compile(keras.optimizers.SGD(schedule, momentum=0.5), "mse", steps_per_execution=20)
    denoiser.fit(data, data, batch_size=200, epochs=5, verbose=0)
    x = rng.normal(size=(50, 2))
    score = (denoiser(x).numpy() - x) / NOISE
    exact = -x @ np.linalg.inv(covariance + NOISE * np.eye(2))
    assert np.linalg.norm(score - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("epsilon2", [0.0, 0.2])
def test_stationary_moments_of_the_linear_gaussian_chain(epsilon2):
    """x' = a x + b + epsilon3 n, with a = 1 - epsilon1 s - epsilon2 / v, has the variance
    epsilon3^2 / (1 - a^2), the mean b / (1 - a), and the correlation a^k after k steps.
    """
    epsilon3, variance, center = 0.5, 0.8, 2.0
    epsilon1 = epsilon3**2 / (2 * NOISE)
    result = ppgn(
        gaussian(2, center, variance),
        denoiser=optimal_denoiser(2),
        epsilon1=epsilon1,
        epsilon2=epsilon2,
        epsilon3=epsilon3,
        steps=80,
        save_every=4,
        chains=20000,
        jit_compile=epsilon2 > 0,
    )
    a = 1 - epsilon1 * SHRINKAGE - epsilon2 / variance
    before, last = result["chain"].numpy()[-2:]
    expected = epsilon3**2 / (1 - a**2)
    np.testing.assert_allclose(last.var(0), expected, rtol=0.04)
    np.testing.assert_allclose(last.mean(0), epsilon2 * center / variance / (1 - a), atol=0.03)
    correlation = np.corrcoef(before.ravel() - before.mean(), last.ravel() - last.mean())[0, 1]
    np.testing.assert_allclose(correlation, a**4, atol=0.015)
    if not epsilon2:
        # Langevin's limit of small steps: the variance of the data with the denoiser's noise.
        np.testing.assert_allclose(last.var(0), VARIANCE + NOISE, rtol=0.1)


def test_samples_of_a_class_of_a_mixture_are_that_gaussian():
    """prior(x) p(y | x) is the class's Gaussian, although neither factor is; a = 1 - epsilon2 / v.

    With equal weights p(y | x) is a softmax of x.mu / v - |mu|^2 / 2v, v = VARIANCE + NOISE, and
    R(x) = VARIANCE / v x + NOISE / v sum_k p(k | x) mu_k.
    """
    means = np.array([[4.0, 0.0], [-2.0, 3.0], [-2.0, -3.0]])
    v, epsilon2 = VARIANCE + NOISE, 0.1
    inputs = keras.Input([2])
    classifier = dense(means.T / v, "softmax", -(means**2).sum(1) / (2 * v))
    mean = dense(means)(classifier(inputs))
    denoised = keras.layers.add(
        [
            keras.layers.Rescaling(VARIANCE / v)(inputs),
            keras.layers.Rescaling(NOISE / v)(mean),
        ]
    )
    result = ppgn(
        class_log_probability(classifier, [0, 1, 2]),
        denoiser=keras.Model(inputs, denoised),
        epsilon1=epsilon2 / NOISE,
        epsilon2=epsilon2,
        epsilon3=np.sqrt(2 * epsilon2),
        steps=100,
        chains=6000,
    )
    images = result["images"].numpy().reshape(3, 6000, 2)
    np.testing.assert_allclose(images.mean(1), means, atol=0.08)
    a = 1 - epsilon2 / v
    np.testing.assert_allclose(images.var(1), 2 * epsilon2 / (1 - a**2), rtol=0.07)
    assert np.exp(result["activations"][-1].numpy()).mean() > 0.97
    assert np.exp(result["activations"][0].numpy()).mean() < 0.4, "they begin anywhere"


def test_the_joint_prior_is_the_encoder_after_the_generator(rng, float64):
    generator, encoder = dense(rng.normal(size=(3, 5)), "tanh"), dense(rng.normal(size=(5, 3)))
    goal = class_logit(dense(rng.normal(size=(5, 4))), [1, 3])
    options = {"epsilon1": 0.2, "epsilon3": 0.1, "steps": 5, "seed": 3}
    joint = ppgn(goal, generator, encoder=encoder, **options)
    denoiser = keras.Sequential([generator, encoder])
    composed = ppgn(goal, generator, denoiser=denoiser, **options)
    np.testing.assert_allclose(joint["codes"], composed["codes"], rtol=1e-10)
    without = ppgn(goal, generator, **{**options, "epsilon1": 0.0})
    assert np.abs(joint["codes"] - without["codes"]).max() > 0.01


def test_saved_images_are_those_of_shorter_runs_and_xla_changes_nothing(rng):
    generator, goal = dense(rng.normal(size=(2, 3))), class_logit(dense(rng.normal(size=(3, 2))), 0)
    options = {"epsilon2": 0.1, "epsilon3": 0.3, "chains": 3, "seed": 5}
    long = ppgn(goal, generator, steps=6, save_every=2, **options)
    short = ppgn(goal, generator, steps=4, **options)
    assert long["chain"].shape == (3, 3, 3)
    np.testing.assert_allclose(long["chain"][1], short["images"], rtol=1e-6)
    np.testing.assert_allclose(long["activations"][:5], short["activations"], rtol=1e-6)
    options["epsilon3"] = 0.0
    plain, compiled = (
        ppgn(goal, generator, steps=6, save_every=2, jit_compile=jit_compile, **options)
        for jit_compile in (False, True)
    )
    for name, values in plain.items():
        np.testing.assert_allclose(compiled[name], values, rtol=1e-5, atol=1e-6)


def test_the_seed_alone_decides():
    options = {"epsilon3": 1.0, "epsilon2": 0.0, "steps": 2, "chains": 3, "start": [0.0, 0.0]}
    one, same, other = (
        ppgn(gaussian(2, 0.0, 1.0), seed=seed, **options)["images"].numpy() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).min() > 1e-3
    assert np.abs(one[0] - one[1]).min() > 1e-3, "chains have noise of their own"


def test_step_size_and_bounds(rng):
    start = rng.normal(size=(3, 4))
    options = {"epsilon2": 7.0, "steps": 1, "chains": 3, "start": start}
    moved = ppgn(gaussian(4, 1.0, 1.0), step_size=0.2, **options)["codes"] - start
    np.testing.assert_allclose(np.abs(moved).mean(1), 0.2, rtol=1e-5)
    expected = 0.2 * (1 - start) / np.abs(1 - start).mean(1, keepdims=True)
    np.testing.assert_allclose(moved, expected, rtol=1e-4)
    clipped = ppgn(gaussian(4, 1.0, 1.0), bounds=(-0.5, 0.5), **options)["codes"]
    np.testing.assert_allclose(clipped, np.clip(start + 7 * (1 - start), -0.5, 0.5), rtol=1e-6)


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_log_probability_of_a_class(rng, activation):
    kernel, x = rng.normal(size=(3, 4)), rng.normal(size=(2, 3))
    goal = class_log_probability(dense(kernel, activation), [3, 1])
    logits = x @ kernel
    log_p = np.log(expit(logits)) if activation == "sigmoid" else log_softmax(logits, axis=1)
    value = goal(tf.constant(x), tf.constant([0, 1]))
    np.testing.assert_allclose(value, [log_p[0, 3], log_p[1, 1]], rtol=1e-5)
    certain = goal(tf.constant([[-500.0, 800.0, 300.0]]), tf.constant([1]))
    assert np.isfinite(certain).all()


def test_sheet(rng):
    kernel = rng.normal(size=(16, 2))
    classifier = keras.Sequential(
        [keras.Input([4, 4, 1]), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )
    classifier.set_weights([kernel, np.zeros(2)])
    goal = class_log_probability(classifier, [0, 1])
    result = ppgn(goal, steps=6, save_every=2, chains=2, bounds=(0.0, 1.0))
    figure = ppgn_sheet(result, chains=[3, 0])
    assert isinstance(figure, Figure)
    captions = [axis.get_xlabel() for axis in figure.axes]
    expected = np.exp(result["activations"].numpy()[[2, 4, 6]].T[[3, 0]]).ravel()
    assert captions == [f"{value:.2f}" for value in expected]
    shown = figure.axes[2].get_images()[0].get_array()
    np.testing.assert_allclose(shown[..., 0], result["images"][3, ..., 0], rtol=1e-5)
    with pytest.raises(ValueError, match="`chains` must be positions in 0..3"):
        ppgn_sheet(result, chains=[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon1": 0.1}, "`epsilon1` needs"),
        ({"epsilon2": -1.0}, "`epsilon2` must be at least 0"),
        ({"epsilon3": float("nan")}, "`epsilon3` must be at least 0"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"steps": 5, "save_every": 2}, "`save_every` must divide"),
        ({"chains": 1.5}, "`chains` must be a positive integer"),
        ({"step_size": 0.0}, "`step_size` must be above 0"),
        ({"bounds": (1, 0)}, "`bounds` must be"),
        ({"start": [0.0]}, "`start` must be one code of shape"),
        ({"encoder": dense(np.eye(2))}, "`encoder` needs the `generator`"),
        ({"encoder": dense(np.eye(2)), "denoiser": dense(np.eye(2))}, "Received both"),
        ({"denoiser": dense(np.ones((2, 3))), "epsilon1": 0.1}, "must return codes of the shape"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ppgn(gaussian(2, 0.0, 1.0), **options)


def test_a_class_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="`classes` must be columns"):
        ppgn(class_log_probability(dense(np.eye(3), "softmax"), 3), steps=1)
