import keras
import numpy as np
import pytest
import tensorflow as tf

from kzoo.optimizers.amsgrad import AdamNC, AMSGrad
from kzoo.optimizers.schedules.inverse_sqrt_decay import InverseSqrtDecay
from tests.optimizers.reference import trajectory

pytestmark = pytest.mark.paper("On the Convergence of Adam and Beyond")

DECAYS = {1.0: lambda t: 0.8, 0.9: lambda t: 0.8 * 0.9 ** (t - 1), "1/t": lambda t: 0.8 / t}


def by_the_formula(start, gradients, beta_1, beta_2, decay=0.0, rate=lambda t: 0.02):
    """Algorithms 2 (`beta_2` a number) and 3 (`beta_2` None), line by line."""
    w, m, v, v_hat, weights = start.copy(), 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m = beta_1(t) * m + (1 - beta_1(t)) * g
        if beta_2 is None:
            v_hat = np.mean(np.square(gradients[:t]), axis=0)
        else:
            v = beta_2 * v + (1 - beta_2) * g**2
            v_hat = np.maximum(v_hat, v)
        w = w - rate(t) * (m / (np.sqrt(v_hat) + 1e-6) + decay * w)
        weights.append(w)
    return np.stack(weights)


@pytest.mark.parametrize("beta_1_decay", DECAYS, ids=str)
@pytest.mark.parametrize("beta_2", [0.95, None])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_equals_the_formula_over_200_steps(float64, rng, beta_1_decay, beta_2, jit_compile):
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(200, 3, 4))
    options = {"beta_1": 0.8, "beta_1_decay": beta_1_decay, "epsilon": 1e-6}
    options |= {"weight_decay": 0.1, "jit_compile": jit_compile}
    optimizer = AMSGrad(0.02, beta_2=beta_2, **options) if beta_2 else AdamNC(0.02, **options)
    expected = by_the_formula(start, gradients, DECAYS[beta_1_decay], beta_2, decay=0.1)
    np.testing.assert_allclose(trajectory(optimizer, start, gradients), expected, rtol=1e-11)


def test_five_steps_of_amsgrad_computed_by_hand(float64):
    # With beta_1 = 0 and beta_2 = 3/4, g = 4, 0, 2, 8, 1: v = 4, 3, 13/4, 295/16, 901/64;
    # v_hat = 4, 4, 4, 295/16, 295/16.
    optimizer = AMSGrad(1.0, beta_1=0.0, beta_2=0.75, epsilon=0.0)
    gradients = np.array([4.0, 0.0, 2.0, 8.0, 1.0])[:, None]
    root = np.sqrt(295) / 4
    expected = -np.cumsum([2, 0, 1, 8 / root, 1 / root])
    weights = trajectory(optimizer, np.zeros(1), gradients)[:, 0]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_five_steps_of_adam_nc_computed_by_hand(float64):
    # g = 1, 1, 2, 0, 2, means of squares 1, 1, 2, 3/2, 2; with beta_1 = 1/2 and "1/t" the decays
    # are 1/2, 1/4, 1/6, 1/8, 1/10, and m = 1/2, 7/8, 87/48, 87/384, 6999/3840.
    optimizer = AdamNC(1.0, beta_1=0.5, beta_1_decay="1/t", epsilon=0.0)
    gradients = np.array([1.0, 1.0, 2.0, 0.0, 2.0])[:, None]
    m = np.array([1 / 2, 7 / 8, 87 / 48, 87 / 384, 6999 / 3840])
    expected = -np.cumsum(m / np.sqrt([1, 1, 2, 3 / 2, 2]))
    weights = trajectory(optimizer, np.zeros(1), gradients)[:, 0]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@keras.saving.register_keras_serializable("kzoo_tests")
class BiasCorrected(keras.optimizers.schedules.LearningRateSchedule):
    """What Keras folds into the learning rate."""

    def __call__(self, step):
        t = tf.cast(step + 1, tf.float64)
        return 2.0**-7 * tf.sqrt(1 - (63 / 64) ** t) / (1 - (7 / 8) ** t)

    def get_config(self):
        return {}


def test_is_kerass_with_the_bias_correction_in_the_learning_rate(float64, rng):
    start, gradients = rng.normal(size=(5,)), rng.normal(size=(200, 5))
    # Numbers that Keras's detour through float32 leaves as they are.
    options = {"beta_1": 7 / 8, "beta_2": 63 / 64, "epsilon": 2.0**-20}
    theirs = keras.optimizers.Adam(2.0**-7, amsgrad=True, **options)
    np.testing.assert_allclose(
        trajectory(AMSGrad(BiasCorrected(), **options), start, gradients),
        trajectory(theirs, start, gradients),
        rtol=1e-9,
    )


def test_the_first_step_without_bias_correction_has_the_documented_length(float64):
    (weight,) = trajectory(AMSGrad(1.0), np.zeros(1), np.array([[7.0]]))[:, 0]
    assert weight == pytest.approx(-0.1 / np.sqrt(0.001), rel=1e-6)


def test_adam_nc_with_the_papers_rate_is_adagrad(float64, rng):
    start, gradients = rng.normal(size=(5,)), rng.normal(size=(100, 5))
    adagrad = keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.0, epsilon=0.0)
    ours = AdamNC(InverseSqrtDecay(0.1), beta_1=0.0, epsilon=0.0)
    np.testing.assert_allclose(
        trajectory(ours, start, gradients), trajectory(adagrad, start, gradients), rtol=1e-10
    )


def test_the_second_moment_never_decreases(rng):
    variable = keras.Variable(np.zeros(20, "float32"))
    optimizer = AMSGrad(0.1, beta_2=0.5)
    last = 0.0
    for scale in (1.0, 5.0, 0.1, 0.0, 2.0):
        optimizer.apply([tf.constant(scale * rng.normal(size=20), tf.float32)], [variable])
        now = optimizer._velocity_hats[0].numpy()
        assert (now >= last).all()
        last = now
    assert (last > optimizer._velocities[0].numpy()).any()


def test_the_learning_rate_of_the_theorems():
    rates = [float(InverseSqrtDecay(0.5)(step)) for step in (0, 3, 99)]
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.05], rtol=1e-6)
    # Steps that float32 would round.
    far = InverseSqrtDecay(1.0)(tf.constant(2**40, tf.int64))
    assert float(far) == pytest.approx(2.0**-20)
    with pytest.raises(ValueError, match="`initial_learning_rate` must be in .* Received: 0"):
        InverseSqrtDecay(0)


def test_steps_in_bfloat16():
    variable = keras.Variable(np.ones(2), dtype="bfloat16")
    AMSGrad(0.5, beta_1=0.0, beta_2=0.75, beta_1_decay=0.9).apply(
        [tf.constant([2.0, -4.0], "bfloat16")], [variable]
    )
    np.testing.assert_allclose(variable.numpy().astype("float32"), [0.0, 2.0], atol=0.02)


@pytest.mark.parametrize(
    ("cls", "argument", "value"),
    [
        (AMSGrad, "beta_1", 1.0),
        (AMSGrad, "beta_2", -0.1),
        (AdamNC, "epsilon", "small"),
        (AMSGrad, "beta_1_decay", 0.0),
        (AdamNC, "beta_1_decay", "t"),
    ],
)
def test_refuses_what_is_out_of_range(cls, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be in .* Received: {value!r}"):
        cls(**{argument: value})
