import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from kzoo.metrics import FrechetDistance, frechet_distance

pytestmark = pytest.mark.paper(
    "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"
)


def covariance(rng, size, rank=None):
    root = rng.normal(size=(size, rank or size))
    return root @ root.T / size


def reference(mean_1, covariance_1, mean_2, covariance_2):
    """Equation 6 as it is written, with SciPy's root."""
    root = scipy.linalg.sqrtm(covariance_1 @ covariance_2)
    traces = np.trace(covariance_1 + covariance_2 - 2 * np.real(root))
    return np.sum((mean_1 - mean_2) ** 2) + traces


def test_numbers_by_hand():
    # Independent features: (m1 - m2)^2 + (s1 - s2)^2 for each of them.
    distance = frechet_distance([1.0, 0], np.diag([4.0, 1]), [3.0, 0], np.diag([9.0, 16]))
    assert float(distance) == pytest.approx(2**2 + (2 - 3) ** 2 + (1 - 4) ** 2, rel=1e-12)


def test_equation_of_the_paper(rng):
    arguments = rng.normal(size=6), covariance(rng, 6), rng.normal(size=6), covariance(rng, 6)
    expected = reference(*arguments)
    assert float(frechet_distance(*arguments)) == pytest.approx(expected, rel=1e-9)
    swapped = frechet_distance(*arguments[2:], *arguments[:2])
    assert float(swapped) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances(rng):
    mean, singular = rng.normal(size=8), covariance(rng, 8, rank=3)
    assert float(frechet_distance(mean, singular, mean, singular)) == pytest.approx(0, abs=1e-6)
    # Subspaces that meet at a right angle: the cross term is zero.
    ones, zeros = np.diag([1.0] * 3 + [0] * 5), np.diag([0.0] * 3 + [2] * 5)
    assert float(frechet_distance(mean, ones, mean, zeros)) == pytest.approx(13, rel=1e-9)


def test_samples_of_gaussians_come_near_the_closed_form(rng):
    means, covariances = rng.normal(size=(2, 8)), [covariance(rng, 8) for _ in range(2)]
    metric = FrechetDistance(8)
    for _ in range(5):
        samples = [
            rng.multivariate_normal(mean, c, 10_000)
            for mean, c in zip(means, covariances, strict=True)
        ]
        metric.update_state(*samples)
    expected = reference(means[0], covariances[0], means[1], covariances[1])
    assert float(metric.result()) == pytest.approx(expected, rel=0.02)


def test_batches_of_any_size_and_sets_of_different_sizes(rng):
    real, fake = rng.normal(size=(50, 4)) + 3, rng.normal(size=(31, 4)) * 2
    metric = FrechetDistance(4, dtype="float64")
    for rows in (slice(0, 7), slice(7, 50)):
        metric.update_reference(real[rows])
    metric.update_generated(fake)
    expected = reference(
        real.mean(0), np.cov(real, rowvar=False), fake.mean(0), np.cov(fake, rowvar=False)
    )
    assert float(metric.result()) == pytest.approx(expected, rel=1e-9)

    halves = [FrechetDistance(4, dtype="float64") for _ in range(2)]
    halves[0].update_state(real[:20], fake)
    halves[1].update_reference(real[20:])
    halves[0].merge_state(halves[1:])
    assert float(halves[0].result()) == pytest.approx(expected, rel=1e-9)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_sums_are_in_double_precision(rng):
    # Offsets of 1000 would leave float32 sums of squares without a single digit of the variance.
    real = rng.normal(size=(400, 3))
    metric = FrechetDistance(3)
    metric.update_state(1000 + real.astype("float64"), 1000 + 2 * real)
    scaled = reference(
        real.mean(0), np.cov(real, rowvar=False), 2 * real.mean(0), 4 * np.cov(real, rowvar=False)
    )
    assert float(metric.result()) == pytest.approx(scaled, rel=1e-6)
    assert metric.result().dtype == tf.float32


def test_two_replicas_count_every_row_once(mirrored, rng):
    real, fake = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) + 1
    alone = FrechetDistance(3, dtype="float64")
    alone.update_state(real, fake)
    with mirrored.scope():
        shared = FrechetDistance(3, dtype="float64")

    @tf.function
    def step(real, fake):
        mirrored.run(shared.update_state, (real, fake))

    data = tf.data.Dataset.from_tensor_slices((real, fake)).batch(4)
    for batch in mirrored.experimental_distribute_dataset(data):
        step(*batch)
    assert float(shared.result()) == pytest.approx(float(alone.result()), rel=1e-9)


def test_graph_and_configuration(rng):
    metric = FrechetDistance.from_config(FrechetDistance(3, name="fid").get_config())
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert (again.name, again.dim) == ("fid", 3)
    real, fake = rng.normal(size=(2, 9, 3)).astype("float32")
    metric.update_state(real, fake)
    tf.function(again.update_state)(real, fake)
    for jit_compile in (False, True):
        result = tf.function(again.result, jit_compile=jit_compile)()
        assert float(result) == pytest.approx(float(metric.result()), rel=1e-4)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`dim` must be a positive integer. Received: 0"):
        FrechetDistance(0)
    with pytest.raises(ValueError, match=r"generated features must be \[batch, 3\]"):
        FrechetDistance(3).update_generated(np.zeros([2, 4]))
